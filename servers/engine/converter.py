"""Converts adapters, as a process: `python -m hivemind.servers.engine.converter`, started by the front.

It reads its task from one line of JSON on stdin and answers with a line an adapter, in the order of the task:
`{"file": "..."}` or `{"error": "why"}`. It is a process of its own, behind all others, because the conversion holds the
interpreter for parts of its time, and the front must go on handing tokens on.
"""

import os
import sys
from pathlib import Path

import orjson

from hivemind.servers.engine.base_model import BaseModel
from hivemind.servers.engine.gguf_adapter import AdapterBroken, converted
from hivemind.servers.engine.priority import BEHIND


def main() -> None:
    """Does one task."""
    os.nice(BEHIND)
    task = orjson.loads(sys.stdin.buffer.readline())
    base, cache = BaseModel(**task["base"]), Path(task["cache"])
    for adapter in task["adapters"]:
        try:
            answer = {"file": str(converted(Path(adapter), base, cache))}
        except AdapterBroken as error:
            answer = {"error": str(error)}
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
