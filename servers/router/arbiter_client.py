"""The Arbiter as the Router sees it: a queue for candidates, and a refinement within a request."""

from collections.abc import Callable, Sequence
from typing import Final

import grpc

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.status import asked
from hivemind.servers.common.turn import Turn
from hivemind.servers.router.conversation import Conversation, turns_of
from hivemind.servers.router.nomination import Nomination
from hivemind.servers.router.work import Refined, Work
from hivemind.v1 import arbiter_pb2, arbiter_pb2_grpc, common_pb2

SUBMIT_TIMEOUT_S: Final = 10.0
_RESERVE_S: Final = 0.5
"""What is left of a request's time to answer without a refinement."""


class ArbiterClient:
    """Implements nominations.CandidateSink; refines within a request where that is asked for. `clock`: monotonic."""

    def __init__(self, channel: grpc.aio.Channel, *, api_key: str | None, clock: Callable[[], float]) -> None:
        self._stub = arbiter_pb2_grpc.ArbiterServiceStub(channel)
        self._api_key, self._clock = api_key, clock

    async def submit(self, candidates: Sequence[tuple[Nomination, Conversation]]) -> None:
        """See nominations.CandidateSink."""
        request = arbiter_pb2.SubmitCandidatesRequest(candidates=[_candidate(n, c) for n, c in candidates])
        await asked(
            self._stub.SubmitCandidates(request, timeout=SUBMIT_TIMEOUT_S, metadata=peer_metadata(self._api_key)),
            "the Arbiter",
        )

    async def refine(self, work: Work) -> None:
        """Has the answer refined, if the request asks for it; where that fails `degraded` says why."""
        request, record = work.request, work.record
        if not request.refine:
            return
        message = arbiter_pb2.RefineRequest(
            messages=_messages(turns_of(request.messages)), draft=work.text, request_id=record.request_id,
            alternatives=work.alternatives, tenant=record.tenant, domain=record.domain,
            draft_model=record.chosen_model, draft_adapter=record.calls[-1].adapter if record.calls else "",
            idempotency_key=record.request_id,
        )  # fmt: skip
        left_s = request.deadline - self._clock() - _RESERVE_S
        try:
            if left_s <= 0:
                raise MeshError("DEADLINE_PASSED", "no time was left for it")
            call = self._stub.Refine(message, timeout=left_s, metadata=peer_metadata(self._api_key))
            answer = await asked(call, "the Arbiter")
        except MeshError as error:
            record.degraded.append(f"not refined: {error.message}")
            return
        work.refined = Refined(answer.example.final_platinum_answer, answer.example.id)


def _candidate(nomination: Nomination, conversation: Conversation) -> arbiter_pb2.RefinementCandidate:
    return arbiter_pb2.RefinementCandidate(
        request_id=conversation.request_id,
        tenant=conversation.tenant,
        messages=_messages(conversation.messages),
        draft=conversation.draft,
        alternatives=conversation.alternatives,
        domain=conversation.domain,
        draft_model=conversation.draft_model,
        draft_adapter=conversation.draft_adapter,
        cause=arbiter_pb2.RefinementCandidate.Cause.Value(nomination.cause),
        value=nomination.value,
        demonstration=nomination.demonstration,
    )


def _messages(turns: Sequence[Turn]) -> list[common_pb2.ChatMessage]:
    return [common_pb2.ChatMessage(role=t.role, content=t.content, name=t.name) for t in turns]
