"""The Arbiter's RPCs: messages in, the core, messages out."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from hivemind.servers.arbiter import translate, translate_refinement
from hivemind.servers.arbiter.candidate import Submitted
from hivemind.servers.arbiter.ledger import Ledger
from hivemind.servers.arbiter.nomination import Nominations
from hivemind.servers.arbiter.ports import QueueCounter
from hivemind.servers.arbiter.refinement import Refinery
from hivemind.servers.arbiter.stream import PlatinumStreams
from hivemind.servers.common.context import current_call
from hivemind.servers.common.translate import page_size
from hivemind.v1 import arbiter_pb2, arbiter_pb2_grpc


class ArbiterService(arbiter_pb2_grpc.ArbiterServiceServicer):
    """See arbiter.proto."""

    def __init__(
        self,
        ledger: Ledger,
        streams: PlatinumStreams,
        queue: QueueCounter,
        refinery: Refinery,
        nominations: Nominations,
        *,
        deadline_s: float,
    ) -> None:
        self._ledger, self._streams, self._queue = ledger, streams, queue
        self._refinery, self._nominations, self._deadline_s = refinery, nominations, deadline_s

    # Refinement.

    async def Refine(self, request: arbiter_pb2.RefineRequest, context: Any) -> arbiter_pb2.RefineResponse:
        """See arbiter.proto."""
        within_s = min(self._deadline_s, context.time_remaining() or self._deadline_s)
        example = await self._refinery.refine(translate_refinement.draft_of(request), within_s=within_s)
        return arbiter_pb2.RefineResponse(example=translate.example_message(example))

    async def SubmitCandidates(
        self, request: arbiter_pb2.SubmitCandidatesRequest, context: Any
    ) -> arbiter_pb2.SubmitCandidatesResponse:
        """See arbiter.proto."""
        found = await self._nominations.take(translate_refinement.candidates_of(request))
        return arbiter_pb2.SubmitCandidatesResponse(
            accepted=found.count(Submitted.ACCEPTED),
            duplicates=found.count(Submitted.DUPLICATE),
            dropped=found.count(Submitted.DROPPED),
        )

    # Platinum: reading, the stream, forgetting.

    async def ListPlatinum(
        self, request: arbiter_pb2.ListPlatinumRequest, context: Any
    ) -> arbiter_pb2.ListPlatinumResponse:
        """See arbiter.proto. A page token is the sequence of the last example of the page before."""
        size, below = page_size(request.page_size), translate.page_below(request.page_token)
        wanted = translate.page_filter(request, current_call.get().tenant)
        examples, rest = await self._ledger.page(wanted, below=below, size=size)
        return arbiter_pb2.ListPlatinumResponse(
            examples=map(translate.example_message, examples), next_page_token=str(rest or "")
        )

    async def GetPlatinum(self, request: arbiter_pb2.GetPlatinumRequest, context: Any) -> arbiter_pb2.PlatinumExample:
        """See arbiter.proto."""
        found = await self._ledger.find(request.id)
        return translate.example_message(translate.visible(found, request.id, current_call.get().tenant))

    async def GetPlatinumStats(
        self, request: arbiter_pb2.GetPlatinumStatsRequest, context: Any
    ) -> arbiter_pb2.GetPlatinumStatsResponse:
        """See arbiter.proto."""
        queued, dropped = await self._queue.counts()
        return translate.stats_message(await self._ledger.counts(), queued=queued, dropped=dropped)

    async def ForgetPlatinum(
        self, request: arbiter_pb2.ForgetPlatinumRequest, context: Any
    ) -> arbiter_pb2.ForgetPlatinumResponse:
        """See arbiter.proto. A caller that names itself by header forgets its own examples only."""
        wanted, caller = translate.to_forget(request), current_call.get().tenant
        ids = await self._ledger.forget(wanted, reason=request.reason, tenant=caller, rotate=request.rotate)
        return arbiter_pb2.ForgetPlatinumResponse(ids=ids)

    async def StreamPlatinum(
        self, request: arbiter_pb2.StreamPlatinumRequest, context: Any
    ) -> AsyncIterator[arbiter_pb2.StreamPlatinumResponse]:
        """See arbiter.proto."""
        group, consumer = translate.group_of(request.group), translate.consumer_of(request.consumer)
        events = self._streams.follow(group, consumer, translate.in_flight(request.max_in_flight))
        async with aclosing(events):
            async for event in events:
                yield translate.event_message(event)

    async def WatchPlatinum(
        self, request: arbiter_pb2.WatchPlatinumRequest, context: Any
    ) -> AsyncIterator[arbiter_pb2.WatchPlatinumResponse]:
        """See arbiter.proto. A caller that names itself by header is told of its own examples only."""
        wanted, caller = translate.wanted_by_watcher(request), current_call.get().tenant
        events = self._streams.watch(wanted.newest_per_tenant)
        async with aclosing(events):
            async for event in events:
                message = translate.watched_message(event, wanted, caller)
                if message is not None:
                    yield message

    async def AckPlatinum(
        self, request: arbiter_pb2.AckPlatinumRequest, context: Any
    ) -> arbiter_pb2.AckPlatinumResponse:
        """See arbiter.proto."""
        group = translate.group_of(request.group)
        upto = await self._streams.acknowledge(group, translate.acknowledged(request))
        return arbiter_pb2.AckPlatinumResponse(acknowledged_sequence=upto)
