"""A real Arbiter that is killed again and again while a consumer follows it (FAULTS 4, 25)."""

import asyncio
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import grpc

from hivemind.v1 import arbiter_pb2 as pb
from hivemind.v1 import arbiter_pb2_grpc as rpc
from tests.arbiter.rig import eventually
from tests.arbiter.test_crash import acknowledged, start
from tests.support.redis_process import RedisProcess

_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))


def server(folder: Path, redis: RedisProcess, port: int) -> subprocess.Popen[bytes]:
    settings = {"DATASETS": str(folder), "GRPC_PORT": str(port), "METRICS_PORT": "0", "LEDGER_ROTATE_BYTES": "200000"}
    environment = {**os.environ, "REDIS_URL": redis.url, **{f"HIVEMIND_{k}": v for k, v in settings.items()}}
    command = [sys.executable, "-m", "hivemind.servers.arbiter"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


async def follow(stub: rpc.ArbiterServiceStub, seen: list[tuple[int, str]]) -> None:
    """A consumer that joins again whenever its stream breaks, and acknowledges what it has noted."""
    request = pb.StreamPlatinumRequest(group="g", consumer="one", max_in_flight=64)
    while True:
        with suppress(grpc.aio.AioRpcError):
            async for message in stub.StreamPlatinum(request, wait_for_ready=True):
                if message.HasField("example"):
                    seen.append((message.example.sequence, message.example.id))
                    if len(seen) % 16 == 0:
                        held = [sequence for sequence, _ in seen[-16:]]
                        await stub.AckPlatinum(pb.AckPlatinumRequest(group="g", sequences=held))


async def test_every_acknowledged_example_reaches_a_consumer_over_kills_of_the_server(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    rng = random.Random(7)
    folder, said = tmp_path / "datasets", tmp_path / "said"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen: list[tuple[int, str]] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) as channel:
        consumer = asyncio.create_task(follow(rpc.ArbiterServiceStub(channel), seen))
        process, writer = server(folder, empty_redis, port), start(folder, "w", said)
        try:
            for _ in range(3):
                goal = len(seen) + rng.randrange(50, 200)
                await eventually(lambda goal=goal: len(seen) > goal, "examples come", 60)
                process.kill()
                process.wait()
                process = server(folder, empty_redis, port)
            writer.kill()
            writer.wait()
            told = set(acknowledged(said).values())
            await eventually(lambda: told <= {name for _, name in seen}, "all have come", 90)
        finally:
            for running in (process, writer):
                running.kill()
                running.wait()
            consumer.cancel()

    again = sum(Counter(name for _, name in seen).values()) - len({name for _, name in seen})
    assert again <= 3 * (64 + 16)
