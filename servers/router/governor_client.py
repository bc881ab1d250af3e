"""The Governor as the Router sees it: a snapshot pushed by WatchConfig, and reservations by RPC."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import grpc
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.errors import OUTSIDE, MeshError
from hivemind.servers.router.rates import Rate, RateLimiter
from hivemind.servers.router.spend import BudgetView, ReservationGrant, Settlement
from hivemind.v1 import common_pb2, governor_pb2, governor_pb2_grpc

_log = structlog.get_logger()

RPC_TIMEOUT_S: Final = 2.0
RESERVATION_TTL_S: Final = 60
_RECONNECT_S: Final = 0.5
_DEFAULT_DIAL: Final = 0.5


class GovernorState:
    """What the Governor last said; implements completion.Governance. Before its first word nothing is known."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.view = BudgetView()
        self.dial = _DEFAULT_DIAL
        self._limiter = RateLimiter(clock)
        self._known_tenants: frozenset[str] = frozenset({"default"})

    def take(self, message: governor_pb2.WatchConfigResponse) -> None:
        """Puts a new configuration in force."""
        config = message.config
        serving = [b for b in config.budgets if b.purpose != common_pb2.REFINEMENT]
        self.view = BudgetView(
            tenants=frozenset(b.tenant for b in serving), known=True, fresh=True, fail_open=config.budget_fail_open
        )
        self.dial = config.quality_dial
        rates = {r.tenant: Rate(r.requests_per_minute, r.burst) for r in config.rates}
        self._limiter.configure(rates, replicas=message.router_replicas)
        self._known_tenants = frozenset({"default", *self.view.tenants, *rates}) - {"*"}

    def lost(self) -> None:
        """The Governor no longer tells of changes: what was known may be out of date."""
        self.view = replace(self.view, fresh=False)

    def admit(self, tenant: str) -> None:
        """See completion.Governance."""
        self._limiter.admit(tenant)

    def tenant_label(self, tenant: str) -> str:
        """See completion.Governance."""
        return tenant if tenant in self._known_tenants else "other"


class GovernorClient:
    """Implements ports.BudgetKeeper, and keeps a GovernorState up to date."""

    def __init__(self, channel: grpc.aio.Channel, state: GovernorState, *, api_key: str | None, holder: str) -> None:
        self._stub = governor_pb2_grpc.GovernorServiceStub(channel)
        self._state, self._api_key, self._holder = state, api_key, holder

    async def reserve(self, tenant: str, *, min_micros: int, wanted_micros: int) -> ReservationGrant:
        """See ports.BudgetKeeper."""
        request = governor_pb2.ReserveBudgetRequest(
            tenant=tenant,
            min_micros=min_micros,
            wanted_micros=wanted_micros,
            purpose=common_pb2.SERVING,
            on_expiry=governor_pb2.ReserveBudgetRequest.CHARGE,
            holder=self._holder,
        )
        request.ttl.FromSeconds(RESERVATION_TTL_S)
        try:
            grant = await self._stub.ReserveBudget(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise _told(error) from error
        ttl_s = grant.ttl.ToMilliseconds() / 1000
        return ReservationGrant(grant.reservation_id, grant.granted_micros, ttl_s, grant.unlimited)

    async def settle(self, settlement: Settlement) -> frozenset[str]:
        """See ports.BudgetKeeper."""
        request = governor_pb2.SettleBudgetRequest(idempotency_key=settlement.key)
        for item in settlement.items:
            request.items.add(
                tenant=item.tenant,
                model=item.alias,
                purpose=common_pb2.SERVING,
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
        try:
            answer = await self._stub.SettleBudget(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise _told(error) from error
        return frozenset(answer.closed_reservations)

    async def watch(self) -> None:
        """Follows the configuration for ever; a lost stream is opened again, the last word holds meanwhile."""
        lost = False
        while True:
            try:
                request = governor_pb2.WatchConfigRequest(watcher="router")
                async for message in self._stub.WatchConfig(request, metadata=self._metadata(), wait_for_ready=True):
                    self._state.take(message)
                    lost = False
            except grpc.aio.AioRpcError as error:
                if not lost:
                    _log.warning("governor_lost", code=error.code().name)
                lost = True
            self._state.lost()
            await asyncio.sleep(_RECONNECT_S)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return peer_metadata(self._api_key)


def _told(error: grpc.aio.AioRpcError) -> MeshError:
    """The Governor's error as it meant it, PEER_UNAVAILABLE if it did not answer."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.reason in OUTSIDE:
        wait = retry.retry_delay.ToMilliseconds() / 1000 or None
        metadata = {k: v for k, v in info.metadata.items() if k != "request_id"}
        return MeshError(info.reason, error.details() or info.reason, metadata=metadata, retry_after_s=wait)
    return MeshError("PEER_UNAVAILABLE", f"the Governor does not answer ({error.code().name})", retry_after_s=1.0)
