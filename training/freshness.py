"""How long it takes from a closed batch of the online learner until every replica holds what came of it. Pure.

The registry's reconciler loads; here it is only watched. A replica that does not answer serves nobody and is not waited
for. A later version has learnt what an earlier one has, so it serves the earlier one's batch too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PENDING_MAX: Final = 100
_WATCHED_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica of a model server, as the registry sees it. `note`: what it lacks and why."""

    address: str
    healthy: bool
    adapters: frozenset[str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Publication:
    """What the learner published. `closed`: when the first batch that it answers to was closed, Unix seconds; None: it
    answers to no new one."""

    adapter_id: str
    closed: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """A publication that every replica serves, `by` itself or a later one, so many seconds after its batch closed."""

    adapter_id: str
    by: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Late:
    """A publication that takes too long. `lacking`: the replicas without it, each with its note."""

    adapter_id: str
    seconds: float
    lacking: tuple[str, ...]


class Freshness:
    """Follows the publications of one role. Times are Unix seconds, so that another machine's can be compared."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._replicas: Sequence[Replica] = ()
        self._held: dict[str, float] = {}
        self._pending: list[Publication] = []
        self._newest: str | None = None
        self._warned: set[str] = set()

    def hold(self, replicas: Sequence[Replica], adapters: Sequence[str], now: float) -> list[Served]:
        """Takes what the replicas hold; `adapters`: those of the role, newest first. What is served by that."""
        self._replicas = replicas
        watched = adapters[:_WATCHED_MAX]
        self._held = {a: t for a, t in self._held.items() if a in watched}
        serving = [r.adapters for r in replicas if r.healthy]
        if serving:
            for adapter in watched:
                if all(adapter in held for held in serving):
                    self._held.setdefault(adapter, now)
        return self._served()

    def publish(self, latest: Publication | None) -> list[Served]:
        """Takes what the learner says it published last. What it had published before it was first asked was served
        at a time that nobody has seen, and does not count."""
        name = latest.adapter_id if latest is not None else ""
        known, self._newest = self._newest, name or self._newest or ""
        if latest is not None and known is not None and name != known:
            self._pending = [*self._pending, latest][-PENDING_MAX:]
        return self._served()

    def late(self, now: float) -> list[Late]:
        """Publications past the limit, each told once."""
        ages = {p.adapter_id: now - p.closed for p in self._pending if p.closed is not None}
        late = {adapter: age for adapter, age in ages.items() if age > self._limit_s}
        known, self._warned = self._warned, set(late)
        return [Late(adapter, age, self._lacking(adapter)) for adapter, age in late.items() if adapter not in known]

    def _lacking(self, adapter_id: str) -> tuple[str, ...]:
        without = [r for r in self._replicas if not r.healthy or adapter_id not in r.adapters]
        if not self._replicas:
            return ("no replica of a model server is known",)
        return tuple(f"{r.address}: {r.note or 'lacks it'}" for r in without)

    def _served(self) -> list[Served]:
        """All up to the latest that is held, each by the first one from it on that is."""
        found: list[Served] = []
        by: str | None = None
        left: list[Publication] = []
        for publication in reversed(self._pending):
            if publication.adapter_id in self._held:
                by = publication.adapter_id
            if by is None:
                left.append(publication)
            elif publication.closed is not None:
                found.append(Served(publication.adapter_id, by, max(0.0, self._held[by] - publication.closed)))
        self._pending = left[::-1]
        return found[::-1]
