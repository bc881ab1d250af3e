"""The Governor's RPCs: messages in, the core, messages out."""

from collections.abc import AsyncIterator
from typing import Any

from hivemind.servers.common.context import current_call
from hivemind.servers.governor import translate
from hivemind.servers.governor.feed import ConfigFeed
from hivemind.servers.governor.money import check_settlement, check_wish, days_between
from hivemind.servers.governor.ports import Store
from hivemind.v1 import governor_pb2, governor_pb2_grpc


class GovernorService(governor_pb2_grpc.GovernorServiceServicer):
    """See governor.proto."""

    def __init__(self, feed: ConfigFeed, store: Store) -> None:
        self._feed, self._store = feed, store

    async def GetConfig(self, request: governor_pb2.GetConfigRequest, context: Any) -> governor_pb2.GovernorConfig:
        """See governor.proto."""
        return translate.config_of(await self._feed.get())

    async def SetConfig(self, request: governor_pb2.SetConfigRequest, context: Any) -> governor_pb2.GovernorConfig:
        """See governor.proto."""
        call = current_call.get()
        config = await self._feed.change(
            translate.patch_of(request),
            etag=request.etag,
            idempotency_key=request.idempotency_key,
            fingerprint=translate.fingerprint_of(request),
            actor=call.tenant,
            request_id=call.request_id,
        )
        return translate.config_of(config)

    async def GetSpend(self, request: governor_pb2.GetSpendRequest, context: Any) -> governor_pb2.GetSpendResponse:
        """See governor.proto."""
        today, budgets = await self._store.budgets(await self._feed.get())
        rows = await self._store.rows(days_between(request.start_date, request.end_date, today))
        return translate.spend_of(rows, budgets, tenant=request.tenant, model=request.model)

    async def ReserveBudget(
        self, request: governor_pb2.ReserveBudgetRequest, context: Any
    ) -> governor_pb2.ReserveBudgetResponse:
        """See governor.proto."""
        wish = translate.wish_of(request)
        check_wish(wish)
        return translate.grant_of(await self._store.reserve(wish))

    async def SettleBudget(
        self, request: governor_pb2.SettleBudgetRequest, context: Any
    ) -> governor_pb2.SettleBudgetResponse:
        """See governor.proto."""
        settlement = translate.settlement_of(request)
        check_settlement(settlement)
        return governor_pb2.SettleBudgetResponse(closed_reservations=await self._store.settle(settlement))

    async def WatchConfig(
        self, request: governor_pb2.WatchConfigRequest, context: Any
    ) -> AsyncIterator[governor_pb2.WatchConfigResponse]:
        """See governor.proto."""
        async for snapshot in self._feed.watch(request.watcher):
            yield translate.snapshot_of(snapshot)
