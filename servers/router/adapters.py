"""Which adapter answers: the one that was named, else champion or challenger by the role's split; never on a replica
that lacks it. Pure; the AdapterRegistry pushes the state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hivemind.servers.common.assignment import Split, assign
from hivemind.servers.common.catalogue import Endpoint, Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.request import Request

LOADS_ON_DEMAND: Final = ("embedded", "lorax")
"""Kinds of model servers that load an adapter when a request names it."""
BASE: Final = "base"
"""`<alias>:base` asks for the model without any adapter."""


@dataclass(frozen=True, slots=True)
class RoleAdapters:
    """What the registry says of a role. `held`: what each replica of the model servers holds, by its address."""

    split: Split
    shadows: tuple[str, ...] = ()
    registered: tuple[str, ...] = ()
    held: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def tried(self) -> tuple[str, ...]:
        """Whose answers are held against the champion's in the background: shadows, and challengers with traffic, of
        whom the split alone would never tell which answer was better."""
        return (*self.shadows, *self.split.challengers)

    def standing(self, adapter: str) -> str:
        """What an adapter is in its role, and on how many replicas."""
        share = self.split.challengers.get(adapter)
        kind = "champion" if adapter == self.split.champion else "shadow" if adapter in self.shadows else "registered"
        named = kind if share is None else f"challenger with {share:.0%} of the traffic"
        return f"{named}; held by {sum(adapter in held for held in self.held.values())} replicas"


@dataclass(frozen=True, slots=True)
class Choice:
    """An adapter ('': the base model) and the endpoints that can answer with it.

    `unit`: what the split assigned it by, empty where the split did not choose; `note`: what was missing.
    """

    adapter: str
    endpoints: Sequence[Endpoint]
    unit: str = ""
    note: str = ""


def answered_with(asked: str, told: str) -> str:
    """The adapter that answered, by what was asked for and what the server says in `x-adapter-id`; LoRAX says the
    directory."""
    return asked if not told or (asked and told.endswith(directory_of(asked))) else told


def directory_of(adapter: str) -> str:
    """Where a version lies below the adapters' folder: `<role>-v000001` in `<role>/v000001`."""
    role, _, version = adapter.rpartition("-")
    return f"{role}/{version}"


class AdapterBook:
    """The state of all roles, replaced whole. `folder`: the adapters' folder, as the model servers see it."""

    def __init__(self, folder: Path = Path("adapters")) -> None:
        self._roles: Mapping[str, RoleAdapters] = {}
        self._folder = folder

    def name_at(self, model: Model, endpoint: Endpoint, adapter: str) -> str:
        """What an endpoint is asked for: the adapter, by its directory at LoRAX, or else the endpoint's own model."""
        if not adapter:
            return endpoint.model
        return str(self._folder / directory_of(adapter)) if model.adapters == "lorax" else adapter

    def replace(self, roles: Mapping[str, RoleAdapters]) -> None:
        """Puts a new state in force."""
        self._roles = roles

    def role(self, name: str) -> RoleAdapters | None:
        """The state of a role, None where the registry knows nothing of it."""
        return self._roles.get(name)

    def registered(self, role: str) -> tuple[str, ...]:
        """Every adapter of a role, newest first."""
        found = self._roles.get(role)
        return found.registered if found is not None else ()

    def choose(self, model: Model, request: Request, endpoints: Sequence[Endpoint]) -> Choice:
        """The adapter for a request, and which of these endpoints can answer with it.

        MeshError UPSTREAM_FAILED where an adapter was named that no replica holds.
        """
        role = self._roles.get(model.role)
        named = request.adapter
        if role is None or named == BASE:
            return Choice("", endpoints)
        if named:
            holding = _holding(role, named, endpoints)
            if not holding and model.adapters in LOADS_ON_DEMAND:
                return Choice(named, endpoints)
            if not holding:
                raise MeshError("UPSTREAM_FAILED", f"no replica of {model.alias} holds {named} at present")
            return Choice(named, holding)
        unit = request.session or request.request_id
        wanted = assign(role.split, experiment=role.split.experiment, unit=unit)
        return _first_held(role, wanted, unit, endpoints)


def _first_held(role: RoleAdapters, wanted: str, unit: str, endpoints: Sequence[Endpoint]) -> Choice:
    """The adapter that the split chose, else the champion, else the base model."""
    if not wanted or (holding := _holding(role, wanted, endpoints)):
        return Choice(wanted, holding if wanted else endpoints, unit)
    champion = role.split.champion
    holding = _holding(role, champion, endpoints) if champion not in ("", wanted) else []
    served = champion if holding else ""
    note = f"no replica holds {wanted} at present; {served or 'the base model'} answered"
    return Choice(served, holding or endpoints, "", note)


def _holding(role: RoleAdapters, adapter: str, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    return [e for e in endpoints if adapter in role.held.get(e.host, ())]
