"""The adapter registry's RPCs: messages in, the core, messages out."""

from collections.abc import AsyncIterator
from typing import Any

from hivemind.servers.adapter_registry import translate
from hivemind.servers.adapter_registry.feed import StateFeed
from hivemind.servers.adapter_registry.registration import Registrar, Registration
from hivemind.servers.adapter_registry.registry import Registry
from hivemind.servers.common.errors import not_found
from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import adapter_registry_pb2_grpc


class AdapterRegistryService(adapter_registry_pb2_grpc.AdapterRegistryServiceServicer):
    """See adapter_registry.proto."""

    def __init__(self, feed: StateFeed, registry: Registry, registrar: Registrar) -> None:
        self._feed, self._registry, self._registrar = feed, registry, registrar
        self._rules = registry.policies.rules

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Any) -> pb.ListAdaptersResponse:
        """See adapter_registry.proto."""
        before, count = translate.page_of(request)
        found = await self._registry.adapters(request.role, before, count)
        token = str(found[-1].record.order) if len(found) == count else ""
        return pb.ListAdaptersResponse(adapters=map(translate.adapter_of, found), next_page_token=token)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Any) -> pb.Adapter:
        """See adapter_registry.proto."""
        return translate.adapter_of(await self._registry.adapter(request.id))

    async def RegisterAdapter(self, request: pb.RegisterAdapterRequest, context: Any) -> pb.Adapter:
        """See adapter_registry.proto."""
        wish = Registration(request.role, request.path, request.parent)
        adapter_id = await self._registrar.register(wish, translate.call_of(request))
        await self._feed.get()
        return translate.adapter_of(await self._registry.adapter(adapter_id))

    async def GetState(self, request: pb.GetStateRequest, context: Any) -> pb.RegistryState:
        """See adapter_registry.proto."""
        snapshot = await self._feed.get()
        if request.role and request.role not in snapshot.roles:
            raise not_found("role", request.role)
        return translate.state_of(snapshot, self._rules, request.role)

    async def PreviewPromotion(
        self, request: pb.PreviewPromotionRequest, context: Any
    ) -> pb.PreviewPromotionResponse:  # fmt: skip
        """See adapter_registry.proto."""
        preview = await self._registry.preview(request.role, request.adapter_id)
        return translate.preview_of(preview, self._rules)

    async def PromoteAdapter(self, request: pb.PromoteAdapterRequest, context: Any) -> pb.RoleState:
        """See adapter_registry.proto."""
        view = await self._registry.promote(translate.promotion_of(request), translate.call_of(request))
        return translate.role_of(view, self._rules)

    async def RollbackAdapter(self, request: pb.RollbackAdapterRequest, context: Any) -> pb.RoleState:
        """See adapter_registry.proto."""
        view = await self._registry.rollback(
            request.role, translate.call_of(request), reason=request.reason, expected=request.expected_champion
        )
        return translate.role_of(view, self._rules)

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Any) -> pb.RoleState:
        """See adapter_registry.proto."""
        wish = translate.challenge_of(request)
        view = await self._registry.set_traffic(request.role, wish, translate.call_of(request), etag=request.etag)
        return translate.role_of(view, self._rules)

    async def RecordOutcomes(self, request: pb.RecordOutcomesRequest, context: Any) -> pb.RecordOutcomesResponse:
        """See adapter_registry.proto."""
        outcomes = [translate.outcome_of(o) for o in request.outcomes]
        recorded, duplicates = await self._registry.record(outcomes, translate.call_of(request))
        return pb.RecordOutcomesResponse(recorded=recorded, duplicates=duplicates)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        """See adapter_registry.proto."""
        before, count = translate.page_of(request)
        found = await self._registry.events(request.role, before, count)
        token = str(found[-1].sequence) if len(found) == count else ""
        return pb.ListEventsResponse(events=map(translate.event_of, found), next_page_token=token)

    async def WatchState(self, request: pb.WatchStateRequest, context: Any) -> AsyncIterator[pb.WatchStateResponse]:
        """See adapter_registry.proto."""
        async for snapshot in self._feed.watch():
            yield pb.WatchStateResponse(state=translate.state_of(snapshot, self._rules))
