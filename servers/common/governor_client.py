"""The Governor as other servers see it: a snapshot pushed by WatchConfig, and reservations by RPC."""

import socket
from typing import Final, Protocol

import grpc
import structlog

from hivemind.servers.common.channels import follow, peer_metadata
from hivemind.servers.common.spend import ReservationGrant, Settlement
from hivemind.servers.common.status import asked
from hivemind.v1 import common_pb2, governor_pb2, governor_pb2_grpc

_log = structlog.get_logger()

RPC_TIMEOUT_S: Final = 2.0
RESERVATION_TTL_S: Final = 60


class Follower(Protocol):
    """Who is told of the Governor's configuration."""

    def take(self, message: governor_pb2.WatchConfigResponse) -> None:
        """Puts a new configuration in force."""

    def lost(self) -> None:
        """The Governor no longer tells of changes: what was known may be out of date."""


class GovernorClient:
    """Implements spend.Keeper for one purpose of money, and keeps a follower up to date.

    `server`: the name of the one that asks (`router`, `arbiter`); the Governor shows it with what is reserved.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        follower: Follower,
        *,
        server: str,
        purpose: "common_pb2.Purpose.ValueType",
        api_key: str | None,
    ) -> None:
        self._stub = governor_pb2_grpc.GovernorServiceStub(channel)
        self._follower, self._server, self._purpose, self._api_key = follower, server, purpose, api_key
        self._holder = f"{server}@{socket.gethostname()}"

    async def reserve(self, tenant: str, *, min_micros: int, wanted_micros: int) -> ReservationGrant:
        """See spend.Keeper."""
        request = governor_pb2.ReserveBudgetRequest(
            tenant=tenant,
            min_micros=min_micros,
            wanted_micros=wanted_micros,
            purpose=self._purpose,
            on_expiry=governor_pb2.ReserveBudgetRequest.CHARGE,
            holder=self._holder,
        )
        request.ttl.FromSeconds(RESERVATION_TTL_S)
        grant = await asked(
            self._stub.ReserveBudget(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Governor"
        )
        ttl_s = grant.ttl.ToMilliseconds() / 1000
        return ReservationGrant(grant.reservation_id, grant.granted_micros, ttl_s, grant.unlimited)

    async def settle(self, settlement: Settlement) -> frozenset[str]:
        """See spend.Keeper."""
        request = governor_pb2.SettleBudgetRequest(idempotency_key=settlement.key)
        for item in settlement.items:
            request.items.add(
                tenant=item.tenant,
                model=item.alias,
                purpose=self._purpose,
                cost_micros=item.cost_micros,
                requests=item.requests,
                prompt_tokens=item.prompt_tokens,
                completion_tokens=item.completion_tokens,
                master_cost_micros=item.master_cost_micros,
            )
        for update in settlement.updates:
            request.reservations.add(
                reservation_id=update.reservation_id, spent_micros=update.spent_micros, close=update.close
            )
        answer = await asked(
            self._stub.SettleBudget(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Governor"
        )
        return frozenset(answer.closed_reservations)

    async def watch(self) -> None:
        """Follows the configuration for ever; a lost stream is opened again, the last word holds meanwhile."""
        request = governor_pb2.WatchConfigRequest(watcher=self._server)
        await follow(
            "governor",
            lambda: self._stub.WatchConfig(request, metadata=self._metadata(), wait_for_ready=True),
            self._follower.take,
            self._follower.lost,
        )

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return peer_metadata(self._api_key)
