"""A Governor and an Arbiter in this process, put together as in production, with scripted paid models."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from hivemind.servers.arbiter.__main__ import build
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.common.server import MeshServer
from hivemind.servers.governor.__main__ import build as build_governor
from hivemind.servers.governor.settings import GovernorSettings
from hivemind.v1 import arbiter_pb2 as pb
from hivemind.v1 import arbiter_pb2_grpc as rpc
from hivemind.v1 import common_pb2 as common
from hivemind.v1 import governor_pb2 as governor_pb
from hivemind.v1 import governor_pb2_grpc as governor_rpc
from tests.support.redis_process import RedisProcess
from tests.support.scripted_oracle import ORACLE_SCRIPTS
from tests.support.scripted_upstream import ScriptedUpstream

DOWN = "down"
"""Names a model whose server cannot be reached."""
MASTER_PRICES = "input_price = 2.5\noutput_price = 10.0"
CALL_MICROS = 100 * 2.5 + 50 * 10.0


@dataclass
class ArbiterRig:
    """What a test of refinement works with."""

    stub: rpc.ArbiterServiceStub
    governor: governor_rpc.GovernorServiceStub
    models: ScriptedUpstream
    datasets: Path
    metrics_port: int
    governor_address: str

    async def refine(self, text: str = "What is the capital of France?", **fields: Any) -> pb.PlatinumExample:
        wanted = {"draft": "It is a big city.", **fields}
        request = pb.RefineRequest(messages=[common.ChatMessage(role="user", content=text)], **wanted)
        return (await self.stub.Refine(request, timeout=30)).example

    async def submit(self, *candidates: pb.RefinementCandidate) -> tuple[int, int, int]:
        """Accepted, duplicates, dropped."""
        answer = await self.stub.SubmitCandidates(pb.SubmitCandidatesRequest(candidates=candidates), timeout=10)
        return answer.accepted, answer.duplicates, answer.dropped

    async def configure(self, **fields: Any) -> None:
        await self.governor.SetConfig(governor_pb.SetConfigRequest(**fields))

    def lines(self) -> list[dict[str, Any]]:
        """The examples of the ledger, read from its files."""
        files = sorted(self.datasets.glob("training_metadata*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [line for line in lines if "final_platinum_answer" in line]

    def asked(self) -> list[str]:
        """The models that were asked, in order."""
        return [seen.model for seen in self.models.seen]

    async def spent(self, tenant: str = "default") -> int:
        """What the Governor has booked for refinement, in micro-USD."""
        answer = await self.governor.GetSpend(governor_pb.GetSpendRequest(tenant=tenant))
        return sum(row.cost_micros for row in answer.rows if row.purpose == common.REFINEMENT)

    async def metric(self, name: str, **labels: str) -> float:
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")).text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def candidate(number: int = 0, **fields: Any) -> pb.RefinementCandidate:
    messages = [common.ChatMessage(role="user", content=f"What is the capital of country {number}?")]
    wanted = {"request_id": f"request-{number}", "draft": "It is a big city.", "value": 0.5, **fields}
    return pb.RefinementCandidate(messages=messages, **wanted)


@asynccontextmanager
async def running_arbiter(
    home: Path,
    redis: RedisProcess,
    *,
    oracle: str = "o_good",
    arbiter: str = "o_other",
    catalogue: str = "",
    timeouts: str = "timeouts = { connect_s = 1.0, total_s = 20.0 }",
    **settings: Any,
) -> AsyncIterator[ArbiterRig]:
    """`oracle` and `arbiter` name scripts; empty: there is none."""
    models = ScriptedUpstream(scripts=ORACLE_SCRIPTS)
    server = await asyncio.start_server(models.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    tables = [_table(a, s, port, timeouts) for a, s in (("oracle", oracle), ("arbiter", arbiter)) if s]
    (home / "hivemind.toml").write_text("\n".join([*tables, catalogue.replace("PORT", str(port))]))
    common_settings = {"home": home, "config": home / "hivemind.toml", "REDIS_URL": redis.url, "drain_delay_s": 0.0}
    ports = {"grpc_port": 0, "metrics_port": 0}
    governed = GovernorSettings(**common_settings, **ports, config_poll_s=0.05)
    governor = MeshServer(governed, build_governor(governed))
    await governor.start()
    fast = {"refinement_poll_s": 0.02, "refinements_per_minute": 0.0, "spend_flush_s": 0.02, "ledger_poll_s": 0.02}
    address = f"127.0.0.1:{governor.grpc_port}"
    arbiter_settings = ArbiterSettings(**{**common_settings, **ports, "governor_address": address, **fast, **settings})
    mesh = build(arbiter_settings)
    arbiter_server = MeshServer(arbiter_settings, mesh)
    await arbiter_server.start()
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{p}") for p in (arbiter_server.grpc_port, governor.grpc_port)]
    rig = ArbiterRig(
        rpc.ArbiterServiceStub(channels[0]),
        governor_rpc.GovernorServiceStub(channels[1]),
        models,
        arbiter_settings.datasets,
        arbiter_server.metrics_port,
        address,
    )
    try:
        await eventually(lambda: _ready(arbiter_server.metrics_port), what="the Arbiter is ready")
        yield rig
    finally:
        models.gate.set()
        for channel in channels:
            await channel.close()
        await arbiter_server.drain(gently=False)
        await governor.drain(gently=False)
        server.close()


def _table(alias: str, script: str, port: int, timeouts: str) -> str:
    if script == DOWN:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
    endpoint = f'endpoints = [{{ base_url = "http://127.0.0.1:{port}/v1", model = "{script}" }}]'
    return "\n".join([f"[models.{alias}]", endpoint, "context_tokens = 128000", MASTER_PRICES, timeouts])


async def _ready(port: int) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200


async def eventually(condition: Callable[[], Any], *, within_s: float = 10.0, what: str = "the condition") -> Any:
    """What `condition` (awaited where it can be) answers once that is true; AssertionError if not in time."""
    end = asyncio.get_running_loop().time() + within_s
    while True:
        found = condition()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert asyncio.get_running_loop().time() < end, f"{what} did not come true within {within_s} s"
        await asyncio.sleep(0.02)


def told(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of an error."""
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info
