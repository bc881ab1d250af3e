"""When what was learnt is checked. Pure.

A round lasts so many seconds from its first step, and long enough that checking, which costs CPU time of its own, stays
the smaller part of the work on a busy machine as well.
"""

import time
from collections.abc import Callable
from typing import Final

_GROWTH: Final = 1.5
_LONGEST: Final = 3.0
"""Where no new batch comes, rounds grow up to so many times their length."""
_FRESH_SHARE: Final = 2.0
_REHEARSAL_SHARE: Final = 4.0
"""CPU time of learning over that of the last check, before the next: with a batch that nothing published answers to,
and without."""


class Round:
    """`length_s`: of a round with a new batch in it; `clock`: seconds."""

    def __init__(self, length_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._shortest_s = self._length_s = length_s
        self._clock = clock
        self._began: float | None = None
        self._learnt_cpu_s = self._check_cpu_s = 0.0
        self._share = _FRESH_SHARE
        self._at_once = False

    def stepped(self, began: float, cpu_s: float) -> None:
        """A step was made that began at a time of the clock and took so much CPU time."""
        self._began = began if self._began is None else self._began
        self._learnt_cpu_s += cpu_s

    def batch_came(self) -> None:
        """A batch was closed: the round is as short as it may be."""
        self._length_s, self._share = self._shortest_s, _FRESH_SHARE

    def end_now(self) -> None:
        """The next step is the round's last."""
        self._at_once = True

    @property
    def is_over(self) -> bool:
        """Whether it is time for the check."""
        if self._began is None:
            return False
        long_enough = self._learnt_cpu_s >= self._share * self._check_cpu_s
        return self._at_once or (long_enough and self._clock() - self._began >= self._length_s)

    def checked(self, cpu_s: float, *, fresh: bool) -> None:
        """A check took so much CPU time; the next round begins with the next step. `fresh`: a batch waits still that
        nothing published answers to."""
        self._check_cpu_s = cpu_s
        self._began, self._learnt_cpu_s, self._at_once = None, 0.0, False
        longest = self._shortest_s * _LONGEST
        self._length_s = self._shortest_s if fresh else min(longest, self._length_s * _GROWTH)
        self._share = _FRESH_SHARE if fresh else _REHEARSAL_SHARE
