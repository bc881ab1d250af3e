"""The edge's HTTP/1.1 by bytes on a real socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from hivemind.servers.router.edge_http import HEAD_MAX, HttpReply, HttpRequest
from hivemind.servers.router.edge_server import EdgeServer
from tests.support.waiting import until

MAX_BODY = 1000
ASK = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: h\r\nX-Name: Value\r\nContent-Length: 4\r\n\r\nbody"


@dataclass
class Served:
    """A server whose answers a test chooses by path; what it was asked."""

    server: EdgeServer
    asked: list[HttpRequest] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    written: int = 0


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    async def handle(request: HttpRequest, reply: HttpReply) -> None:
        rig.asked.append(request)
        reply.watch(lambda: rig.left.append(request.path))
        if request.path == "/stream":
            reply.start(200, [(b"content-type", b"text/plain")])
            await reply.write(b"one ")
            await reply.write(b"")
            reply.end(b"two")
        elif request.path == "/broken":
            reply.start(200, [])
            await reply.write(b"half")
        elif request.path == "/flood":
            reply.start(200, [])
            while len(rig.left) == 0:
                await reply.write(b"x" * 65536)
                rig.written += 65536
        else:
            if request.path == "/held":
                await rig.released.wait()
            reply.whole(
                413 if request.body is None else 200, [(b"x-path", request.path.encode())], request.body or b"-"
            )

    rig = Served(EdgeServer(handle, host="127.0.0.1", port=0, max_body=MAX_BODY))
    running = asyncio.create_task(rig.server.run())
    try:
        yield rig
    finally:
        rig.released.set()
        await rig.server.stop()
        await running


async def exchange(rig: Served, sent: bytes) -> bytes:
    """What comes back until the server closes the connection; the sender closes its side only then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def until_async(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition)


def closing(request: bytes) -> bytes:
    return request.replace(b"Host: h\r\n", b"Host: h\r\nConnection: close\r\n")


async def test_a_request_comes_whole_and_its_answer_goes_by_length() -> None:
    async with served() as rig:
        answer = await exchange(rig, closing(ASK))

    assert rig.asked == [
        HttpRequest(
            "POST", "/v1/x", {"host": "h", "connection": "close", "x-name": "Value", "content-length": "4"}, b"body"
        )
    ]
    assert answer == (b"HTTP/1.1 200 OK\r\nx-path: /v1/x\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody")


@pytest.mark.parametrize("cut", [1, 7, 40])
async def test_a_request_in_pieces_is_the_same_request(cut: int) -> None:
    sent = closing(ASK)
    async with served() as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
        for at in range(0, len(sent), cut):
            writer.write(sent[at : at + cut])
            await writer.drain()
            await asyncio.sleep(0)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert answer.endswith(b"\r\n\r\nbody")
    assert rig.asked[0].path == "/v1/x"
    assert rig.asked[0].headers["x-name"] == "Value"


async def test_a_chunked_body_is_one_body() -> None:
    async with served() as rig:
        head = b"POST /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        await exchange(rig, head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    assert rig.asked[0].body == b"abcde"


async def test_requests_sent_at_once_are_answered_in_their_order() -> None:
    asks = [b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n"]
    async with served() as rig:
        whole = asyncio.create_task(exchange(rig, b"".join(asks) + closing(ASK)))
        await until_async(lambda: len(rig.asked) == 1)
        rig.released.set()
        answer = await whole

    assert [a.path for a in rig.asked] == ["/held", "/b", "/v1/x"]
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(b"x-path: /held") < answer.index(b"x-path: /b") < answer.index(b"x-path: /v1/x")


async def test_a_stream_is_chunked_for_http_1_1_and_ends_the_connection_for_1_0() -> None:
    async with served() as rig:
        new = await exchange(rig, b"GET /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        old = await exchange(rig, b"GET /stream HTTP/1.0\r\n\r\n")

    assert new.endswith(b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")
    assert b"chunked" not in old
    assert old.endswith(b"\r\n\r\none two")


async def test_an_answer_without_its_end_is_cut_off() -> None:
    async with served() as rig:
        answer = await exchange(rig, b"GET /broken HTTP/1.1\r\nHost: h\r\n\r\n")

    assert answer.endswith(b"4\r\nhalf\r\n")


async def test_head_has_no_body() -> None:
    async with served() as rig:
        answer = await exchange(rig, b"HEAD /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

    assert answer.endswith(b"content-length: 1\r\nconnection: close\r\n\r\n")


async def test_one_who_waits_to_be_asked_for_the_body_is_asked() -> None:
    async with served() as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
        writer.write(b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert await asyncio.wait_for(reader.readuntil(b"ok"), 5)
        writer.close()


async def test_a_body_that_is_too_large_is_not_kept() -> None:
    async with served() as rig:
        body = b"x" * (MAX_BODY + 1)
        answer = await exchange(rig, b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    assert rig.asked[0].body is None
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nX: " + b"x" * (HEAD_MAX + 1),
        b"GET /" + b"x" * (HEAD_MAX + 1),
    ],
    ids=["no HTTP", "two lengths", "long header", "long target"],
)
async def test_what_is_no_request_is_refused(sent: bytes) -> None:
    async with served() as rig:
        answer = await exchange(rig, sent)

    assert answer == b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert rig.asked == []


async def test_an_upgrade_is_answered_as_the_request_that_it_is() -> None:
    async with served() as rig:
        answer = await exchange(rig, b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\nx-path: /a\r\n")


async def test_the_end_of_a_client_is_told() -> None:
    async with served() as rig:
        _, writer = await asyncio.open_connection("127.0.0.1", rig.server.port)
        writer.write(b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n")
        await until_async(lambda: len(rig.asked) == 1)
        writer.transport.abort()
        await until_async(lambda: rig.left == ["/held"])


async def test_a_client_that_does_not_read_costs_no_memory() -> None:
    async with served() as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.server.port, limit=1024)
        writer.write(b"GET /flood HTTP/1.1\r\nHost: h\r\n\r\n")
        await until_async(still(lambda: rig.written))
        stopped_at = rig.written
        await reader.readexactly(stopped_at // 2)
        await until_async(lambda: rig.written > stopped_at)
        writer.transport.abort()
        await until_async(lambda: rig.left == ["/flood"])

    assert 0 < stopped_at < 32 << 20


def still(figure: Callable[[], int]) -> Callable[[], bool]:
    """Whether a figure above 0 was the same in ten looks."""
    seen: list[int] = []

    def look() -> bool:
        seen.append(figure())
        return len(seen) > 10 and 0 < seen[-10] == seen[-1]

    return look


async def test_a_server_that_stops_ends_what_is_under_way_and_tells_the_client_to_go() -> None:
    async with served() as rig:
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", rig.server.port)
        idle.write(ASK)
        await asyncio.wait_for(idle_reader.readuntil(b"body"), 5)
        busy = asyncio.create_task(exchange(rig, b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n"))
        await until_async(lambda: rig.asked[-1].path == "/held")
        stopping = asyncio.create_task(rig.server.stop())

        assert await asyncio.wait_for(idle_reader.read(), 5) == b""
        assert not stopping.done()
        rig.released.set()
        assert b"connection: close" in await busy
        await asyncio.wait_for(stopping, 5)
        idle.close()
