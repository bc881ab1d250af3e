"""A streamed answer on its way: whole events with their bytes, time-outs, and never complete unless it is whole."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from hivemind.servers.common.catalogue import Endpoint, Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.ports import UpstreamError, UpstreamResponse
from hivemind.servers.router.records import Call
from hivemind.servers.router.sse import BrokenStream, ChatStream, EventSplitter
from hivemind.servers.router.work import Work

if TYPE_CHECKING:
    from hivemind.servers.router.completion import Completions

AFTER_DONE_S: Final = 0.25


class OpenStream:
    """A stream whose first event has come. Iterate `batches`, then `close`; events keep their bytes."""

    def __init__(
        self,
        completions: "Completions",
        work: Work,
        model: Model,
        endpoint: Endpoint,
        call: Call,
        response: UpstreamResponse,
        called: float,
    ) -> None:
        self.work, self.model, self.endpoint, self.call, self.called = work, model, endpoint, call, called
        self.chat = ChatStream()
        self.problem = ""
        self._completions = completions
        self._response = response
        self._splitter = EventSplitter()
        self._first: list[tuple[bytes, dict[str, Any] | None]] = []
        self._failure: BrokenStream | None = None

    async def read_first(self, *, within_s: float) -> None:
        """Reads until the first event with data; UpstreamError or BrokenStream if there is none in time."""
        late = UpstreamError("timeout", "the model server sent no token in time")
        timer = asyncio.get_running_loop().call_later(within_s, self._response.fail, late)
        try:
            await self._read_first()
        finally:
            timer.cancel()

    async def _read_first(self) -> None:
        while chunk := await self._next_chunk():
            self._first += self._events(chunk)
            if any(parsed is not None for _, parsed in self._first):
                return
            if self.chat.done:
                break
        raise BrokenStream(self.chat.why_broken())

    async def batches(self) -> Any:
        """Yields lists of (bytes, parsed) as they come, `[DONE]` never among them.

        Ends when the answer is whole. Raises MeshError UPSTREAM_FAILED for one that breaks, DEADLINE_PASSED for one
        that takes too long.
        """
        if self._first:
            yield self._first
        limits = self.model.timeouts
        left = min(self.work.request.deadline, self.called + limits.total_s) - self._completions.clock()
        watchdog = _Watchdog(self._response, idle_s=limits.idle_s, left_s=left)
        try:
            while not self.chat.done:
                watchdog.begin_wait()
                batch = await self._next_batch()
                watchdog.end_wait()
                if batch:
                    yield batch
        except (UpstreamError, BrokenStream) as error:
            raise self._told(error) from error
        finally:
            watchdog.cancel()
        if not self.chat.whole:
            raise self._broken(self.chat.why_broken())

    async def close(self, outcome: str) -> None:
        """Ends the call and accounts for it. A whole answer leaves its connection to the pool."""
        try:
            if outcome == "OK":
                await self._read_to_end()
        finally:
            self._response.close()
            self._completions.finish_stream(self, outcome)

    async def _next_batch(self) -> list[tuple[bytes, dict[str, Any] | None]]:
        """The next whole events: a server that drips single bytes does not count as alive."""
        while True:
            chunk = await self._next_chunk()
            if not chunk:
                raise BrokenStream(self.chat.why_broken())
            batch = self._events(chunk)
            if batch or self.chat.done:
                return batch

    async def _next_chunk(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        return await self._response.next()

    def _events(self, chunk: bytes) -> list[tuple[bytes, dict[str, Any] | None]]:
        """The events of a chunk. A failure behind them comes next: how the network cuts the bytes must not matter."""
        events: list[tuple[bytes, dict[str, Any] | None]] = []
        try:
            for raw in self._splitter.feed(chunk):
                parsed = self.chat.take(raw)
                if self.chat.done:
                    break
                events.append((raw, parsed))
        except BrokenStream as failure:
            self._failure = failure
        return events

    async def _read_to_end(self) -> None:
        try:
            async with asyncio.timeout(AFTER_DONE_S):
                while await self._response.next():
                    pass
        except (TimeoutError, UpstreamError):
            return

    def _broken(self, why: str) -> MeshError:
        self.problem = why
        return MeshError("UPSTREAM_FAILED", f"{self.model.alias} failed in the middle of its answer: {why}")

    def _told(self, error: Exception) -> MeshError:
        if isinstance(error, UpstreamError) and error.kind == "deadline":
            self.problem = "the deadline passed"
            return MeshError("DEADLINE_PASSED", "the deadline passed in the middle of the answer")
        return self._broken(str(error))


class _Watchdog:
    """Ends a stream whose model server says nothing for too long, or that lasts too long.

    Only time spent waiting for the model server counts, not time spent on a slow reader. It costs one timer a stream,
    where a time-out per event would cost one an event.
    """

    def __init__(self, response: UpstreamResponse, *, idle_s: float, left_s: float) -> None:
        self._response, self._idle_s = response, idle_s
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + left_s
        self._since: float | None = None
        self._timer = self._loop.call_later(min(idle_s, left_s), self._look)

    def begin_wait(self) -> None:
        """The wait for the next event begins."""
        self._since = self._loop.time()

    def end_wait(self) -> None:
        """An event has come."""
        self._since = None

    def cancel(self) -> None:
        """The stream has ended."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._end:
            self._response.fail(UpstreamError("deadline", "the deadline passed"))
            return
        due = now + self._idle_s if self._since is None else self._since + self._idle_s
        if due <= now:
            self._response.fail(UpstreamError("idle", f"nothing came for {self._idle_s:g} s"))
            return
        self._timer = self._loop.call_at(min(due, self._end), self._look)
