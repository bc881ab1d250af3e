"""One generation of the engine, as a process: `python -m hivemind.servers.engine.worker`, started by the front.

It reads its options from one line of JSON on stdin, answers with one line (`{"port": 1}` or `{"error": "why"}`), stays
behind other processes, if the options say so, until another line comes, and serves until stdin ends, which it does when
the front closes it or dies, however it dies.
"""

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import orjson

from hivemind.servers.engine.engine import Engine, EngineOptions
from hivemind.servers.engine.priority import behind_others


def main() -> None:
    """Serves one generation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the front, which lets requests end first
    options = _options(sys.stdin.buffer.readline())
    with behind_others() if options.behind else nullcontext():
        try:
            engine = Engine(options)
        except Exception as error:  # llama.cpp throws what it likes; the front tells it on
            _say({"error": str(error) or type(error).__name__})
            os._exit(1)
        _say({"port": engine.port})
        sys.stdin.buffer.readline()
    sys.stdin.buffer.read()
    os._exit(0)  # nothing to save, and freeing the model takes time


def _options(line: bytes) -> EngineOptions:
    told = orjson.loads(line)
    adapters = tuple(Path(p) for p in told.pop("adapters"))
    return EngineOptions(**{**told, "model": Path(told["model"]), "adapters": adapters})


def _say(answer: dict[str, int | str]) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
