"""Waits on conditions, never on time alone."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "the condition") -> T:
    """What `condition` answers once that is true; AssertionError if not in time. An exception is a not yet."""
    end = time.monotonic() + within_s
    last: BaseException | None = None
    while True:
        try:
            found = condition()
            if found:
                return found
            last = None
        except Exception as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {within_s} s") from last
        time.sleep(0.02)
