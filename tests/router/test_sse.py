"""Events of a streamed answer, and when it is whole."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.router.sse import MAX_EVENT_BYTES, BrokenStream, ChatStream, EventSplitter

EVENTS = st.lists(
    st.binary(max_size=20).map(lambda b: b"data: " + b.replace(b"\r", b"").replace(b"\n", b"")), max_size=6
)


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> bytes:
    body = {"model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def read(*events: bytes) -> ChatStream:
    chat = ChatStream()
    for event in events:
        chat.take(event)
    return chat


@given(EVENTS, st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.integers(1, 7))
def test_events_are_the_same_however_the_bytes_arrive(events: list[bytes], end: bytes, size: int) -> None:
    stream = b"".join(e + end for e in events)
    splitter = EventSplitter()

    found = [e for i in range(0, len(stream), size) for e in splitter.feed(stream[i : i + size])]

    assert b"".join(found) + splitter.rest == stream
    assert len(found) == len(events)


def test_an_event_that_never_ends_is_given_up() -> None:
    splitter = EventSplitter()
    assert list(splitter.feed(b"x" * MAX_EVENT_BYTES)) == []

    with pytest.raises(BrokenStream, match="larger"):
        list(splitter.feed(b"x"))


def test_an_answer_is_whole_with_finish_reasons_and_done() -> None:
    assert read(chunk(content="a"), chunk(finish="stop"), b"data: [DONE]\n\n").whole


@pytest.mark.parametrize(
    "events",
    [
        [chunk(content="a"), chunk(finish="stop")],
        [chunk(content="a"), b"data: [DONE]\n\n"],
        [b"data: [DONE]\n\n"],
        [chunk(0, content="a"), chunk(1, content="b"), chunk(0, finish="stop"), b"data: [DONE]\n\n"],
    ],
)
def test_an_answer_with_a_missing_end_is_not_whole(events: list[bytes]) -> None:
    assert not read(*events).whole


@pytest.mark.parametrize(
    "event",
    [b"data: {nonsense\n\n", b"data: 7\n\n", b'data: {"error": {"message": "fell over"}}\n\n'],
)
def test_what_cannot_be_read_or_is_an_error_breaks_the_stream(event: bytes) -> None:
    with pytest.raises(BrokenStream):
        read(event)


@pytest.mark.parametrize("event", [b": keep-alive\n\n", b"event: ping\n\n", b"\n\n"])
def test_comments_and_other_events_change_nothing(event: bytes) -> None:
    assert read(event) == ChatStream()


def test_data_over_several_lines_is_one_payload() -> None:
    chat = read(b'data: {"model": "m",\ndata: "choices": []}\n\n')

    assert chat.model == "m"
