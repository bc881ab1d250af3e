"""Reads a safetensors file by its header, without ever holding more than a few megabytes of weights.

The layout: 8 bytes little-endian length of the header, the header as JSON (name -> dtype, shape, data_offsets), the
data.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

_HEADER_MAX: Final = 100_000_000
_CHUNK: Final = 8 * 1024 * 1024
_INFINITE: Final[dict[str, tuple[str, int]]] = {
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""Per dtype: how to read it as unsigned numbers, and the exponent bits that are all set in NaN and infinity (IEEE 754).
"""


class BrokenFile(ValueError):
    """The file is not whole or not in the format; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: where its data begins in the file, and how many bytes it has."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a file in the order of their data. BrokenFile if any byte is missing or not accounted for."""
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > min(_HEADER_MAX, total - 8):
            raise BrokenFile("is truncated or no safetensors file: its header is longer than the file")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise BrokenFile("is no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise BrokenFile("is no safetensors file: its header is not an object")
    header.pop("__metadata__", None)
    tensors = sorted((_tensor(name, entry, 8 + length) for name, entry in header.items()), key=lambda t: t.start)
    _check_cover(tensors, begin=8 + length, end=total)
    return tensors


def first_infinite(path: Path, tensors: list[Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all is finite."""
    with path.open("rb") as file:
        for tensor in tensors:
            kind, exponent = _INFINITE[tensor.dtype]
            for chunk in _chunks(file, tensor):
                bits = np.frombuffer(chunk, dtype=kind)
                if bool(np.any((bits & exponent) == exponent)):
                    return tensor.name
    return None


def _chunks(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    file.seek(tensor.start, os.SEEK_SET)
    left = tensor.size
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise BrokenFile("became shorter while it was read")
        left -= len(chunk)
        yield chunk


def _tensor(name: str, entry: Any, data: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFile(f"has a broken header entry {name!r}") from error
    if dtype not in _INFINITE:
        raise BrokenFile(f"holds {name!r} as {dtype}; F32, F16 and BF16 are allowed")
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise BrokenFile(f"has a broken header entry {name!r}")
    size = math.prod(shape) * np.dtype(_INFINITE[dtype][0]).itemsize
    if end - begin != size:
        raise BrokenFile(f"says {end - begin} bytes of {name!r}, whose shape takes {size}")
    return Tensor(name, dtype, shape, data + begin, size)


def _check_cover(tensors: list[Tensor], *, begin: int, end: int) -> None:
    """No holes, no overlaps, nothing behind the last one: as the format wants it."""
    at = begin
    for tensor in tensors:
        if tensor.start != at:
            raise BrokenFile(f"has a hole or an overlap before {tensor.name!r}")
        at += tensor.size
    if at > end:
        raise BrokenFile(f"is truncated: {at - end} bytes are missing")
    if at < end:
        raise BrokenFile(f"has {end - at} bytes behind the last tensor")
