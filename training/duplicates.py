"""Tells duplicates among samples: exact ones by hash, near ones by MinHash (datasketch)."""

import hashlib
import re
from typing import Any, Final, Literal

THRESHOLD: Final = 0.9
"""From this Jaccard similarity of word triples on, two texts are near duplicates."""
_PERMUTATIONS: Final = 128
_BANDS: Final = (16, 8)
"""Bands and rows: a pair of similarity 0.9 is looked at with probability 0.9999, one of 0.5 with 0.06."""
_WORD: Final = re.compile(r"\w+")
_NUMBER: Final = re.compile(r"\d+")

Kind = Literal["exact", "near"]


class Duplicates:
    """Remembers what it has seen. Memory: about 1 kB a sample.

    Texts whose numbers differ are never near duplicates: two sums of one pattern teach two things.
    """

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._exact: set[bytes] = set()
        self._near: Any = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
        self._kept: dict[int, tuple[Any, bytes]] = {}

    def kind_of(self, question: str, answer: str) -> Kind | None:
        """Whether question and answer were seen before; None remembers them."""
        words = _WORD.findall(f"{question}\n{answer}".lower())
        mark = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if mark in self._exact:
            return "exact"
        self._exact.add(mark)
        numbers = hashlib.blake2b(" ".join(_NUMBER.findall(f"{question} {answer}")).encode(), digest_size=8).digest()
        sketch = self._sketch(words)
        if any(self._is_near(sketch, numbers, key) for key in self._near.query(sketch)):
            return "near"
        key = len(self._kept)
        self._kept[key] = (sketch, numbers)
        self._near.insert(key, sketch)
        return None

    def _is_near(self, sketch: Any, numbers: bytes, key: int) -> bool:
        other, its_numbers = self._kept[key]
        return numbers == its_numbers and sketch.jaccard(other) >= THRESHOLD

    @staticmethod
    def _sketch(words: list[str]) -> Any:
        from datasketch import MinHash

        triples = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([t.encode() for t in triples])
        return sketch
