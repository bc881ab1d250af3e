"""Platinum examples by the meaning of their questions. Each tenant has an index of its own: a search that begins in one
tenant's cannot come upon another's example.

The search is exact (faiss's flat index): 5,000 examples take some 25 microseconds, and forgetting one leaves nothing of
it behind.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hivemind.servers.router.gate.wordpiece import Floats
from hivemind.servers.router.likeness import Likeness, words

PER_TENANT: Final = 5_000
IN_ALL: Final = 20_000
"""Examples held at most, of one tenant and of all; the oldest go first."""
LARGEST: Final = 4_000
"""Bytes of question and answer above which an example is not held."""
THRESHOLD: Final = 0.75
"""Chosen on bench/retrieval."""
_LOOKED_AT: Final = 8
"""The nearest ones that are looked at for what they speak of."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A question and its platinum answer, both redacted."""

    platinum_id: str
    tenant: str
    question: str = field(repr=False)
    answer: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hit:
    """An example and the cosine between its question and the one asked."""

    exemplar: Exemplar
    similarity: float


class ExampleIndex:
    """Holds examples, adds, forgets and finds. `flat` makes an empty index of vectors (see `flat_index`).

    `threshold`: the cosine from which on two questions count as like.
    """

    def __init__(self, likeness: Likeness, flat: Callable[[int], Any], *, threshold: float = THRESHOLD) -> None:
        self._likeness, self._flat, self._threshold = likeness, flat, threshold
        self._tenants: dict[str, _TenantsExamples] = {}
        self._by_age: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        """How many examples are held."""
        return len(self._by_age)

    def add(self, exemplar: Exemplar) -> None:
        """Takes an example. One that asks the same in the same words, or is too many, goes."""
        if len(exemplar.question.encode()) + len(exemplar.answer.encode()) > LARGEST:
            return
        self.forget([exemplar.platinum_id])
        held = self._tenants.get(exemplar.tenant)
        if held is None:
            held = _TenantsExamples(self._flat(self._likeness.dimensions))
        for name in held.in_the_way(exemplar.question):
            self.forget([name])
        self._tenants[exemplar.tenant] = held
        self._next += 1
        held.add(self._next, exemplar, self._likeness.direction(exemplar.question))
        self._by_age[exemplar.platinum_id] = (exemplar.tenant, self._next)
        if len(self._by_age) > IN_ALL:
            self.forget([next(iter(self._by_age))])

    def forget(self, platinum_ids: Iterable[str]) -> None:
        """Takes examples out, text and vector; ids that are not held count for nothing."""
        for name in platinum_ids:
            tenant, number = self._by_age.pop(name, ("", 0))
            if number:
                held = self._tenants[tenant]
                held.remove(number)
                if not held.examples:
                    del self._tenants[tenant]

    def find(self, tenant: str, question: str, count: int) -> list[Hit]:
        """The tenant's examples of like questions that speak of the same things, at most `count`, the nearest first."""
        held = self._tenants.get(tenant)
        if held is None or len(question) > LARGEST:
            return []
        nearest = held.nearest(self._likeness.direction(question))
        like = [hit for hit in nearest if hit.similarity >= self._threshold]
        things = self._likeness.things(question) if like else frozenset()
        return [h for h in like if things <= words(f"{h.exemplar.question} {h.exemplar.answer}")][:count]


class _TenantsExamples:
    """One tenant's examples, by number, with the index of their vectors."""

    def __init__(self, vectors: Any) -> None:
        self._vectors = vectors
        self.examples: OrderedDict[int, Exemplar] = OrderedDict()
        self._asked: dict[str, int] = {}

    def in_the_way(self, question: str) -> list[str]:
        """Ids of what has to go for one more: the one that asks the same, the oldest where there are too many."""
        same = self._asked.get(question.casefold())
        if same is not None:
            return [self.examples[same].platinum_id]
        full = len(self.examples) >= PER_TENANT
        return [next(iter(self.examples.values())).platinum_id] if full else []

    def add(self, number: int, exemplar: Exemplar, direction: Floats) -> None:
        self.examples[number] = exemplar
        self._asked[exemplar.question.casefold()] = number
        self._vectors.add_with_ids(direction[np.newaxis], np.array([number], np.int64))

    def remove(self, number: int) -> None:
        exemplar = self.examples.pop(number)
        del self._asked[exemplar.question.casefold()]
        self._vectors.remove_ids(np.array([number], np.int64))

    def nearest(self, direction: Floats) -> list[Hit]:
        similarities, numbers = self._vectors.search(direction[np.newaxis], _LOOKED_AT)
        pairs = zip(numbers[0].tolist(), similarities[0].tolist(), strict=True)
        return [Hit(self.examples[n], s) for n, s in pairs if n >= 0]


def flat_index() -> Callable[[int], Any]:
    """What makes empty indices; ImportError without the extra `retrieval`. The first call takes a while."""
    import faiss

    faiss.omp_set_num_threads(1)  # a search is shorter than waking a thread
    return lambda dimensions: faiss.IndexIDMap2(faiss.IndexFlatIP(dimensions))
