"""Between the messages of orchestrator.proto and the orchestrator's core."""

from collections.abc import Sequence

from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.translate import duration, timestamp
from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.cycle import STEPS, Cycle, StepRecord
from hivemind.servers.orchestrator.domains import Skill
from hivemind.servers.orchestrator.status import Status
from hivemind.v1 import common_pb2, orchestrator_pb2


def status_of(status: Status) -> orchestrator_pb2.OrchestratorStatus:
    """The status as the contract has it."""
    progress = status.progress
    message = orchestrator_pb2.OrchestratorStatus(
        is_leader=status.leads, paused=status.paused is not None, pause_reason=status.paused or "",
        cycles=map(cycle_of, status.cycles), replica=status.replica,
    )  # fmt: skip
    if progress is not None:
        message.leader, message.fencing_token, message.current_step = progress.leader, progress.token, progress.step
        if progress.next_cycle and status.paused is None:
            message.next_cycle_time.CopyFrom(timestamp(progress.next_cycle))
    return message


def cycle_of(cycle: Cycle) -> orchestrator_pb2.Cycle:
    """A cycle as the contract has it."""
    message = orchestrator_pb2.Cycle(
        id=cycle.id, start_time=timestamp(cycle.started), steps=map(_step, cycle.steps), fencing_token=cycle.token,
        leader=cycle.leader, requested=cycle.requested,
    )  # fmt: skip
    message.duration.CopyFrom(duration(cycle.duration_s))
    return message


def page_of(cycles: Sequence[Cycle], place: str) -> orchestrator_pb2.ListCyclesResponse:
    """A page of cycles."""
    return orchestrator_pb2.ListCyclesResponse(cycles=map(cycle_of, cycles), next_page_token=place)


def map_of(found: CognitiveMap, domain: str = "") -> orchestrator_pb2.CognitiveMap:
    """The map as the contract has it. `domain`: only this one."""
    version = common_pb2.SnapshotVersion(revision=found.revision, update_time=timestamp(found.updated))
    return orchestrator_pb2.CognitiveMap(
        skills=[_skill(s) for s in found.skills if domain in ("", s.name)], version=version,
        ledger_sequence=found.ledger_sequence, bad_lines=found.bad_lines,
    )  # fmt: skip


def checked_steps(names: Sequence[str]) -> tuple[str, ...]:
    """The steps that were asked for, in the order of a cycle; INVALID_FIELD for an unknown one."""
    for i, name in enumerate(names):
        if name not in STEPS:
            raise invalid_field(f"steps[{i}]", f"{name!r} is none of {', '.join(STEPS)}")
    return tuple(s for s in STEPS if s in names)


def _step(step: StepRecord) -> orchestrator_pb2.CycleStep:
    message = orchestrator_pb2.CycleStep(
        name=step.name, outcome=orchestrator_pb2.CycleStep.Outcome.Value(step.outcome), note=step.note,
        cost_micros=step.cost_micros,
    )  # fmt: skip
    message.duration.CopyFrom(duration(step.duration_s))
    return message


def _skill(skill: Skill) -> orchestrator_pb2.Skill:
    return orchestrator_pb2.Skill(
        name=skill.name, n=skill.n, mean=skill.mean, confidence=skill.confidence,
        update_time=timestamp(skill.updated), improved_by=skill.improved_by,
    )  # fmt: skip
