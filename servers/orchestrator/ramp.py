"""How a challenger's share of the traffic grows while the evidence is not enough for a verdict. Pure."""

from collections.abc import Collection
from typing import Final

SHARES: Final = (0.01, 0.05, 0.1, 0.25, 0.5)
"""The steps; all challengers of a role together get the last one at most."""


class Ramp:
    """Knows since when each challenger has its share, by the outcomes seen. A new leader counts anew, which is only
    slower. `outcomes`: how many a challenger must have had at a share before it gets the next; 0: it never does."""

    def __init__(self, outcomes: int) -> None:
        self._outcomes = outcomes
        self._since: dict[str, tuple[float, int]] = {}

    def next_share(self, adapter: str, share: float, outcomes: int, *, given: float) -> float | None:
        """The share that it may have now; None: not yet, or no more. `given`: what all challengers have together."""
        at, since = self._since.get(adapter, (share, outcomes))
        if at != share or outcomes < since:  # another step, or evidence that began anew
            since = outcomes
        self._since[adapter] = (share, since)
        following = next((s for s in SHARES if s > share + 1e-9), None)
        if not self._outcomes or following is None or outcomes - since < self._outcomes:
            return None
        return following if given - share + following <= SHARES[-1] + 1e-9 else None

    def forget_all_but(self, adapters: Collection[str]) -> None:
        """Drops those that no longer challenge."""
        self._since = {a: s for a, s in self._since.items() if a in adapters}
