"""Makes every replica of the model servers hold the adapters that the state names.

A replica is asked what it holds on every look, and what it said is what the state shows: one that has restarted empty
is seen within a look, gets no traffic for what it lacks, and is loaded again.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from hivemind.servers.adapter_registry.adapter_servers.port import Adapter, AdapterServer, AdapterServerError
from hivemind.servers.adapter_registry.ports import ReplicaState

_log = structlog.get_logger()

_BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
_UNWANTED_S: Final = 60.0
"""How long an adapter stays after the state has ceased to name it: requests under way, and a rollback."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two looks at a replica that says what it holds, and at one that must be probed with a token."""

    look_s: float = 2.0
    probe_s: float = 15.0


@dataclass(slots=True)
class _Failures:
    count: int = 0
    again_at: float = 0.0
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Replica:
    role: str
    server: AdapterServer
    state: ReplicaState
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    failures: dict[str, _Failures] = field(default_factory=dict)
    unwanted_since: dict[str, float] = field(default_factory=dict)


class Reconciler:
    """Looks after replicas. Implements ports.ReplicaView.

    `wanted`: the adapters of a role with their directories, the champion first; `on_change` hears the role whenever the
    state of one of its replicas is another than before; `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        wanted: Callable[[str], Mapping[str, str]],
        servers: Mapping[str, Sequence[AdapterServer]],
        *,
        clock: Callable[[], float],
        on_change: Callable[[str], None],
        pace: Pace = Pace(),
    ) -> None:
        self._wanted, self._clock, self._on_change, self._pace = wanted, clock, on_change, pace
        self._replicas: list[_Replica] = []
        self._dropped: list[AdapterServer] = []
        self._replaced = asyncio.Event()
        self.replace(servers)

    def replace(self, servers: Mapping[str, Sequence[AdapterServer]]) -> None:
        """Puts other servers in force. One that is there already, by role, kind and endpoint, goes on as it is: nobody
        forgets what it holds."""
        kept: list[_Replica] = []
        for role, of_role in servers.items():
            for server in of_role:
                known = next((r for r in self._replicas if _same(r, role, server) and r not in kept), None)
                if known is not None:
                    self._dropped.append(server)
                kept.append(known or _Replica(role, server, ReplicaState(server.address, (), False, "not asked yet")))
        left = [replica for replica in self._replicas if replica not in kept]
        self._replicas = kept
        self._replaced.set()
        for role in {replica.role for replica in left}:
            self._on_change(role)

    def replicas(self, role: str) -> tuple[ReplicaState, ...]:
        """The replicas that serve a role, as last asked; never waits."""
        return tuple(replica.state for replica in self._replicas if replica.role == role)

    def wake(self) -> None:
        """The state has changed: look now."""
        for replica in self._replicas:
            replica.wake.set()

    async def run(self) -> None:
        """Looks after all replicas, each at its own pace, until it is cancelled."""
        tasks: dict[_Replica, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._replaced.clear()
                    for replica in self._replicas:
                        if replica not in tasks:
                            tasks[replica] = group.create_task(self._look_after(replica))
                    for replica in [r for r in tasks if r not in self._replicas]:
                        tasks.pop(replica).cancel()
                        self._dropped.append(replica.server)
                    await self._close_dropped()
                    await self._replaced.wait()
        finally:
            self._dropped += [replica.server for replica in {*tasks, *self._replicas}]
            await self._close_dropped()

    async def _close_dropped(self) -> None:
        dropped, self._dropped = self._dropped, []
        for server in dropped:
            await server.close()

    async def _look_after(self, replica: _Replica) -> None:
        while True:
            replica.wake.clear()
            await self.look(replica)
            pause = self._pace.look_s if replica.server.capabilities.lists else self._pace.probe_s
            try:
                async with asyncio.timeout(pause):
                    await replica.wake.wait()
            except TimeoutError:
                continue

    async def look(self, replica: _Replica) -> None:
        """Asks one replica what it holds, loads what it lacks, and takes away what nobody wants."""
        try:
            if not await replica.server.health():
                raise AdapterServerError("says that it is not ready")
            held = list(await replica.server.list())
        except AdapterServerError as error:
            replica.failures.clear()  # when it is back, it begins anew
            self._publish(replica, (), str(error), healthy=False)
            return
        wanted = self._wanted(replica.role)
        told = replica.server.capabilities.lists
        for adapter_id, directory in wanted.items():
            if told:  # a probe's answers count together, at the end
                self._note(replica, held, wanted)
            if adapter_id not in held and await self._load(replica, Adapter(adapter_id, directory)):
                held.append(adapter_id)
        for adapter_id in self._to_retire(replica, held, wanted):
            if await self._retired(replica, adapter_id):
                held.remove(adapter_id)
        self._note(replica, held, wanted)

    async def _load(self, replica: _Replica, adapter: Adapter) -> bool:
        failures = replica.failures.setdefault(adapter.id, _Failures())
        if self._clock() < failures.again_at:
            return False
        try:
            await replica.server.ensure(adapter)
        except AdapterServerError as error:
            pause = _BACKOFF_S[min(failures.count, len(_BACKOFF_S) - 1)]
            failures.count, failures.again_at, failures.reason = failures.count + 1, self._clock() + pause, str(error)
            _log.warning("adapter_not_loaded", adapter=adapter.id, replica=replica.server.address, reason=str(error))
            return False
        del replica.failures[adapter.id]
        _log.info("adapter_loaded", adapter=adapter.id, replica=replica.server.address)
        return True

    def _to_retire(self, replica: _Replica, held: Sequence[str], wanted: Mapping[str, str]) -> list[str]:
        """What a server that makes no room by itself has held unwanted for long enough. Names that are not versions of
        this role are the operator's own."""
        if replica.server.capabilities.on_demand:
            return []
        ours = re.compile(re.escape(replica.role) + r"-v\d+")
        unwanted = [name for name in held if name not in wanted and ours.fullmatch(name)]
        now = self._clock()
        replica.unwanted_since = {name: replica.unwanted_since.get(name, now) for name in unwanted}
        return [name for name, since in replica.unwanted_since.items() if now - since >= _UNWANTED_S]

    async def _retired(self, replica: _Replica, adapter_id: str) -> bool:
        try:
            await replica.server.retire(adapter_id)
        except AdapterServerError as error:
            _log.warning("adapter_not_retired", adapter=adapter_id, replica=replica.server.address, reason=str(error))
            return False
        return True

    def _note(self, replica: _Replica, held: Sequence[str], wanted: Mapping[str, str]) -> None:
        lacking = [name for name in wanted if name not in held]
        reasons = [f"{name}: {replica.failures[name].reason}" for name in lacking if name in replica.failures]
        waiting = [f"{name}: is being loaded" for name in lacking if name not in replica.failures]
        self._publish(replica, tuple(sorted(held)), "; ".join([*reasons, *waiting]), healthy=True)

    def _publish(self, replica: _Replica, held: tuple[str, ...], note: str, *, healthy: bool) -> None:
        state = ReplicaState(replica.server.address, held, healthy, note)
        if state != replica.state:
            replica.state = state
            self._on_change(replica.role)


def _same(replica: _Replica, role: str, server: AdapterServer) -> bool:
    return replica.role == role and type(replica.server) is type(server) and replica.server.endpoint == server.endpoint
