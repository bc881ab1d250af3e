"""The AdapterRegistry as the Trainer sees it."""

from collections.abc import Collection, Sequence
from typing import Final

import grpc
import structlog

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.status import told_by_peer
from hivemind.servers.trainer.jobs import Job
from hivemind.servers.trainer.learner_folder import Outcome, Publication
from hivemind.servers.trainer.ports import Champion
from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import adapter_registry_pb2_grpc

_log = structlog.get_logger()

REGISTER_TIMEOUT_S: Final = 60.0
STATE_TIMEOUT_S: Final = 5.0
OUTCOMES_AT_ONCE: Final = 500
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.NOT_FOUND,
    }
)
"""What stays the same however often it is asked again; all else may pass."""


class RegistryClient:
    """Implements ports.Registry. `traffic`: the share that a new adapter begins to challenge with; 0: it only waits."""

    def __init__(self, channel: grpc.aio.Channel, *, api_key: str | None, traffic: float) -> None:
        self._stub, self._api_key = adapter_registry_pb2_grpc.AdapterRegistryServiceStub(channel), api_key
        self._traffic = traffic

    async def register(self, job: Job, path: str) -> str:
        """See ports.Registry."""
        return await self._register(job.order.role, path, parent="", key=f"train-{job.id}", shadow=False)

    async def publish(self, publication: Publication, path: str, *, shadow: bool) -> str:
        """See learner_keeper.Registry."""
        parent = publication.parent
        return await self._register(publication.role, path, parent=parent, key=publication.key, shadow=shadow)

    async def retire(self, role: str, adapter_id: str) -> None:
        """See learner_keeper.Registry."""
        key = f"retire-{adapter_id}"
        request = pb.SetTrafficRequest(role=role, adapter_id=adapter_id, traffic=0.0, idempotency_key=key)
        try:
            await self._stub.SetTraffic(request, timeout=STATE_TIMEOUT_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise _told(error) from error

    async def record(self, role: str, outcomes: Sequence[Outcome]) -> None:
        """See learner_keeper.Registry."""
        for begin in range(0, len(outcomes), OUTCOMES_AT_ONCE):
            found = (
                pb.Outcome(request_id=o.request_id, role=role, adapter_id=o.adapter_id, compared_with=o.compared_with,
                           score=o.score)
                for o in outcomes[begin : begin + OUTCOMES_AT_ONCE]
            )  # fmt: skip
            request = pb.RecordOutcomesRequest(outcomes=found)
            try:
                await self._stub.RecordOutcomes(request, timeout=STATE_TIMEOUT_S, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                raise _told(error) from error

    async def _register(self, role: str, path: str, *, parent: str, key: str, shadow: bool) -> str:
        request = pb.RegisterAdapterRequest(role=role, path=path, parent=parent, idempotency_key=key)
        try:
            adapter = await self._stub.RegisterAdapter(request, timeout=REGISTER_TIMEOUT_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise _told(error) from error
        if (self._traffic or shadow) and adapter.state == pb.Adapter.REGISTERED:
            await self._challenge(role, adapter.id, key=f"{key}-traffic", shadow=shadow)
        return adapter.id

    async def _challenge(self, role: str, adapter_id: str, *, key: str, shadow: bool) -> None:
        """Lets the adapter challenge; where the challengers have all that they may have, it waits for its turn."""
        traffic = 0.0 if shadow else self._traffic
        request = pb.SetTrafficRequest(
            role=role, adapter_id=adapter_id, traffic=traffic, shadow=shadow, idempotency_key=key
        )
        try:
            await self._stub.SetTraffic(request, timeout=STATE_TIMEOUT_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            told = _told(error)
            if told.reason == "PEER_UNAVAILABLE":
                raise told from error
            _log.info("challenge_waits", adapter=adapter_id, why=told.message)

    async def champion(self, role: str) -> Champion | None:
        """See ports.Registry."""
        name = (await self._state(role)).champion
        if not name:
            return None
        request = pb.GetAdapterRequest(id=name)
        try:
            adapter = await self._stub.GetAdapter(request, timeout=STATE_TIMEOUT_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise _told(error) from error
        return Champion(adapter.id, adapter.path)

    async def challengers(self, role: str) -> Collection[str]:
        """See learner_keeper.Registry."""
        return {c.adapter_id for c in (await self._state(role)).challenges}

    async def _state(self, role: str) -> pb.RoleState:
        try:
            state = await self._stub.GetState(pb.GetStateRequest(), timeout=STATE_TIMEOUT_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise _told(error) from error
        return next((r for r in state.roles if r.role == role), pb.RoleState())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return peer_metadata(self._api_key)


def _told(error: grpc.aio.AioRpcError) -> MeshError:
    """A refusal in the registry's words, or PEER_UNAVAILABLE for all that may pass."""
    told = told_by_peer(error, "the adapter registry")
    if error.code() in _REFUSALS:
        reason = told.reason if told.reason != "PEER_UNAVAILABLE" else "INTERNAL_ERROR"
        return MeshError(reason, error.details() or error.code().name)
    return MeshError("PEER_UNAVAILABLE", told.message, retry_after_s=1.0)
