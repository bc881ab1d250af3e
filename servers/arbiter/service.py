"""The Arbiter's RPCs: messages in, the core, messages out. Those that are not built answer UNIMPLEMENTED."""

from typing import Any

from hivemind.servers.arbiter import translate_refinement
from hivemind.servers.arbiter.candidate import Submitted
from hivemind.servers.arbiter.nomination import Nominations
from hivemind.servers.arbiter.refinement import Refinery
from hivemind.v1 import arbiter_pb2, arbiter_pb2_grpc


class ArbiterService(arbiter_pb2_grpc.ArbiterServiceServicer):
    """See arbiter.proto."""

    def __init__(self, refinery: Refinery, nominations: Nominations) -> None:
        self._refinery, self._nominations = refinery, nominations

    async def Refine(self, request: arbiter_pb2.RefineRequest, context: Any) -> arbiter_pb2.RefineResponse:
        """See arbiter.proto."""
        example = await self._refinery.refine(translate_refinement.draft_of(request))
        return arbiter_pb2.RefineResponse(example=translate_refinement.example_message(example))

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
