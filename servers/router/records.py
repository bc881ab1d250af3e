"""What is kept of every request, so that each decision can be explained afterwards. No text of prompt or answer."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()

WAITING_MAX: Final = 20_000
BATCH_MAX: Final = 500


@dataclass(slots=True)
class Tokens:
    """Tokens of a call or a request; `estimated` where a model server did not report them."""

    prompt: int = 0
    completion: int = 0
    estimated: bool = False


@dataclass(slots=True)
class Call:
    """One call to a model server. Times: Unix seconds and durations in seconds."""

    alias: str
    endpoint: str
    start: float
    role: str = "worker"
    prompt_version: str = ""
    model: str = ""
    adapter: str = ""
    latency_s: float = 0.0
    first_token_s: float | None = None
    http_status: int = 0
    usage: Tokens = field(default_factory=Tokens)
    cost_micros: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of answering that was considered. `rejected_because` is empty for the one taken."""

    strategy: str
    alias: str
    cost_micros: int
    quality: float | None = None
    latency_s: float | None = None
    rejected_because: str = ""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What another policy would have decided."""

    policy: str
    strategy: str
    chosen_model: str
    reason: str


@dataclass(slots=True)
class Record:
    """Everything that can be told about a request."""

    request_id: str
    created: float
    tenant: str
    session: str
    surface: str
    requested_model: str
    strategy: str = ""
    chosen_model: str = ""
    domain: str = ""
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()
    calls: list[Call] = field(default_factory=list)
    usage: Tokens = field(default_factory=Tokens)
    cost_micros: int = 0
    latency_s: float = 0.0
    first_token_s: float | None = None
    outcome: str = ""
    degraded: list[str] = field(default_factory=list)
    prompt_sha256: str = ""
    master_cost_micros: int | None = None
    trace_id: str = ""
    propensity: float = 1.0
    policy: str = ""
    shadow: Shadow | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """The record of what orjson made of one. Fields that a newer version added are left out."""
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        known["candidates"] = tuple(Candidate(**c) for c in known.get("candidates", ()))
        known["shadow"] = Shadow(**known["shadow"]) if known.get("shadow") else None
        known["usage"] = Tokens(**known.get("usage", {}))
        known["calls"] = [Call(**{**c, "usage": Tokens(**c["usage"])}) for c in known.get("calls", ())]
        return cls(**known)


class Store(Protocol):
    """Where records go; see ports.RecordStore."""

    async def append(self, records: list[Record]) -> None:
        """Stores a batch, or raises MeshError."""


class Recorder:
    """Gathers records and stores them in batches, off the path. Holds 20,000 at most; the oldest go first."""

    def __init__(self, store: Store, *, flush_s: float, on_drop: Callable[[int], None]) -> None:
        self._store, self._flush_s, self._on_drop = store, flush_s, on_drop
        self._waiting: deque[Record] = deque()
        self._arrived = asyncio.Event()

    def add(self, record: Record) -> None:
        """Takes a record; never waits."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self._on_drop(1)
        self._waiting.append(record)
        self._arrived.set()

    def find(self, request_id: str) -> Record | None:
        """A record that is not stored yet."""
        return next((r for r in self._waiting if r.request_id == request_id), None)

    async def flush(self) -> bool:
        """Stores what waits; True if nothing waits any more."""
        while self._waiting:
            batch = [self._waiting[i] for i in range(min(BATCH_MAX, len(self._waiting)))]
            try:
                await self._store.append(batch)
            except MeshError as error:
                _log.warning("records_wait", reason=error.reason, waiting=len(self._waiting))
                return False
            for record in batch:
                if self._waiting and self._waiting[0] is record:
                    self._waiting.popleft()
        return True

    async def run(self) -> None:
        """Stores for ever; after a failure it waits a second."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await asyncio.sleep(self._flush_s)
            if not await self.flush():
                await asyncio.sleep(1.0)
                self._arrived.set()
