"""Three orchestrators as processes on one Redis: FAULTS 8 and 9."""

import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from hivemind.v1 import orchestrator_pb2 as pb
from tests.support.orchestrators import TTL_S, Orchestrator, three
from tests.support.redis_process import RedisProcess
from tests.support.waiting import until


@pytest.fixture
def trio(empty_redis: RedisProcess, tmp_path: Path) -> Iterator[list[Orchestrator]]:
    with three(empty_redis, tmp_path / "home") as running:
        yield running


def the_leader(some: list[Orchestrator]) -> Orchestrator:
    def one() -> Orchestrator | None:
        leaders = [o for o in some if o.leads]
        assert len(leaders) <= 1, "two replicas lead"
        return leaders[0] if leaders else None

    found = until(one, within_s=10, what="one leads")
    assert found is not None
    return found


def history(one: Orchestrator) -> list[pb.Cycle]:
    """All cycles, oldest first."""
    found = one.stub.ListCycles(pb.ListCyclesRequest(page_size=500), timeout=5)
    return list(reversed(found.cycles))


def acted_in_turn(one: Orchestrator) -> list[int]:
    """The tokens of all cycles in the order of their writes; none may be lower than the one before."""
    tokens = [c.fencing_token for c in history(one)]
    assert all(a <= b for a, b in pairwise(tokens)), tokens
    return sorted(set(tokens))


def test_a_killed_leader_is_followed_within_ttl_and_two_seconds(trio: list[Orchestrator]) -> None:
    leader = the_leader(trio)
    until(lambda: history(leader), what="it acts")
    before = leader.status().fencing_token
    others = [o for o in trio if o is not leader]

    leader.send(signal.SIGKILL)
    began = time.monotonic()
    follower = the_leader(others)
    took = time.monotonic() - began

    assert took < TTL_S + 2
    until(lambda: history(follower)[-1].fencing_token > before, what="the new leader acts")
    assert acted_in_turn(follower) == [before, before + 1]


def test_a_leader_that_was_paused_past_its_lease_writes_nothing_more(trio: list[Orchestrator]) -> None:
    leader = the_leader(trio)
    until(lambda: history(leader), what="it acts")
    name, before = leader.status().replica, leader.status().fencing_token
    others = [o for o in trio if o is not leader]

    leader.send(signal.SIGSTOP)
    began = time.monotonic()
    follower = the_leader(others)
    assert time.monotonic() - began < TTL_S + 2
    until(lambda: history(follower)[-1].fencing_token > before, what="the new leader acts")
    leader.send(signal.SIGCONT)
    newest = follower.status().cycles[0].id
    until(lambda: not leader.leads and follower.status().cycles[0].id != newest, what="both go on")

    assert the_leader(trio) is follower
    cycles = history(follower)
    first_of_new = next(i for i, c in enumerate(cycles) if c.fencing_token > before)
    assert all(c.leader != name for c in cycles[first_of_new:])
    acted_in_turn(follower)


def test_a_leader_that_ends_gently_hands_over_at_once(trio: list[Orchestrator]) -> None:
    leader = the_leader(trio)
    others = [o for o in trio if o is not leader]

    leader.send(signal.SIGTERM)
    leader.process.wait(timeout=10)
    began = time.monotonic()
    the_leader(others)

    assert time.monotonic() - began < TTL_S


def test_every_replica_pauses_resumes_and_has_a_cycle_run_whoever_leads(trio: list[Orchestrator]) -> None:
    leader = the_leader(trio)
    other = next(o for o in trio if o is not leader)
    until(lambda: history(leader), what="it acts")

    paused = other.stub.Pause(pb.PauseRequest(reason="maintenance"), timeout=5)
    assert paused.paused
    began = time.monotonic()

    def at_rest() -> bool:
        ids = [c.id for c in history(leader)]
        end = time.monotonic() + 0.5
        until(lambda: time.monotonic() > end, what="twice the time between two cycles")
        return [c.id for c in history(leader)] == ids

    until(at_rest, what="no new cycles")
    assert time.monotonic() - began < 1.5
    assert {o.status().pause_reason for o in trio} == {"maintenance"}

    other.stub.Resume(pb.ResumeRequest(), timeout=5)
    cycle = other.stub.RunCycle(pb.RunCycleRequest(steps=["housekeeping", "platinum"]), timeout=10)

    assert cycle.requested
    assert [s.name for s in cycle.steps] == ["platinum", "housekeeping"]
    assert cycle.leader == leader.status().replica
    assert "hivemind_leader 1.0" in leader.metrics()
    assert "hivemind_leader 0.0" in other.metrics()
