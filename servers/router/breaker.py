"""A circuit breaker per endpoint: after failures in a row the endpoint rests, then one call tries it again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FAILURES_TO_OPEN: Final = 5
FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 30.0


@dataclass(slots=True)
class Breaker:
    """State of one endpoint. `clock` is monotonic, in seconds.

    Closed: calls go through. Open: none until the rest is over. Half open: one tries; if it fails the rest doubles.
    See M. Nygard, Release It!, "Circuit Breaker".
    """

    clock: Callable[[], float]
    failures: int = 0
    open_until: float = 0.0
    rest_s: float = FIRST_REST_S
    probing: bool = False
    last_error: str = ""

    def allows(self) -> bool:
        """Whether a call may be made now."""
        if self.failures < FAILURES_TO_OPEN:
            return True
        return self.clock() >= self.open_until and not self.probing

    def begin(self) -> None:
        """A call is made."""
        if self.failures >= FAILURES_TO_OPEN:
            self.probing = True

    def succeed(self) -> None:
        """The call was answered."""
        self.failures, self.rest_s, self.probing, self.last_error = 0, FIRST_REST_S, False, ""

    def fail(self, why: str) -> None:
        """The call failed by the endpoint's fault."""
        self.failures += 1
        self.last_error = why
        if self.failures >= FAILURES_TO_OPEN:
            self.open_until = self.clock() + self.rest_s
            self.rest_s = min(self.rest_s * 2, LONGEST_REST_S)
        self.probing = False

    def abandon(self) -> None:
        """The call was given up for a reason that says nothing about the endpoint."""
        self.probing = False

    def retry_in_s(self) -> float:
        """Seconds until a call may be made; 0 if one may now."""
        return 0.0 if self.allows() else max(0.0, self.open_until - self.clock())
