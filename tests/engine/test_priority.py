"""Loading behind others, and coming forward again."""

import os
import threading

import pytest

from hivemind.servers.engine import priority
from hivemind.servers.engine.priority import BEHIND, behind_others


def niceness(thread: int = 0) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def started(go_on: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    return thread


def test_the_block_and_the_threads_that_it_starts_are_as_before_after_it() -> None:
    before, go_on = niceness(), threading.Event()
    behind = before + BEHIND if priority._may_rise() else before
    with behind_others():
        inside, thread = niceness(), started(go_on)
        assert thread.native_id is not None
        of_thread = niceness(thread.native_id)
    after = niceness(thread.native_id)
    go_on.set()
    thread.join()

    assert (inside, of_thread) == (behind, behind)
    assert (niceness(), after) == (before, before)


def test_who_may_not_rise_again_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before, lower = niceness(), os.setpriority

    def only_down(which: int, who: int, value: int) -> None:
        if value <= niceness(who):
            raise PermissionError
        lower(which, who, value)

    monkeypatch.setattr(os, "setpriority", only_down)
    with behind_others():
        assert niceness() == before

    assert niceness() == before
