"""The Governor as the loop sees it."""

from typing import Final

import grpc

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.status import asked
from hivemind.servers.orchestrator.ports import Money
from hivemind.v1 import common_pb2, governor_pb2, governor_pb2_grpc

RPC_TIMEOUT_S: Final = 2.0
_PEER: Final = "the Governor"


class GovernorClient:
    """Implements ports.Governor."""

    def __init__(self, channel: grpc.aio.Channel, *, api_key: str | None) -> None:
        self._stub, self._api_key = governor_pb2_grpc.GovernorServiceStub(channel), api_key

    async def refinement(self) -> Money:
        """See ports.Governor. What is left is that of the tightest budget for refinement."""
        metadata = peer_metadata(self._api_key)
        config = await asked(
            self._stub.GetConfig(governor_pb2.GetConfigRequest(), timeout=RPC_TIMEOUT_S, metadata=metadata), _PEER
        )
        spend = await asked(
            self._stub.GetSpend(governor_pb2.GetSpendRequest(), timeout=RPC_TIMEOUT_S, metadata=metadata), _PEER
        )
        left = [b.remaining_micros for b in spend.budgets if b.budget.purpose == common_pb2.REFINEMENT]
        enabled = config.enabled and (config.enable_oracle_refinement or config.force_gpt4o_arbiter)
        return Money(enabled, min(left, default=None))
