"""The Router as the loop sees it."""

from collections.abc import Sequence
from typing import Final

import grpc

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.status import asked
from hivemind.servers.orchestrator.ports import Answered, Opinion
from hivemind.v1 import router_pb2, router_pb2_grpc

RPC_TIMEOUT_S: Final = 5.0
LOOKED_AT: Final = 500
"""How many of the latest requests tell what traffic there is."""


class RouterClient:
    """Implements ports.Router."""

    def __init__(self, channel: grpc.aio.Channel, *, api_key: str | None) -> None:
        self._stub, self._api_key = router_pb2_grpc.RouterServiceStub(channel), api_key

    async def opinions(self, place: str) -> tuple[Sequence[Opinion], str]:
        """See ports.Router."""
        request = router_pb2.ListOpinionsRequest(page_size=LOOKED_AT, page_token=place)
        answer = await asked(
            self._stub.ListOpinions(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Router"
        )
        return [_opinion(o) for o in answer.opinions], answer.next_page_token

    async def recent(self) -> Sequence[Answered]:
        """See ports.Router."""
        request = router_pb2.ListRequestsRequest(page_size=LOOKED_AT)
        answer = await asked(
            self._stub.ListRequests(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Router"
        )
        return [_answered(r) for r in answer.requests if r.outcome == "OK" and r.calls]

    async def nominate(self, domain: str, count: int, value: float, *, token: int, key: str) -> Sequence[str]:
        """See ports.Router."""
        request = router_pb2.NominateRequestsRequest(
            domain=domain, count=count, value=value, fencing_token=token, idempotency_key=key
        )
        answer = await asked(
            self._stub.NominateRequests(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Router"
        )
        return list(answer.request_ids)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return peer_metadata(self._api_key)


def _opinion(message: router_pb2.Opinion) -> Opinion:
    return Opinion(
        when=message.time.ToNanoseconds() / 1e9, tenant=message.tenant, domain=message.domain,
        source="JUDGE" if message.source == router_pb2.Opinion.JUDGE else "FEEDBACK",
        alias=message.alias, adapter=message.adapter, score=min(1.0, max(0.0, message.score)),
    )  # fmt: skip


def _answered(record: router_pb2.RequestRecord) -> Answered:
    master = record.master_cost_micros if record.HasField("master_cost_micros") else None
    return Answered(record.decision.domain, record.cost_micros, master)
