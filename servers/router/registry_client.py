"""The AdapterRegistry as the Router sees it: the state of all roles, pushed by WatchState, and evidence by RPC."""

from collections.abc import Sequence
from typing import Final

import grpc
import orjson
import structlog

from hivemind.servers.common.assignment import Split
from hivemind.servers.common.channels import follow, peer_metadata
from hivemind.servers.common.status import asked
from hivemind.servers.router.adapters import AdapterBook, RoleAdapters
from hivemind.servers.router.outbox import Letter
from hivemind.servers.router.outcomes import Outcome
from hivemind.v1 import adapter_registry_pb2, adapter_registry_pb2_grpc

_log = structlog.get_logger()

RPC_TIMEOUT_S: Final = 5.0


class RegistryClient:
    """Keeps an AdapterBook up to date, and hands outcomes over."""

    def __init__(self, channel: grpc.aio.Channel, book: AdapterBook, *, api_key: str | None) -> None:
        self._stub = adapter_registry_pb2_grpc.AdapterRegistryServiceStub(channel)
        self._book, self._api_key = book, api_key

    async def watch(self) -> None:
        """Follows the state for ever; a lost stream is opened again, the last word holds meanwhile."""
        request = adapter_registry_pb2.WatchStateRequest(watcher="router")
        await follow(
            "registry",
            lambda: self._stub.WatchState(request, metadata=peer_metadata(self._api_key), wait_for_ready=True),
            lambda message: self._book.replace({role.role: _adapters(role) for role in message.state.roles}),
        )

    async def deliver(self, letters: Sequence[Letter]) -> None:
        """Hands outcomes over, at least once: the registry counts each once. MeshError if it cannot take them."""
        outcomes = [_outcome(Outcome(**orjson.loads(letter.text))) for letter in letters]
        request = adapter_registry_pb2.RecordOutcomesRequest(outcomes=outcomes)
        await asked(
            self._stub.RecordOutcomes(request, timeout=RPC_TIMEOUT_S, metadata=peer_metadata(self._api_key)),
            "the AdapterRegistry",
        )


def _adapters(state: adapter_registry_pb2.RoleState) -> RoleAdapters:
    challengers = {c.adapter_id: c.traffic for c in state.challenges if c.traffic > 0}
    return RoleAdapters(
        split=Split(state.role, state.champion, challengers),
        shadows=tuple(c.adapter_id for c in state.challenges if c.shadow),
        registered=tuple(state.adapters),
        held={r.address: frozenset(r.adapters) for r in state.replicas if r.healthy},
    )


def _outcome(outcome: Outcome) -> adapter_registry_pb2.Outcome:
    message = adapter_registry_pb2.Outcome(
        request_id=outcome.request_id, role=outcome.role, adapter_id=outcome.adapter_id,
        cost_micros=outcome.cost_micros, failed=outcome.failed, unit=outcome.unit,
        compared_with=outcome.compared_with, score=outcome.score, rating=outcome.rating,
    )  # fmt: skip
    if outcome.latency_s is not None:
        message.latency.FromNanoseconds(int(outcome.latency_s * 1e9))
    return message
