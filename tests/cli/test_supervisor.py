"""Keeping processes running."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.cli.home import CommandError
from hivemind.cli.mesh import parse_replicas, server_of
from hivemind.cli.supervisor import HEALTHY_AFTER_S, LONGEST_WAIT_S, Child, RestartPolicy, Supervisor


@given(st.lists(st.floats(0, 30), min_size=1, max_size=50))
def test_a_dead_process_is_never_given_up_and_never_waits_over_the_limit(lives: list[float]) -> None:
    policy = RestartPolicy()
    waits = [policy.wait_s(lived) for lived in lives]

    assert all(0 <= w <= LONGEST_WAIT_S for w in waits)
    assert waits[0] == 0
    assert all(w == 0 for w, lived in zip(waits, lives, strict=True) if lived >= HEALTHY_AFTER_S)


def test_the_wait_doubles() -> None:
    policy = RestartPolicy()

    assert [policy.wait_s(0) for _ in range(9)] == [0, 0.25, 0.5, 1, 2, 4, 8, 10, 10]


def child(home: Path, code: str) -> Child:
    environment = {**os.environ, "HIVEMIND_HOME": str(home)}
    return Child("dummy", [sys.executable, "-c", code], environment, home / "dummy.log")


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110  # processes set no event
            await asyncio.sleep(0.01)


async def test_a_killed_process_is_started_again_within_a_second(tmp_path: Path) -> None:
    deaths: list[str] = []
    supervisor = Supervisor(on_death=lambda name, code, wait: deaths.append(name))
    supervisor.start(child(tmp_path, "import time; time.sleep(60)"))
    await until(supervisor.pids)
    first = supervisor.pids()["dummy"]

    began = time.monotonic()
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.pids().get("dummy", first) != first)

    assert time.monotonic() - began < 1
    assert deaths == ["dummy"]
    await supervisor.stop(["dummy"], limit_s=5)
    assert supervisor.pids() == {}


async def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    supervisor = Supervisor(on_death=lambda name, code, wait: None)
    supervisor.start(child(tmp_path, stubborn))
    await until(lambda: (tmp_path / "dummy.log").exists() and "up" in (tmp_path / "dummy.log").read_text())

    await supervisor.stop(["dummy"], limit_s=0.2)

    assert supervisor.pids() == {}


async def test_one_that_waits_for_its_restart_can_be_stopped(tmp_path: Path) -> None:
    deaths: list[float] = []
    supervisor = Supervisor(on_death=lambda name, code, wait: deaths.append(wait))
    supervisor.start(child(tmp_path, "raise SystemExit(3)"))
    await until(lambda: deaths and deaths[-1] >= 0.5)

    await supervisor.stop(["dummy"], limit_s=5)

    assert supervisor.pids() == {}


@pytest.mark.parametrize(
    ("text", "expected"), [("", {}), ("router=2", {"router": 2}), ("router=2, arbiter=3", {"router": 2, "arbiter": 3})]
)
def test_replicas_are_read(text: str, expected: dict[str, int]) -> None:
    assert parse_replicas(text) == expected


@pytest.mark.parametrize("text", ["router", "router=0", "router=x", "nobody=2", "router=99"])
def test_odd_replicas_are_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_replicas(text)


@pytest.mark.parametrize(
    ("name", "server"), [("router", "router"), ("router-2", "router"), ("adapter_registry", "adapter_registry")]
)
def test_a_process_name_tells_its_server(name: str, server: str) -> None:
    assert server_of(name) == server
