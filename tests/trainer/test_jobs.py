"""A job's steps, the choice of the next one, and the reading of a log, without any I/O."""

import json
from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.trainer import jobs
from hivemind.servers.trainer.jobs import FINAL, STEPS, Ended, Job, Patience, Result
from hivemind.servers.trainer.log_events import MAX_LINE, Event, events_in
from hivemind.servers.trainer.order import DataSelection, Lane, Order, Recipe, completed
from hivemind.servers.trainer.schedule import Claimant, Schedule, Standing, next_claim

CPU, GPU = Lane("cpu", 1), Lane("gpu", 1, price_per_hour_micros=3_600_000)
PATIENCE = Patience(max_crashes=3, retry_s=5.0)
HERE = Claimant("me", "here:/home", (CPU,), abandoned_s=100.0)


def queued(job_id: str = "j", **order: object) -> Job:
    return Job(job_id, completed(Order(**order)), created=1.0)  # type: ignore[arg-type]


def running(job_id: str = "j", lane: Lane = CPU, owner: str = "me", place: str = "here:/home", **order: object) -> Job:
    job = jobs.claimed(queued(job_id, **order), owner=owner, place=place, lane=lane)
    return jobs.process_started(job, "h1", 10.0)


ACTS: list[Callable[[Job], Job]] = [
    lambda j: jobs.claimed(j, owner="me", place="here", lane=CPU),
    lambda j: jobs.process_started(j, "h", 2.0),
    lambda j: jobs.progressed(j, [Event("step", step=1, loss=1.0)], j.log_offset, j.log_offset + 9),
    lambda j: jobs.progressed(j, [Event("evaluating")], j.log_offset, j.log_offset + 9),
    lambda j: jobs.ran(j, 50.0),
    lambda j: jobs.put_back(j, why="no room", now=3.0, wait_s=1.0),
    lambda j: jobs.cancel_asked(j, 4.0),
    lambda j: jobs.crashed(j, "gone", now=5.0, patience=PATIENCE),
    lambda j: jobs.registered(j, "r-v1", 6.0),
    lambda j: jobs.failed(j, "no", 7.0),
    *(
        lambda j, code=code: jobs.process_ended(j, Ended(code), Result(), now=8.0, patience=PATIENCE)
        for code in (0, 1, 3, 4, 5, -9, None)
    ),
]


@given(st.lists(st.sampled_from(ACTS), max_size=30))
def test_whatever_happens_a_job_only_takes_steps_that_are_allowed_and_never_leaves_its_end(
    acts: list[Callable[[Job], Job]],
) -> None:
    job = queued()
    for act in acts:
        before = job
        try:
            job = act(job)
        except ValueError:
            continue  # the step was refused
        if before.final:
            assert job.state == before.state
        else:
            assert job.state == before.state or job.state in STEPS[before.state]
        assert (job.state in FINAL) == (job.ended > 0)
        assert not (job.final and (job.lane or job.handle or job.owner))
        assert job.crashes <= PATIENCE.max_crashes
        assert Job.from_json(orjson.loads(orjson.dumps(job))) == job


def test_a_job_outlives_crashes_up_to_the_limit_and_waits_longer_each_time() -> None:
    job, waits = running(), []
    for _ in range(3):
        job = jobs.process_ended(job, Ended(-9), Result(), now=100.0, patience=PATIENCE)
        waits.append(job.not_before - 100.0)
        if not job.final:
            job = jobs.process_started(jobs.claimed(job, owner="me", place="p", lane=CPU), "h", 100.0)

    assert (job.state, waits[:2]) == ("FAILED", [5.0, 10.0])


def test_an_interruption_is_no_crash() -> None:
    job = running()
    for n in range(10):
        job = jobs.process_ended(job, Ended(3), Result(), now=5.0, patience=PATIENCE)
        assert job.state == "QUEUED"
        job = jobs.process_started(jobs.claimed(job, owner="me", place="p", lane=CPU), f"h{n}", 5.0)

    assert (job.crashes, job.attempts) == (0, 11)


def test_out_of_memory_is_named_where_the_kernel_tells() -> None:
    how = Ended(-9, out_of_memory=True)
    job = jobs.process_ended(running(), how, Result(), now=5.0, patience=Patience(max_crashes=1))

    assert job.error.startswith("out of memory")


def test_time_and_money_add_up_over_attempts() -> None:
    job = jobs.ran(running(lane=GPU, max_cost_micros=100_000), 60.0)
    job = jobs.process_ended(job, Ended(-9), Result(), now=70.0, patience=PATIENCE)
    job = jobs.claimed(job, owner="me", place="p", lane=GPU)
    job = jobs.ran(jobs.process_started(job, "h2", 80.0), 39.0)

    assert (job.running_s, job.cost_micros, job.overrun) == (99.0, 99_000, "")
    assert "max_cost_micros" in jobs.ran(job, 40.0).overrun


def test_a_log_that_was_heard_is_not_heard_twice() -> None:
    events = [Event("step", step=4, loss=1.0)]
    once = jobs.progressed(running(), events, 0, 50)

    assert jobs.progressed(once, [Event("step", step=1, loss=9.0)], 0, 50) == once


def test_the_oldest_job_comes_first_and_a_full_lane_lets_the_other_pass() -> None:
    gpu = queued("b", recipe=Recipe(backend="unsloth"))
    standings = [Standing(running("a"), 5.0), Standing(queued("c", recipe=Recipe(backend="cpu"))), Standing(gpu)]
    both = replace(HERE, lanes=(CPU, GPU))

    found = next_claim(Schedule(1, standings), both, now=9.0, patience=PATIENCE)
    assert found is not None
    assert found[1].id == "b"
    assert next_claim(Schedule(1, standings), HERE, now=9.0, patience=PATIENCE) is None


def test_the_lanes_of_another_place_do_not_count() -> None:
    standings = [Standing(running("a", owner="other", place="there:/home"), 5.0), Standing(queued("b"))]

    found = next_claim(Schedule(1, standings), HERE, now=9.0, patience=PATIENCE)
    assert found is not None
    assert found[1].id == "b"


@pytest.mark.parametrize(
    ("place", "lease_s", "state"),
    [
        ("here:/home", 1.0, None),
        ("here:/home", -1.0, "RUNNING"),
        ("there:/home", -50.0, None),
        ("there:/home", -101.0, "QUEUED"),
    ],
)
def test_a_job_is_taken_over_at_its_place_at_once_and_elsewhere_when_the_place_is_given_up(
    place: str, lease_s: float, state: str | None
) -> None:
    schedule = Schedule(1, [Standing(running(owner="dead", place=place), lease_s)])

    found = next_claim(schedule, HERE, now=500.0, patience=PATIENCE)
    assert (found[1].state if found else None) == state


def test_a_trainer_does_not_take_over_what_it_follows_itself() -> None:
    assert next_claim(Schedule(1, [Standing(running(), -5.0)]), HERE, now=9.0, patience=PATIENCE) is None


@given(st.integers(1, 6), st.data())
def test_a_log_read_in_any_pieces_tells_the_same(count: int, data: st.DataObject) -> None:
    lines = [json.dumps({"event": "step", "step": n, "loss": 1 / n}).encode() + b"\n" for n in range(1, count + 1)]
    lines.insert(data.draw(st.integers(0, count)), b'{"event":"st\n')
    text = b"".join(lines)
    found, place = [], 0
    for cut in [*sorted(data.draw(st.lists(st.integers(0, len(text))))), len(text)]:
        events, consumed = events_in(text[place:cut]) if cut > place else ([], 0)
        found += events
        place += consumed

    assert [e.step for e in found] == list(range(1, count + 1))
    assert place == len(text)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reading_of_a_log(chunk: bytes) -> None:
    events, consumed = events_in(chunk)

    assert 0 <= consumed <= len(chunk)
    assert all(isinstance(e, Event) for e in events)


def test_a_line_without_end_is_passed_over() -> None:
    assert events_in(b"x" * MAX_LINE) == ([], MAX_LINE)


def test_huge_and_odd_numbers_are_taken_as_what_they_are() -> None:
    line = b'{"event":"step","step":1e400,"loss":1' + b"0" * 400 + b',"eta_s":Infinity,"tokens_per_second":true}\n'
    (event,), _ = events_in(line)

    assert (event.step, event.loss, event.eta_s) == (0, float("inf"), 0.0)
    assert jobs.progressed(running(), [event], 0, 9).not_a_number == 1


def test_an_order_without_data_means_platinum_and_the_default_mixture() -> None:
    assert completed(Order()).data == DataSelection(platinum=True, mixture="default")
