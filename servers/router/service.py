"""The Router's RPCs: messages in, the core, messages out."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

from hivemind.servers.common.context import current_call
from hivemind.servers.common.errors import MeshError, not_found
from hivemind.servers.common.status import to_status
from hivemind.servers.common.translate import page_size
from hivemind.servers.router import translate
from hivemind.servers.router.arbiter_client import ArbiterClient
from hivemind.servers.router.completion import Completions
from hivemind.servers.router.feedback import FeedbackStore
from hivemind.servers.router.open_stream import OpenStream
from hivemind.servers.router.opinion_store import RedisOpinionStore
from hivemind.servers.router.ports import RecordStore
from hivemind.servers.router.recorder import Recorder
from hivemind.servers.router.records import Record
from hivemind.servers.router.sampling_store import RedisSamplingStore
from hivemind.servers.router.sse import delta_text, first_text
from hivemind.servers.router.strategy_calls import Delta, Progress, StrategyStream
from hivemind.servers.router.work import UpstreamRefused, refusal_text
from hivemind.v1 import router_pb2, router_pb2_grpc

RECORD_WAIT_S: Final = 1.0
_RECORD_POLL_S: Final = 0.05
_PORTION: Final = 20
"""How much of a page is read and turned into messages at once: requests to models share the event loop."""


class RouterService(router_pb2_grpc.RouterServiceServicer):
    """See router.proto."""

    def __init__(
        self,
        completions: Completions,
        records: RecordStore,
        recorder: Recorder,
        feedback: FeedbackStore,
        arbiter: ArbiterClient,
        opinions: RedisOpinionStore,
        sampling: RedisSamplingStore,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._completions, self._records, self._recorder, self._clock = completions, records, recorder, clock
        self._feedback, self._arbiter = feedback, arbiter
        self._opinions, self._sampling = opinions, sampling

    async def Complete(self, request: router_pb2.CompleteRequest, context: Any) -> router_pb2.CompleteResponse:
        """See router.proto."""
        wanted = translate.request_of(request, current_call.get(), "COMPLETE", self._clock(), context.time_remaining())
        try:
            answer = await self._completions.plain(wanted)
        except UpstreamRefused as refused:
            raise _refusal(refused) from refused
        await self._arbiter.refine(answer.work)
        return translate.response_of(answer.work, answer.parsed)

    async def StreamComplete(
        self, request: router_pb2.CompleteRequest, context: Any
    ) -> AsyncIterator[router_pb2.StreamCompleteResponse]:
        """See router.proto."""
        left = context.time_remaining()
        wanted = translate.request_of(request, current_call.get(), "STREAM_COMPLETE", self._clock(), left)
        try:
            stream = await self._completions.stream(wanted)
        except UpstreamRefused as refused:
            raise _refusal(refused) from refused
        except MeshError as error:
            yield _error_message(error)
            raise
        relay = self._relay_strategy(stream) if isinstance(stream, StrategyStream) else self._relay(stream)
        async with aclosing(relay) as messages:
            async for message in messages:
                yield message

    async def _relay_strategy(self, stream: StrategyStream) -> AsyncGenerator[router_pb2.StreamCompleteResponse, None]:
        spoken = False
        try:
            async with aclosing(stream.events()) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        step = router_pb2.Progress(role=event.role, note=event.note)
                        yield router_pb2.StreamCompleteResponse(progress=step)
                    elif isinstance(event, Delta):
                        spoken = True
                        yield router_pb2.StreamCompleteResponse(delta=event.text)
                    elif event is not None:
                        if not spoken:
                            yield router_pb2.StreamCompleteResponse(delta=first_text(event.parsed))
                        await self._arbiter.refine(event.work)
                        final = translate.response_of(event.work, event.parsed)
                        yield router_pb2.StreamCompleteResponse(final=final)
        except MeshError as error:
            yield _error_message(error)
            raise

    async def _relay(self, stream: OpenStream) -> AsyncGenerator[router_pb2.StreamCompleteResponse, None]:
        outcome, pieces = "CANCELLED", []
        try:
            async for batch in stream.batches():
                for _, parsed in batch:
                    text = delta_text(parsed) if parsed else ""
                    if text:
                        pieces.append(text)
                        yield router_pb2.StreamCompleteResponse(delta=text)
            outcome = "OK"
        except MeshError as error:
            outcome = error.reason
            yield _error_message(error)
            raise
        finally:
            await stream.close(outcome)
        await self._arbiter.refine(stream.work)
        yield router_pb2.StreamCompleteResponse(final=translate.streamed_response_of(stream, "".join(pieces)))

    async def Decide(self, request: router_pb2.CompleteRequest, context: Any) -> router_pb2.DecideResponse:
        """See router.proto."""
        wanted = translate.request_of(request, current_call.get(), "DECIDE", self._clock(), context.time_remaining())
        return translate.decision_of(self._completions.decide(wanted).record)

    async def ListModels(self, request: router_pb2.ListModelsRequest, context: Any) -> router_pb2.ListModelsResponse:
        """See router.proto."""
        return translate.models_of(self._completions.fleet)

    async def GetRequest(self, request: router_pb2.GetRequestRequest, context: Any) -> router_pb2.RequestRecord:
        """See router.proto. A record that another replica is about to store is waited for, up to a second."""
        record = await self._find(request.id)
        return translate.record_of(record, (await self._feedback.of([record.request_id]))[0])

    async def SubmitFeedback(
        self, request: router_pb2.SubmitFeedbackRequest, context: Any
    ) -> router_pb2.SubmitFeedbackResponse:
        """See router.proto. Another tenant's request is not found."""
        feedback = translate.feedback_of(request).checked().redacted()
        record = await self._find(request.request_id)
        tenant = current_call.get().tenant
        if tenant and tenant != record.tenant:
            raise not_found("request", request.request_id)
        await self._recorder.stored(record.request_id, within_s=RECORD_WAIT_S)  # what it nominates is looked up there
        stored = await self._feedback.add(record, feedback, feedback.key(request.idempotency_key))
        return router_pb2.SubmitFeedbackResponse(
            request_id=record.request_id, feedback=translate.feedback_message(stored)
        )

    async def ListRequests(
        self, request: router_pb2.ListRequestsRequest, context: Any
    ) -> router_pb2.ListRequestsResponse:
        """See router.proto."""
        left, place = page_size(request.page_size), request.page_token
        page = router_pb2.ListRequestsResponse()
        while left:
            size = min(left, _PORTION)
            found, place = await self._records.list(page_size=size, page_token=place, tenant=request.tenant)
            opinions = await self._feedback.of([r.request_id for r in found])
            page.requests.extend(map(translate.record_of, found, opinions))
            left = left - len(found) if place else 0
        page.next_page_token = place
        return page

    async def NominateRequests(
        self, request: router_pb2.NominateRequestsRequest, context: Any
    ) -> router_pb2.NominateRequestsResponse:
        """See router.proto."""
        count, value = translate.wanted_sample(request)
        ids = await self._sampling.nominate(
            request.domain, count, value, fencing_token=request.fencing_token, idempotency_key=request.idempotency_key
        )
        return router_pb2.NominateRequestsResponse(request_ids=ids)

    async def ListOpinions(
        self, request: router_pb2.ListOpinionsRequest, context: Any
    ) -> router_pb2.ListOpinionsResponse:
        """See router.proto."""
        left, place = page_size(request.page_size), request.page_token
        page = router_pb2.ListOpinionsResponse()
        while left:
            size = min(left, _PORTION)
            found, place = await self._opinions.after(place, size)
            page.opinions.extend(map(translate.opinion_of, found))
            left = left - size if len(found) == size else 0
        page.next_page_token = place
        return page

    async def _find(self, request_id: str) -> Record:
        end = self._clock() + RECORD_WAIT_S
        while True:
            found = self._recorder.find(request_id) or await self._records.get(request_id)
            if found is not None:
                return found
            if self._clock() >= end:
                raise not_found("request", request_id)
            await asyncio.sleep(_RECORD_POLL_S)


def _error_message(error: MeshError) -> router_pb2.StreamCompleteResponse:
    return router_pb2.StreamCompleteResponse(error=to_status(error, current_call.get().request_id))


def _refusal(refused: UpstreamRefused) -> MeshError:
    """The model server found fault with the request; what it said is for the client."""
    return MeshError("INVALID_FIELD", f"the model server refused the request: {refusal_text(refused)}")
