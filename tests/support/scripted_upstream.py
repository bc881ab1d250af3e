"""A scripted model server in OpenAI's shape, written from its documentation.

It stands for a paid remote API. What it does is named by the `model` of a request (see `SCRIPTS`); what it saw is told
by GET /seen. It speaks raw HTTP/1.1, so that it can break every rule of it. A second port speaks TLS with a certificate
that nobody has reason to trust.
"""

import asyncio
import base64
import json
import math
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trustme

ANSWER = "Paris is the capital of France."
USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}


@dataclass
class Seen:
    """One request that came in."""

    model: str
    body: bytes
    headers: dict[str, str]
    began: float
    closed_early_after_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "body": base64.b64encode(self.body).decode(),
            "headers": self.headers,
            "closed_early_after_s": self.closed_early_after_s,
        }


@dataclass
class Call:
    """A request under way, with the connection it came over."""

    server: "ScriptedUpstream"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: Seen
    data: dict[str, Any]
    keep_alive: bool = True

    @property
    def streams(self) -> bool:
        return bool(self.data.get("stream"))

    async def json(self, body: Any, status: int = 200, **headers: str) -> None:
        await self.raw(json.dumps(body).encode(), status, **{"Content-Type": "application/json", **headers})

    async def raw(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.head(status, {"Content-Length": str(len(body)), **headers})
        self.writer.write(body)
        await self.writer.drain()

    def head(self, status: int, headers: dict[str, str]) -> None:
        lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
        self.writer.write(f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode())

    def begin_stream(self) -> None:
        self.head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})

    async def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def event(self, **fields: Any) -> None:
        await self.chunk(b"data: " + json.dumps(chunk_of(**fields)).encode() + b"\n\n")

    async def end_stream(self, *, done: bool = True) -> None:
        if done:
            await self.chunk(b"data: [DONE]\n\n")
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def hang_up(self) -> None:
        self.keep_alive = False


def chunk_of(content: str | None = None, finish: str | None = None, usage: Any = None, **extra: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choices = [] if usage is not None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted-1",
        "choices": choices,
    }
    return body | ({"usage": usage} if usage is not None else {}) | extra


def answer_of(content: str | None = ANSWER, finish: str = "stop", usage: Any = USAGE, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted-1", "choices": [choice]}
    return body | ({"usage": usage} if usage else {})


async def ok(call: Call) -> None:
    await say(call, ANSWER + " " if call.streams else ANSWER)


async def say(call: Call, text: str) -> None:
    """Answers with a text, word by word where it is streamed."""
    if not call.streams:
        await call.json(answer_of(text))
        return
    call.begin_stream()
    for word in re.findall(r"\S+\s*", text):
        await call.event(content=word)
    await call.event(finish="stop")
    if (call.data.get("stream_options") or {}).get("include_usage"):
        await call.event(usage=USAGE)
    await call.end_stream()


async def slow(call: Call) -> None:
    await asyncio.sleep(0.4)
    await ok(call)


async def spaced(call: Call) -> None:
    """A stream of 32 chunks, 50 ms apart."""
    call.begin_stream()
    for i in range(32):
        await call.event(content=f"w{i} ")
        await asyncio.sleep(0.05)
    await call.event(finish="stop")
    await call.end_stream()


async def flood(call: Call) -> None:
    """A stream of 64 MB, as fast as it is taken."""
    call.begin_stream()
    for _ in range(4096):
        await call.event(content="x" * 16384)
    await call.event(finish="stop")
    await call.end_stream()


async def hang(call: Call) -> None:
    await call.reader.read(1)
    call.seen.closed_early_after_s = time.monotonic() - call.seen.began
    call.hang_up()


async def hang_mid(call: Call) -> None:
    call.begin_stream()
    await call.event(content="Once ")
    await hang(call)


async def drip(call: Call) -> None:
    """An event that never ends, a byte every 50 ms."""
    call.begin_stream()
    await call.event(content="Once ")
    while True:
        await call.chunk(b"x")
        await asyncio.sleep(0.05)


async def truncated(call: Call) -> None:
    if not call.streams:
        call.head(200, {"Content-Type": "application/json", "Content-Length": "1000"})
        call.writer.write(b'{"choices": [')
    else:
        call.begin_stream()
        await call.event(content="Once ")
    call.hang_up()


async def no_done(call: Call) -> None:
    call.begin_stream()
    await call.event(content="Once ")
    await call.event(finish="stop")
    await call.end_stream(done=False)


async def no_finish(call: Call) -> None:
    call.begin_stream()
    await call.event(content="Once ")
    await call.end_stream()


async def malformed(call: Call) -> None:
    if not call.streams:
        await call.raw(b'{"choices": [', **{"Content-Type": "application/json"})
        return
    call.begin_stream()
    await call.event(content="Once ")
    await call.chunk(b'data: {"choices": [{"delta"\n\n')
    await call.end_stream()


async def malformed_at_once(call: Call) -> None:
    """A whole event and a broken one in the same bytes, however the network cuts them."""
    call.begin_stream()
    whole = json.dumps(chunk_of(content="Once ")).encode()
    await call.chunk(b'data: %b\n\ndata: {"choices": [{"delta"\n\n' % whole)
    await call.end_stream()


async def huge_event(call: Call) -> None:
    call.begin_stream()
    await call.event(content="Once ")
    for _ in range(64):
        await call.chunk(b"x" * 65536)
    await call.end_stream()


async def error_in_band(call: Call) -> None:
    call.begin_stream()
    await call.event(content="Once ")
    await call.chunk(b'data: {"error": {"message": "the model fell over"}}\n\n')
    await call.end_stream()


async def html(call: Call) -> None:
    await call.raw(b"<html>hello</html>", **{"Content-Type": "text/html"})


async def empty_choices(call: Call) -> None:
    await call.json({**answer_of(), "choices": []})


async def null_content(call: Call) -> None:
    await call.json(answer_of(content=None))


async def odd_finish(call: Call) -> None:
    await call.json(answer_of(finish="because_i_say_so"))


async def no_usage(call: Call) -> None:
    await call.json(answer_of(usage=None))


async def tool_call(call: Call) -> None:
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    if not call.streams:
        await call.json(answer_of(content=None, finish="tool_calls", tool_calls=calls))
        return
    call.begin_stream()
    delta = {"tool_calls": [{"index": 0, **calls[0]}]}
    await call.event(choices=[{"index": 0, "delta": delta, "finish_reason": None}])
    await call.event(finish="tool_calls")
    await call.end_stream()


async def faithful(call: Call) -> None:
    """An answer whose bytes are telling: key order, spaces, number formats, unknown fields."""
    await call.raw(FAITHFUL, **{"Content-Type": "application/json"})


FAITHFUL = (
    b'{ "zeta" : 1.0, "model":"scripted-1", "big": 12345678901234567890, "choices" : [ {"index":0,'
    b'"message":{"role":"assistant","content":"caf\\u00e9 \xe2\x98\x95"},"finish_reason":"stop"} ] ,\n "usage":'
    b'{"prompt_tokens":3,"completion_tokens":1e0,"total_tokens":4} }\n'
)


def status(code: int, **headers: str) -> Callable[[Call], Awaitable[None]]:
    async def script(call: Call) -> None:
        await call.json({"error": {"message": f"scripted {code}", "type": "scripted", "code": None}}, code, **headers)

    return script


def first(failing: Callable[[Call], Awaitable[None]]) -> Callable[[Call], Awaitable[None]]:
    """Fails every other time, beginning with the first."""

    async def script(call: Call) -> None:
        turns = call.server.turns
        turns[call.seen.model] = turns.get(call.seen.model, 0) + 1
        await (failing if turns[call.seen.model] % 2 else ok)(call)

    return script


Script = Callable[[Call], Awaitable[None]]


async def longer_wins(call: Call) -> None:
    """A Judge that prefers the longer answer."""
    first, second = quoted(call)
    winner = "TIE" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    scores = {"score_a": 0.9 if winner == "A" else 0.4, "score_b": 0.9 if winner == "B" else 0.4}
    await call.json(answer_of(json.dumps({"winner": winner, "reason": "it says more", **scores})))


def quoted(call: Call) -> list[str]:
    """The texts between marks in the last message."""
    return re.findall(r"<<<\d+\n(.*?)\n\d+>>>", str(call.data["messages"][-1]["content"]), re.S)


async def merge(call: Call) -> None:
    await say(call, "Forty-two [1].")


async def join(call: Call) -> None:
    await say(call, "Six and seven make forty-two.")


async def split(call: Call) -> None:
    await say(call, 'Here: {"parts": ["What is six?", "What is seven?"]}')


def panel(third: Script | None = None, **roles: Script) -> Script:
    """Plays every role by its instructions: judges, merges, joins, splits, proposes; `roles` replaces one.

    `third` is what every third proposal does instead.
    """
    played: dict[str, Script] = {"judge": longer_wins, "merge": merge, "join": join, "split": split, **roles}
    known = {
        "compare two answers": "judge", "Write the one best answer": "merge", "Write the whole answer": "join",
        "Split the last message": "split",
    }  # fmt: skip

    async def script(call: Call) -> None:
        last = str(call.data["messages"][-1]["content"])
        role = next((role for words, role in known.items() if words in last), None)
        if role is not None:
            await played[role](call)
            return
        turns = call.server.turns
        turn = turns[call.seen.model] = turns.get(call.seen.model, 0) + 1
        if third is not None and turn % 3 == 0:
            await third(call)
        else:
            await say(call, f"{'Because it is so. ' * turn}Answer: 42")

    return script


async def prefers_violet(call: Call) -> None:
    """A Judge that prefers the answer with the word violet."""
    first, second = ("violet" in text for text in quoted(call))
    winner = "TIE" if first == second else "A" if first else "B"
    await call.json(answer_of(json.dumps({"winner": winner, "reason": "it is violet"})))


async def always_a(call: Call) -> None:
    """A Judge that prefers what stands first: each of its comparisons flips."""
    await call.json(answer_of('{"winner": "A", "reason": "it comes first", "score_a": 0.9, "score_b": 0.1}'))


def flips_at_first(verdicts: int) -> Script:
    """A Judge that is fair after so many verdicts."""

    async def script(call: Call) -> None:
        turns = call.server.turns
        turn = turns["judge"] = turns.get("judge", 0) + 1
        await (always_a if turn <= verdicts else longer_wins)(call)

    return script


async def only_plain(call: Call) -> None:
    """Says nothing where it is told how to answer, as proposers are."""
    if "Be correct first" in str(call.data["messages"][-1]["content"]):
        await null_content(call)
    else:
        await ok(call)


async def wrong(call: Call) -> None:
    await say(call, "Answer: 41")


async def breaks(call: Call) -> None:
    """Two words, then the connection ends."""
    call.begin_stream()
    await call.event(content="Forty- ")
    await call.event(content="two ")
    call.hang_up()


def sure(probability: float) -> Callable[[Call], Awaitable[None]]:
    """An answer whose tokens have this probability."""

    async def script(call: Call) -> None:
        body = answer_of("I think it is 41.")
        logprob = {"token": "41", "logprob": math.log(probability), "top_logprobs": []}
        body["choices"][0]["logprobs"] = {"content": [logprob] * 3}
        await call.json(body)

    return script


SCRIPTS: dict[str, Callable[[Call], Awaitable[None]]] = {
    "ok": ok, "slow": slow, "spaced": spaced, "flood": flood, "hang": hang, "hang_mid": hang_mid, "drip": drip,
    "truncated": truncated, "no_done": no_done, "no_finish": no_finish, "malformed": malformed,
    "malformed_at_once": malformed_at_once, "huge_event": huge_event, "error_in_band": error_in_band, "html": html,
    "empty_choices": empty_choices, "null_content": null_content, "odd_finish": odd_finish, "no_usage": no_usage,
    "tool_call": tool_call, "faithful": faithful, "bad_request": status(400), "unauthorized": status(401),
    "rate_limited": status(429), "error_500": status(500), "error_503": status(503),
    "long_retry": status(429, Retry_After="60"), "panel": panel(), "panel_refuses": panel(status(400)),
    "panel_hangs": panel(hang), "panel_wrong": panel(wrong), "wrong": wrong,
    "panel_truncated": panel(truncated), "panel_html": panel(html), "panel_empty": panel(empty_choices),
    "panel_null": panel(null_content), "judge_flips": panel(judge=flips_at_first(24)), "only_plain": only_plain,
    "prefers_violet": prefers_violet,
    "panel_breaks": panel(merge=breaks, join=breaks), "panel_mute": panel(merge=status(500), join=status(500)),
    "panel_hangs_mid": panel(merge=hang_mid, join=hang_mid), "sure": sure(0.95), "unsure": sure(0.3),
    "first_429": first(status(429, Retry_After="1")), "first_500": first(status(500)), "first_503": first(status(503)),
}  # fmt: skip


@dataclass
class ScriptedUpstream:
    """The server. `seen` grows with every request but those to /seen; tests may hold scripts back by `gate`."""

    seen: list[Seen] = field(default_factory=list)
    turns: dict[str, int] = field(default_factory=dict)
    scripts: Mapping[str, Callable[[Call], Awaitable[None]]] = field(default_factory=lambda: SCRIPTS)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first_line, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        data = json.loads(body) if body else {}
        seen = Seen(str(data.get("model")), body, headers, time.monotonic())
        call = Call(self, reader, writer, seen, data)
        if "/seen" in first_line:
            await call.json([s.as_json() for s in self.seen])
            if first_line.startswith("DELETE"):
                self.seen.clear()
                self.turns.clear()
            return True
        self.seen.append(seen)
        try:
            await self.scripts[seen.model](call)
        except ConnectionError:
            seen.closed_early_after_s = time.monotonic() - seen.began
            raise
        return call.keep_alive


async def main() -> None:
    from tests.support.scripted_oracle import ORACLE_SCRIPTS

    upstream = ScriptedUpstream(scripts={**SCRIPTS, **ORACLE_SCRIPTS})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    plain = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
    secure = await asyncio.start_server(upstream.handle, "127.0.0.1", 0, ssl=context)
    print(*(s.sockets[0].getsockname()[1] for s in (plain, secure)), flush=True)
    await plain.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
