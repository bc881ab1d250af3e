"""Registered adapters: what is known of a version, which never changes, and where it stands, which does."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hivemind.servers.adapter_registry.roles import Mark, Role

State = Literal["REGISTERED", "SHADOW", "CHALLENGER", "CHAMPION", "RETIRED", "REJECTED"]
_ID: Final = re.compile(r"([a-z0-9._-]+)-v(\d{6,})")


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """A version of an adapter. `path` is relative to the adapters' folder, `create_time` Unix seconds, `order` its
    place among all that were registered; `digest` names weights and configuration together."""

    id: str
    role: str
    path: str
    base_model: str
    base_revision: str
    rank: int
    sha256: str
    size_bytes: int
    digest: str
    create_time: float
    parent: str = ""
    first_sequence: int = 0
    last_sequence: int = 0
    data_licence: str = ""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    order: int = 0


@dataclass(frozen=True, slots=True)
class AdapterView:
    """An adapter and where it stands."""

    record: AdapterRecord
    state: State


def version_id(role: str, number: int) -> str:
    """`<role>-v000123`."""
    return f"{role}-v{number:06d}"


def role_of(adapter_id: str) -> str | None:
    """The role in an adapter's id; None if it is no such id."""
    found = _ID.fullmatch(adapter_id)
    return found[1] if found is not None else None


def view(record: AdapterRecord, role: Role, mark: Mark) -> AdapterView:
    """Where an adapter stands in its role."""
    challenge = role.challenge(record.id)
    if record.id == role.champion:
        return AdapterView(record, "CHAMPION")
    if challenge is not None:
        return AdapterView(record, "SHADOW" if challenge.shadow else "CHALLENGER")
    return AdapterView(record, mark or "REGISTERED")
