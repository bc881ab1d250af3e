"""`python -m hivemind.training.online --role ROLE`: the online learner. The Trainer server starts and watches it.

It lives as long as its standard input is open, so that it ends with its Trainer however that ends. Exit codes: 0 ended
as asked, 5 configuration or weights that cannot be used, 75 another learner works in its folder.
"""

import argparse
import fcntl
import os
import sys
import threading
from pathlib import Path
from typing import Final

from hivemind.training.base_model import prepare_base
from hivemind.training.online.inbox import Inbox
from hivemind.training.online.learner import Desk, OnlineLearner
from hivemind.training.online.model import OnlineModel
from hivemind.training.online.publication import Champion, Outbox
from hivemind.training.online.settings import OnlineSettings
from hivemind.training.online.state import StateFolder
from hivemind.training.online.tombstones import Tombstones
from hivemind.training.sft_config import ConfigError, SftConfig
from hivemind.training.stopping import Stopped, StopSwitch

DONE, UNUSABLE, BUSY = 0, 5, 75
_GRACE_S: Final = 8.0


def main(arguments: list[str] | None = None) -> int:
    """Learns until it is told to end; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hivemind.training.online", description=__doc__)
    parser.add_argument("--role", default="implementer", help="the adapter role that is learnt for")
    role = parser.parse_args(arguments).role
    stop = StopSwitch()
    stop.install()
    settings = OnlineSettings()
    folder = settings.home.resolve() / "learner" / role
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _end_with_parent()
        _learn(settings, role, folder, stop)
    except BlockingIOError:
        print(f"another learner works in {folder}", file=sys.stderr)
        return BUSY
    except ConfigError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    except Stopped:
        return DONE
    return DONE


def _learn(settings: OnlineSettings, role: str, folder: Path, stop: StopSwitch) -> None:
    _calm(settings)
    outbox = Outbox(folder)
    champion = outbox.champion() or Champion()
    config = SftConfig(
        home=str(settings.home.resolve()), base=settings.learn_base, base_weights=settings.learn_base_weights
    )
    base = prepare_base(config, os.environ)
    model = OnlineModel(
        base, champion.path, rank=settings.learn_rank, seed=settings.learn_seed, precision=settings.learn_precision
    )
    desk = Desk(
        Inbox(settings.redis_url, role, timeout_s=settings.redis_timeout_s), outbox, StateFolder(folder / "state"),
        Tombstones(settings.datasets), stop,
    )  # fmt: skip
    with stop.deferred():
        OnlineLearner(model, desk, settings, role, champion).run()


def _calm(settings: OnlineSettings) -> None:
    """Low priority and few threads, so that requests are served while this learns."""
    import torch

    os.nice(max(0, settings.learn_niceness - os.nice(0)))
    torch.set_num_threads(settings.learn_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with_parent() -> None:
    """Ends the process when its standard input does: gently, and hard if that takes too long."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        threading.Timer(_GRACE_S, lambda: os._exit(DONE)).start()
        os.kill(os.getpid(), 15)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main())
