"""Words of a strategy on their way to the client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.sse import ChatStream
from hivemind.servers.router.strategy_calls import Audience, Delta, Progress, relayed
from hivemind.servers.router.work import BrokenOff


class Stream:
    """Stands in for an OpenStream: batches of words, then an error if there is one."""

    def __init__(self, *batches: list[str], error: MeshError | None = None) -> None:
        self.chat, self.ended_as = ChatStream(model="m"), ""
        self._batches, self._error = batches, error

    async def batches(self) -> AsyncIterator[list[tuple[bytes, dict[str, Any] | None]]]:
        for batch in self._batches:
            yield [(b"", {"choices": [{"delta": {"content": words}}]}) for words in batch]
        if self._error is not None:
            raise self._error

    async def close(self, outcome: str) -> None:
        self.ended_as = outcome


async def heard(audience: Audience, into: list[str]) -> None:
    while True:
        event = await audience.next()
        if isinstance(event, Delta):
            into.append(event.text)
        audience.taken()


async def relay(stream: Stream) -> tuple[str | MeshError, list[str]]:
    audience, into = Audience(), list[str]()
    reader = asyncio.ensure_future(heard(audience, into))
    try:
        return await relayed(stream, audience), into  # type: ignore[arg-type]
    except MeshError as error:
        return error, into
    finally:
        reader.cancel()


async def test_words_arrive_one_by_one_and_make_up_the_answer() -> None:
    stream = Stream(["Forty", "-"], [], ["two."])

    assert await relay(stream) == ("Forty-two.", ["Forty", "-", "two."])
    assert stream.ended_as == "OK"


async def test_blank_words_wait_for_one_that_is_not() -> None:
    assert await relay(Stream([" "], ["\n"])) == (" \n", [])
    assert await relay(Stream([" "], ["x"], [" "])) == (" x ", [" ", "x", " "])


@pytest.mark.parametrize(("words", "kind"), [("Forty", BrokenOff), (" ", MeshError)])
async def test_only_what_breaks_after_a_word_was_heard_is_beyond_a_cure(words: str, kind: type[MeshError]) -> None:
    stream = Stream([words], error=MeshError("UPSTREAM_FAILED", "gone"))

    error, _ = await relay(stream)

    assert type(error) is kind
    assert stream.ended_as == "UPSTREAM_FAILED"


async def test_a_client_that_reads_slowly_holds_the_words_up_but_not_the_steps() -> None:
    audience = Audience()
    audience.tell(Progress("merger", "fusing"))
    saying = asyncio.ensure_future(audience.hear([Delta("a", "m"), Delta("b", "m")]))

    for _ in range(3):
        await audience.next()
        assert not saying.done()
        audience.taken()
    await asyncio.wait_for(saying, 1)
