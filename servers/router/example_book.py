"""The index of examples in force, and whether it may be used: one that hears of nothing forgotten any more may not."""

from collections.abc import Callable
from typing import Final

from hivemind.servers.router.example_index import ExampleIndex, Hit

STALE_S: Final = 15.0
"""Without a word of the Arbiter for so long, nothing is shown: three of its signs of life."""
NOT_READ: Final = "the platinum examples were not read yet"


class ExampleBook:
    """Holds the index, replaced whole. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._index: ExampleIndex | None = None
        self._heard = 0.0
        self._without = NOT_READ

    def __len__(self) -> int:
        """How many examples the index holds."""
        return 0 if self._index is None else len(self._index)

    def put(self, index: ExampleIndex) -> None:
        """Puts an index in force that holds all there is up to now."""
        self._index = index
        self.heard()

    def heard(self) -> None:
        """The Arbiter has told what there is to tell."""
        self._heard = self._clock()

    def forget(self, platinum_ids: list[str]) -> None:
        """Takes examples out of the index in force."""
        if self._index is not None:
            self._index.forget(platinum_ids)

    def drop(self, why: str = NOT_READ) -> None:
        """Has no index any more."""
        self._index, self._without = None, why

    @property
    def missing(self) -> str:
        """Why there are no examples; empty where there may be."""
        if self._index is None:
            return self._without
        silent = self._clock() - self._heard > STALE_S
        return f"the Arbiter has not told for {STALE_S:g} s what is forgotten" if silent else ""

    def find(self, tenant: str, question: str, count: int) -> list[Hit]:
        """See ExampleIndex.find; nothing while something is missing."""
        return [] if self._index is None or self.missing else self._index.find(tenant, question, count)
