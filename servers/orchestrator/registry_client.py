"""The AdapterRegistry as the loop sees it."""

from collections.abc import Sequence
from typing import Final, TypedDict

import grpc

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.status import asked
from hivemind.servers.orchestrator.ports import AdapterInfo, Promotion, RoleState
from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import adapter_registry_pb2_grpc as rpc

RPC_TIMEOUT_S: Final = 5.0
_PEER: Final = "the AdapterRegistry"
_NEWEST: Final = 20
_EVENTS: Final = 100
_SPLIT_BROKEN: Final = 1000.0
"""From this e-value on the registry does not believe that traffic is split as it should be (docs/adapters.md)."""


class _Options(TypedDict):
    timeout: float
    metadata: tuple[tuple[str, str], ...]


class RegistryClient:
    """Implements ports.Registry."""

    def __init__(self, channel: grpc.aio.Channel, *, api_key: str | None) -> None:
        self._stub, self._api_key = rpc.AdapterRegistryServiceStub(channel), api_key

    async def roles(self) -> Sequence[RoleState]:
        """See ports.Registry."""
        state = await asked(self._stub.GetState(pb.GetStateRequest(), **self._options()), _PEER)
        return [_role(r) for r in state.roles]

    async def adapter(self, adapter_id: str) -> AdapterInfo:
        """See ports.Registry."""
        return _adapter(
            await asked(self._stub.GetAdapter(pb.GetAdapterRequest(id=adapter_id), **self._options()), _PEER)
        )

    async def newest(self, role: str) -> Sequence[AdapterInfo]:
        """See ports.Registry."""
        request = pb.ListAdaptersRequest(role=role, page_size=_NEWEST)
        answer = await asked(self._stub.ListAdapters(request, **self._options()), _PEER)
        return [_adapter(a) for a in answer.adapters]

    async def promotions(self, role: str) -> Sequence[float]:
        """See ports.Registry."""
        events = await self._events(role)
        return [e.time.ToNanoseconds() / 1e9 for e in events if e.kind == pb.AdapterEvent.PROMOTED]

    async def traffic_changes(self, role: str, adapter_id: str) -> Sequence[float]:
        """See ports.Registry."""
        events = [e for e in await self._events(role) if e.kind == pb.AdapterEvent.TRAFFIC_CHANGED]
        return [e.time.ToNanoseconds() / 1e9 for e in events if e.adapter_id == adapter_id]

    async def preview(self, role: str, adapter_id: str) -> Promotion:
        """See ports.Registry."""
        request = pb.PreviewPromotionRequest(role=role, adapter_id=adapter_id)
        found = await asked(self._stub.PreviewPromotion(request, **self._options()), _PEER)
        verdict = pb.PreviewPromotionResponse.Verdict.Name(found.verdict)
        evidence = found.evidence
        return Promotion(
            found.adapter_id, verdict, found.reason, found.preview_hash, found.expected_champion,
            outcomes=max(evidence.requests, evidence.pairs),
            split_holds=evidence.sample_ratio_e_value < _SPLIT_BROKEN,
        )  # fmt: skip

    async def shadow(self, state: RoleState, adapter_id: str, *, token: int) -> None:
        """See ports.Registry."""
        request = pb.SetTrafficRequest(
            role=state.role, adapter_id=adapter_id, shadow=True, etag=state.etag, fencing_token=token,
            idempotency_key=f"shadow-{token}-{adapter_id}",
        )  # fmt: skip
        await asked(self._stub.SetTraffic(request, **self._options()), _PEER)

    async def give(self, state: RoleState, adapter_id: str, share: float, *, token: int) -> None:
        """See ports.Registry."""
        request = pb.SetTrafficRequest(
            role=state.role, adapter_id=adapter_id, traffic=share, etag=state.etag, fencing_token=token,
            idempotency_key=f"ramp-{token}-{adapter_id}-{state.etag}",
        )  # fmt: skip
        await asked(self._stub.SetTraffic(request, **self._options()), _PEER)

    async def promote(self, role: str, promotion: Promotion, *, token: int) -> None:
        """See ports.Registry."""
        request = pb.PromoteAdapterRequest(
            role=role, adapter_id=promotion.adapter, preview_hash=promotion.preview_hash,
            expected_champion=promotion.expected_champion, fencing_token=token,
            reason=f"automatic: {promotion.reason}", idempotency_key=f"promote-{token}-{promotion.preview_hash}",
        )  # fmt: skip
        await asked(self._stub.PromoteAdapter(request, **self._options()), _PEER)

    async def _events(self, role: str) -> Sequence[pb.AdapterEvent]:
        request = pb.ListEventsRequest(role=role, page_size=_EVENTS)
        return (await asked(self._stub.ListEvents(request, **self._options()), _PEER)).events

    def _options(self) -> _Options:
        return {"timeout": RPC_TIMEOUT_S, "metadata": peer_metadata(self._api_key)}


def _role(message: pb.RoleState) -> RoleState:
    challenges = message.challenges
    return RoleState(
        message.role, message.champion, message.etag, tuple(c.adapter_id for c in challenges),
        {c.adapter_id: c.traffic for c in challenges},
    )  # fmt: skip


def _adapter(message: pb.Adapter) -> AdapterInfo:
    return AdapterInfo(
        id=message.id, state=pb.Adapter.State.Name(message.state), evaluation=tuple(message.evaluation.items()),
        first_sequence=message.first_sequence, last_sequence=message.last_sequence,
        created=message.create_time.ToNanoseconds() / 1e9,
    )  # fmt: skip
