"""Arbiter, Trainer and AdapterRegistry as the lorax client sees them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

import grpc

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.status import asked, told_by_peer
from hivemind.servers.common.turn import Turn
from hivemind.training.freshness import Publication, Replica
from hivemind.training.handover import ACCEPTED, DUPLICATE, Example
from hivemind.v1 import (
    adapter_registry_pb2,
    adapter_registry_pb2_grpc,
    arbiter_pb2,
    arbiter_pb2_grpc,
    common_pb2,
    trainer_pb2_grpc,
)
from hivemind.v1 import trainer_pb2 as trainer

RPC_TIMEOUT_S: Final = 10.0
_CHECKED: Final = (arbiter_pb2.PlatinumExample.ORACLE, arbiter_pb2.PlatinumExample.ARBITER)
_WILL_NOT_DO: Final = frozenset({"INVALID_FIELD", "MISSING_FIELD", "REQUEST_TOO_LARGE", "CONTEXT_LENGTH_EXCEEDED"})
"""Errors of an example itself, which stay the same however often it is sent."""


class PlatinumClient:
    """Implements handover.Platinum. `silence_s`: after how long without a sign of life a stream counts as dead."""

    def __init__(
        self, channel: grpc.aio.Channel, *, group: str, consumer: str, in_flight: int, silence_s: float,
        api_key: str | None,
    ) -> None:  # fmt: skip
        self._stub, self._api_key = arbiter_pb2_grpc.ArbiterServiceStub(channel), api_key
        self._group, self._silence_s = group, silence_s
        self._request = arbiter_pb2.StreamPlatinumRequest(group=group, consumer=consumer, max_in_flight=in_flight)

    async def examples(self) -> AsyncGenerator[Example | None, None]:
        """See handover.Platinum."""
        call = self._stub.StreamPlatinum(self._request, metadata=peer_metadata(self._api_key))
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    message = await call.read()
                if not isinstance(message, arbiter_pb2.StreamPlatinumResponse):
                    raise MeshError("PEER_UNAVAILABLE", "the Arbiter has ended the stream", retry_after_s=1.0)
                yield _example(message.example) if message.HasField("example") else None
        except grpc.aio.AioRpcError as error:
            raise told_by_peer(error, "the Arbiter") from error
        except TimeoutError:
            message_ = f"the Arbiter gave no sign of life for {self._silence_s:g} s"
            raise MeshError("PEER_UNAVAILABLE", message_) from None
        finally:
            call.cancel()

    async def acknowledge(self, sequence: int) -> None:
        """See handover.Platinum."""
        request = arbiter_pb2.AckPlatinumRequest(group=self._group, sequences=[sequence])
        await asked(
            self._stub.AckPlatinum(request, timeout=RPC_TIMEOUT_S, metadata=peer_metadata(self._api_key)), "the Arbiter"
        )


class LearnerClient:
    """Implements handover.Learner, and asks what the learner has published."""

    def __init__(self, channel: grpc.aio.Channel, *, api_key: str | None) -> None:
        self._stub, self._api_key = trainer_pb2_grpc.TrainerServiceStub(channel), api_key

    async def submit(self, example: Example) -> str:
        """See handover.Learner."""
        request = trainer.SubmitExamplesRequest(examples=[_to_learn(example)])
        call = self._stub.SubmitExamples(request, timeout=RPC_TIMEOUT_S, metadata=peer_metadata(self._api_key))
        try:
            answer = await asked(call, "the Trainer")
        except MeshError as error:
            if error.reason in _WILL_NOT_DO:
                return error.reason
            raise
        if answer.accepted:
            return ACCEPTED
        return next(iter(answer.refused), DUPLICATE)

    async def published(self) -> Publication | None:
        """What the learner published last; None: nothing. MeshError if it cannot say."""
        learner = await asked(
            self._stub.GetLearner(
                trainer.GetLearnerRequest(), timeout=RPC_TIMEOUT_S, metadata=peer_metadata(self._api_key)
            ),
            "the Trainer",
        )
        if learner.state == trainer.OnlineLearner.UNAVAILABLE and not learner.adapter_id:
            raise MeshError("PEER_UNAVAILABLE", f"there is no learner: {learner.note}")
        if not learner.adapter_id:
            return None
        closed = learner.batch_close_time.ToNanoseconds() / 1e9 if learner.HasField("batch_close_time") else None
        return Publication(learner.adapter_id, closed)


class StateClient:
    """The registry's WatchState."""

    def __init__(self, channel: grpc.aio.Channel, *, api_key: str | None) -> None:
        self._stub, self._api_key = adapter_registry_pb2_grpc.AdapterRegistryServiceStub(channel), api_key

    def watch(self) -> AsyncIterable[adapter_registry_pb2.WatchStateResponse]:
        """The state at once, and again with every change."""
        request = adapter_registry_pb2.WatchStateRequest(watcher="lorax_client")
        return self._stub.WatchState(request, metadata=peer_metadata(self._api_key), wait_for_ready=True)


def replicas_of(state: adapter_registry_pb2.RoleState) -> tuple[Replica, ...]:
    """What each replica of a role holds."""
    return tuple(Replica(r.address, r.healthy, frozenset(r.adapters), r.note) for r in state.replicas)


def _example(message: arbiter_pb2.PlatinumExample) -> Example:
    return Example(
        id=message.id, sequence=message.sequence, tenant=message.tenant, domain=message.domain,
        messages=tuple(Turn(m.role, m.content, m.name) for m in message.messages),
        answer=message.final_platinum_answer, checked=message.refined_by in _CHECKED,
    )  # fmt: skip


def _to_learn(example: Example) -> trainer.TrainingExample:
    return trainer.TrainingExample(
        platinum_id=example.id, sequence=example.sequence, tenant=example.tenant, domain=example.domain,
        messages=[common_pb2.ChatMessage(role=t.role, content=t.content, name=t.name) for t in example.messages],
        answer=example.answer, checked=example.checked,
    )  # fmt: skip
