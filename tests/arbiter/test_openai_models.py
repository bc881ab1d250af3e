"""The adapter to paid models: what is tried again, what may be on the bill, how much is read."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hivemind.servers.arbiter.openai_models import OpenAIModels
from hivemind.servers.arbiter.ports import ModelCallFailed, ModelReply
from hivemind.servers.arbiter.verdict import VERDICT
from hivemind.servers.common.catalogue import Endpoint, Model, Timeouts
from tests.support.scripted_oracle import ORACLE_SCRIPTS, first_failing
from tests.support.scripted_upstream import Call, ScriptedUpstream, status

TIMES = Timeouts(connect_s=1.0, total_s=5.0)


async def redirects(call: Call) -> None:
    await call.raw(b"", 307, Location="http://127.0.0.1:9/v1/chat/completions")


async def broken_off(call: Call) -> None:
    call.head(200, {"Content-Type": "application/json", "Content-Length": "1000"})
    call.writer.write(b'{"choices": [')
    call.hang_up()


async def hangs_up(call: Call) -> None:
    raise ConnectionError("before the first byte")


MORE = {"hangs_up": hangs_up, "redirects": redirects, "broken_off": broken_off, "o_400": status(400)}
MORE["o_500_once"] = first_failing(status(500), ORACLE_SCRIPTS["o_good"], 1)


class Rig:
    """The adapter before a scripted server."""

    def __init__(self, port: int, server: ScriptedUpstream) -> None:
        self.models, self._port, self.server = OpenAIModels(sleep=lambda _: asyncio.sleep(0)), port, server

    async def ask(self, *scripts: str, times: Timeouts = TIMES) -> ModelReply:
        url = f"http://127.0.0.1:{self._port}/v1"
        endpoints = tuple(Endpoint(i, url, script, "sk-secret") for i, script in enumerate(scripts))
        messages = [{"role": "system", "content": "judge"}, {"role": "user", "content": "this"}]
        model = Model("oracle", endpoints, timeouts=times)
        return await self.models.ask(model, messages, schema=VERDICT, max_tokens=77, within_s=9.0)

    @property
    def asked(self) -> list[str]:
        return [s.model for s in self.server.seen]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    upstream = ScriptedUpstream(scripts={**ORACLE_SCRIPTS, **MORE})
    server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
    made = Rig(server.sockets[0].getsockname()[1], upstream)
    yield made
    await made.models.close()
    server.close()


async def test_it_asks_for_the_schema_and_answers_what_the_api_named(rig: Rig) -> None:
    reply = await rig.ask("o_good")

    assert (reply.model, reply.whole, reply.prompt_tokens, reply.completion_tokens) == ("o_good-2026-11", True, 100, 50)
    sent = rig.server.seen[0]
    assert b'"strict":true' in sent.body.replace(b" ", b"")
    assert b'"max_tokens":77' in sent.body.replace(b" ", b"")
    assert sent.headers["authorization"] == "Bearer sk-secret"


async def test_what_may_pass_is_tried_twice_and_then_at_the_next_endpoint(rig: Rig) -> None:
    await rig.ask("o_500_once", "o_500")
    assert rig.asked == ["o_500_once", "o_500", "o_500_once"]

    with pytest.raises(ModelCallFailed, match="status 500") as failed:
        await rig.ask("o_500")
    assert rig.asked[-2:] == ["o_500", "o_500"]
    assert not failed.value.may_have_cost


@pytest.mark.parametrize(
    ("script", "why", "may_have_cost", "passing"),
    [
        ("o_401", "status 401", False, True),
        ("o_400", "status 400", False, True),
        ("o_ten_megabytes", "more than 1048576 bytes", True, False),
        ("broken_off", "broke off", True, True),
        ("redirects", "status 307", False, True),
        ("hangs_up", "did not answer", True, True),
    ],
)
async def test_what_will_not_pass_is_tried_once(
    rig: Rig, script: str, why: str, may_have_cost: bool, passing: bool
) -> None:
    with pytest.raises(ModelCallFailed, match=why) as failed:
        await rig.ask(script)

    assert (failed.value.may_have_cost, failed.value.passing) == (may_have_cost, passing)
    assert rig.asked == [script]
    assert "sk-secret" not in str(failed.value)


async def test_a_model_that_does_not_answer_in_time_may_have_cost(rig: Rig) -> None:
    with pytest.raises(ModelCallFailed, match="did not answer") as failed:
        await rig.ask("o_hangs", times=Timeouts(connect_s=1.0, total_s=0.3))

    assert failed.value.may_have_cost
