"""A process that loads behind the others and then answers beside them."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

BEHIND: Final = 5
"""Steps of niceness: a quarter of a core that somebody else wants (the kernel's weights: 335 against 1024). With 10
a load took 20 s on a machine with two processes a core."""


@contextmanager
def behind_others() -> Iterator[None]:
    """The block runs behind other processes, and so do the threads that it starts; after it all are as before.

    Nothing changes where a process may not raise itself again, as without CAP_SYS_NICE or RLIMIT_NICE, and on systems
    other than Linux, where a priority is not a thread's.
    """
    if sys.platform != "linux" or not _may_rise():
        yield
        return
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, before + BEHIND)
    try:
        yield
    finally:
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it ended just now
                os.setpriority(os.PRIO_PROCESS, int(thread), before)


def _may_rise() -> bool:
    """Tried by a thread of its own, for one that may not would stay behind."""
    risen = []

    def try_it() -> None:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, before + 1)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, before)
        except PermissionError:
            return
        risen.append(True)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return bool(risen)
