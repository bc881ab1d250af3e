"""WordPiece (Wu et al. 2016) as BERT's uncased vocabulary uses it, and a static embedding of each piece.

The embeddings are distilled from all-MiniLM-L6-v2 as model2vec does it: each piece goes through the encoder alone, the
vectors are projected by PCA and weighted by log(1 + rank), so that frequent pieces say little.
"""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Floats = NDArray[np.float32]

FIRST_WORD: Final = 999
"""Pieces before this one are special or single characters; the vocabulary goes on by falling frequency."""
MAX_CHARACTERS: Final = 4000
_WORD: Final = re.compile(r"[^\W_]+|[^\w\s]|_")
_UNKNOWN: Final = 100


class PieceTable:
    """Pieces of text and their vectors: int8 with one scale a piece; shape (pieces, DIMENSIONS)."""

    def __init__(self, file: Path) -> None:
        tensors = load_file(file)
        pieces = tensors["vocabulary"].tobytes().decode().split("\n")
        self.index: Final = {piece: i for i, piece in enumerate(pieces)}
        self.continues: Final = np.array([piece.startswith("##") for piece in pieces])
        self.vectors: Final[Floats] = tensors["vectors"].astype(np.float32) * tensors["scale"][:, None]
        self._pieces_of = lru_cache(maxsize=50_000)(self._split)

    def pieces(self, text: str) -> NDArray[np.int64]:
        """The piece numbers of the first 4,000 characters."""
        plain = unicodedata.normalize("NFD", text[:MAX_CHARACTERS].lower())
        plain = "".join(c for c in plain if unicodedata.category(c) != "Mn") if not plain.isascii() else plain
        return np.array([p for word in _WORD.findall(plain) for p in self._pieces_of(word)], dtype=np.int64)

    def embed(self, pieces: NDArray[np.int64]) -> Floats:
        """The direction of the mean vector, times the root of the dimensions so that features have unit variance."""
        size = self.vectors.shape[1]
        if not len(pieces):
            return np.zeros(size, dtype=np.float32)
        mean = self.vectors[pieces].mean(axis=0)
        length = float(np.linalg.norm(mean))
        found: Floats = (mean * (np.sqrt(size) / max(length, 1e-9))).astype(np.float32)
        return found

    def _split(self, word: str) -> tuple[int, ...]:
        """Greedy longest match first; an unknown word is one unknown piece."""
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.index.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    found.append(piece)
                    start = end
                    break
            else:
                return (_UNKNOWN,)
        return tuple(found)
