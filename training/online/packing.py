"""Many short samples as one row without padding, and what they share at their beginning only once.

A chat template opens every conversation with the same words, often as long as question and answer together. A mask
keeps samples from seeing each other, and positions count as if each stood alone, so the result is that of single rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from hivemind.training.encoding import Encoded


@dataclass(frozen=True, slots=True)
class Pack:
    """One row of `ids` with `positions` and `mask` (1, 1, T, T; True: is seen), all tensors. `sources` and `targets`:
    the places whose predictions count and the tokens that should follow; `spans`: which of them are each sample's."""

    ids: Any
    positions: Any
    mask: Any
    sources: Any
    targets: Any
    spans: tuple[tuple[int, int], ...]


def pack(samples: Sequence[Encoded]) -> Pack:
    """The samples as one row, in their order."""
    import torch

    shared = _shared(samples)
    rooted = [s.ids[: len(shared)] == shared for s in samples]
    ids, positions = list(shared), list(range(len(shared)))
    sources: list[int] = []
    targets: list[int] = []
    spans, blocks = [], []
    for sample, has_root in zip(samples, rooted, strict=True):
        root = len(shared) if has_root else 0
        begin = len(ids)
        ids += sample.ids[root:]
        positions += range(root, len(sample.ids))
        first = len(sources)
        for at in (i for i in range(1, len(sample.ids)) if sample.mask[i]):
            sources.append(at - 1 if at - 1 < root else begin + at - 1 - root)
            targets.append(sample.ids[at])
        spans.append((first, len(sources)))
        blocks.append((begin, len(ids), root))
    return Pack(
        torch.tensor([ids]), torch.tensor([positions]), _mask(len(ids), len(shared), blocks),
        torch.tensor(sources), torch.tensor(targets), tuple(spans),
    )  # fmt: skip


def packs(samples: Sequence[Encoded], tokens: int) -> list[list[int]]:
    """Which samples go together, so that a row has about so many tokens: attention grows with its square."""
    found: list[list[int]] = []
    room = 0
    for index in sorted(range(len(samples)), key=lambda i: samples[i].ids[:64]):
        length = len(samples[index].ids)
        if not found or length > room:
            found.append([])
            room = tokens
        found[-1].append(index)
        room -= length
    return found


def _shared(samples: Sequence[Encoded]) -> tuple[int, ...]:
    """What most samples begin with: the beginning that the middle one in alphabetical order shares with a neighbour.
    Never anything that is learnt."""
    if len(samples) < 2:
        return ()
    ordered = sorted(samples, key=lambda s: s.ids)
    middle = len(ordered) // 2
    best: tuple[int, ...] = ()
    for a, b in ((ordered[middle - 1], ordered[middle]), (ordered[0], ordered[-1])):
        same = takewhile(
            lambda t: t[0] == t[1] and not t[2] and not t[3], zip(a.ids, b.ids, a.mask, b.mask, strict=False)
        )
        common = tuple(t[0] for t in same)
        if _saved(samples, common) > _saved(samples, best):
            best = common
    return best


def _saved(samples: Sequence[Encoded], root: tuple[int, ...]) -> int:
    return len(root) * (sum(s.ids[: len(root)] == root and len(s.ids) > len(root) for s in samples) - 1)


def _mask(length: int, shared: int, blocks: Sequence[tuple[int, int, int]]) -> Any:
    import torch

    mask = torch.zeros(length, length, dtype=torch.bool)
    mask[:shared, :shared] = torch.ones(shared, shared, dtype=torch.bool).tril()
    for begin, end, root in blocks:
        size = end - begin
        mask[begin:end, :root] = True
        mask[begin:end, begin:end] = torch.ones(size, size, dtype=torch.bool).tril()
    return mask[None, None]
