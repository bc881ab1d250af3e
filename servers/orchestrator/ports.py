"""What the orchestrator's core needs from outside. Methods of peers and stores may raise MeshError."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hivemind.servers.orchestrator.cognitive_map import CognitiveMap, LedgerPart, ToldPart
from hivemind.servers.orchestrator.cycle import Cycle, Result


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a client (`FEEDBACK`) or the Judge (`JUDGE`) thought of one answer, as a score in [0,1]."""

    when: float
    tenant: str
    domain: str
    source: Literal["FEEDBACK", "JUDGE"]
    alias: str
    adapter: str
    score: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A recent request. `master_cost_micros`: what it would have cost at master, None where that is not known."""

    domain: str
    cost_micros: int
    master_cost_micros: int | None


class Router(Protocol):
    """The Router."""

    async def opinions(self, place: str) -> tuple[Sequence[Opinion], str]:
        """The next opinions behind a place, oldest first, and the place behind them."""

    async def recent(self) -> Sequence[Answered]:
        """The latest requests that were answered, a few hundred at the most."""

    async def nominate(self, domain: str, count: int, value: float, *, token: int, key: str) -> Sequence[str]:
        """Nominates recent answers of a domain for refinement; the ids of those that were."""


@dataclass(frozen=True, slots=True)
class RoleState:
    """A role as the registry has it. `challengers`: adapters that challenge or shadow, newest state first; `shares`:
    what they have of the traffic, in [0,1]."""

    role: str
    champion: str
    etag: str
    challengers: tuple[str, ...]
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter: its state by name, its evaluation, the platinum it has learnt from, when it was made."""

    id: str
    state: str
    evaluation: tuple[tuple[str, float], ...]
    first_sequence: int
    last_sequence: int
    created: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a preview says: the verdict (PROMOTE, HOLD, ROLLBACK), and what a promotion has to name. `outcomes`: answers
    or pairs of the adapter that were seen; `split_holds`: whether traffic is split as it should be."""

    adapter: str
    verdict: str
    reason: str
    preview_hash: str
    expected_champion: str
    outcomes: int = 0
    split_holds: bool = True


class Registry(Protocol):
    """The AdapterRegistry."""

    async def roles(self) -> Sequence[RoleState]:
        """All roles."""

    async def adapter(self, adapter_id: str) -> AdapterInfo:
        """One adapter."""

    async def newest(self, role: str) -> Sequence[AdapterInfo]:
        """The newest adapters of a role, newest first."""

    async def promotions(self, role: str) -> Sequence[float]:
        """When the latest promotions of a role were, Unix seconds, newest first."""

    async def traffic_changes(self, role: str, adapter_id: str) -> Sequence[float]:
        """When an adapter's traffic was changed lately, Unix seconds, newest first."""

    async def preview(self, role: str, adapter_id: str) -> Promotion:
        """What promoting would do."""

    async def shadow(self, state: RoleState, adapter_id: str, *, token: int) -> None:
        """Has an adapter answer in the background, if the role still is as it was."""

    async def give(self, state: RoleState, adapter_id: str, share: float, *, token: int) -> None:
        """Gives a challenger a share of the traffic, if the role still is as it was."""

    async def promote(self, role: str, promotion: Promotion, *, token: int) -> None:
        """Makes an adapter champion by its preview."""


@dataclass(frozen=True, slots=True)
class Policy:
    """For which roles the loop may act, the time between two promotions, or two changes of an adapter's traffic, in
    seconds, and how many promotions there may be a day."""

    roles: frozenset[str]
    cooldown_s: float
    max_per_day: int


@dataclass(frozen=True, slots=True)
class LearnerNews:
    """Where the online learner stands: its state by name, why, and its counts so far."""

    state: str
    note: str
    waiting: int
    learnt: int
    published: int
    refused: int
    adapter_id: str


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A training job: its state by name, whether that is its last, and the last platinum sequence it learnt from."""

    id: str
    state: str
    last_sequence: int
    error: str
    final: bool


class Trainer(Protocol):
    """The Trainer."""

    async def learner(self) -> LearnerNews:
        """How the online learner stands."""

    async def drain(self, token: int) -> LearnerNews:
        """Has the online learner close its open batch; how it stands."""

    async def jobs(self, role: str) -> Sequence[JobInfo]:
        """The latest jobs of a role, newest first."""

    async def start(self, role: str, *, key: str, token: int) -> JobInfo:
        """Queues a job on the ledger and the default mixture; the same key has one effect. NO_TRAINING_DATA."""


@dataclass(frozen=True, slots=True)
class Money:
    """Whether anything may be refined, and what is left for it in micro-USD; None: no limit."""

    enabled: bool
    left_micros: int | None


class Governor(Protocol):
    """The Governor."""

    async def refinement(self) -> Money:
        """What may be spent on refinement."""


class OnlineUpdates(Protocol):
    """Whoever has learnt from platinum and can publish what came of it."""

    async def publish(self, *, token: int) -> Result:
        """Publishes updates that wait and pass their gate."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A cycle that RunCycle asked for: only these steps, none named: all. `raw`: as it lies in the store."""

    id: str
    steps: tuple[str, ...]
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the leader does. `next_cycle`: Unix seconds."""

    leader: str
    token: int
    step: str
    next_cycle: float


class Store(Protocol):
    """Where the loop's state lies. Writes that name a token are refused by STALE_FENCING_TOKEN under a newer leader."""

    async def pause(self, *, paused: bool, reason: str, idempotency_key: str) -> None:
        """Pauses the loop or lets it go on."""

    async def paused(self) -> str | None:
        """Why the loop is paused; None: it is not."""

    async def wish(self, wish: Wish, *, idempotency_key: str) -> str:
        """Asks the leader for a cycle; the id under which it will be found."""

    async def next_wish(self) -> Wish | None:
        """The oldest wish that was not carried out."""

    async def ran(self, wish_id: str) -> Cycle | None:
        """The cycle of a wish, None if it has not ended."""

    async def progress(self) -> Progress | None:
        """What the leader does; None: nobody leads."""

    async def show(self, token: int, step: str, next_cycle: float) -> None:
        """Says what the leader does."""

    async def record(self, cycle: Cycle, wish: Wish | None) -> None:
        """Adds a cycle that has ended to the history, under its token, and carries its wish out."""

    async def cycles(self, count: int, before: str = "") -> tuple[Sequence[Cycle], str]:
        """Cycles, newest first, and the place behind them; empty: no more."""

    async def shared_map(self) -> CognitiveMap | None:
        """The map that all replicas show."""

    async def told(self) -> ToldPart | None:
        """What Routers and registry told so far."""

    async def share(self, found: CognitiveMap, told: ToldPart, *, token: int) -> None:
        """Puts a new map in force."""


class MapFile(Protocol):
    """Where the map lies for good, with how far the ledger went into it. Methods may raise OSError."""

    def load(self) -> LedgerPart | None:
        """The ledger's part; None where there is none that can be used."""

    def save(self, found: CognitiveMap, part: LedgerPart, *, token: int) -> None:
        """Writes both, all or nothing; STALE_FENCING_TOKEN where a newer leader has written."""


class SkillMirror(Protocol):
    """A database that is told every map."""

    async def write(self, found: CognitiveMap, *, token: int) -> None:
        """Writes it; MeshError if it cannot."""
