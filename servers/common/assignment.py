"""Which adapter answers a request: a share of the traffic for each challenger, and always the same for the same unit.
Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_RANGE: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Split:
    """How a role's traffic is split. `champion`: '' is the base model; `challengers`: the share of each, in the order
    in which they came; the champion gets the rest."""

    role: str
    champion: str
    challengers: Mapping[str, float]

    @property
    def experiment(self) -> str:
        """Names what is tried: a new champion shuffles the units anew, a new share does not."""
        return self.champion or "base"


def assign(split: Split, *, experiment: str, unit: str) -> str:
    """The adapter for a unit (session, user or request), '' for the base model.

    SHA-256 of role, experiment and unit, as a number in [0, 1), falls into the challengers' intervals one after the
    other or else to the champion. As a share grows, who had that challenger keeps it; only the challengers behind it
    shift.
    """
    name = "\0".join((split.role, experiment, unit)).encode()
    place = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / _RANGE
    end = 0.0
    for adapter, share in split.challengers.items():
        end += share
        if place < end:
            return adapter
    return split.champion
