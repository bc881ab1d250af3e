"""How like two questions are: the angle between the gate's embeddings of them, and whether they speak of the same.

The embedding knows what is asked, and hardly of whom: "Who is the mayor of A?" and "... of B?" lie close together. So a
question's names and numbers are compared as words.
"""

import re
from typing import Final

import numpy as np

from hivemind.servers.router.gate.wordpiece import MAX_CHARACTERS, Floats, PieceTable

_WORD: Final = re.compile(r"[^\W_]+")
_SENTENCE_END: Final = ".!?:;\n\"'"


class Likeness:
    """Compares texts by a table of pieces."""

    def __init__(self, table: PieceTable) -> None:
        self._table = table
        self.dimensions: Final = int(table.vectors.shape[1])

    def direction(self, text: str) -> Floats:
        """The embedding at length 1, shape (dimensions,); zeros where there is nothing to embed."""
        vector = self._table.embed(self._table.pieces(text))
        return vector / np.float32(np.sqrt(self.dimensions))

    def things(self, text: str) -> frozenset[str]:
        """What a question speaks of, in small letters: words with a digit, words with a capital inside a sentence, and
        words that the vocabulary does not have whole."""
        found = set()
        for match in _WORD.finditer(text[:MAX_CHARACTERS]):
            word = match.group()
            if any(c.isdigit() for c in word) or (_is_name(text, match) or len(self._table.pieces(word)) > 1):
                found.add(word.lower())
        return frozenset(found)


def words(text: str) -> frozenset[str]:
    """All words of a text in small letters."""
    return frozenset(w.lower() for w in _WORD.findall(text))


def _is_name(text: str, match: re.Match[str]) -> bool:
    before = text[: match.start()].rstrip(" \t")
    inside = bool(before) and before[-1] not in _SENTENCE_END
    return inside and len(match.group()) > 1 and match.group()[0].isupper()
