"""Orchestrators as processes, with their clients."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from hivemind.v1 import orchestrator_pb2 as pb
from hivemind.v1 import orchestrator_pb2_grpc as rpc
from tests.support.redis_process import RedisProcess
from tests.support.waiting import until

QUICK = {
    "HIVEMIND_LEASE_TTL_S": "1.5", "HIVEMIND_LEASE_RENEW_S": "0.4", "HIVEMIND_LEASE_RETRY_S": "0.2",
    "HIVEMIND_CYCLE_EVERY_S": "0.2", "HIVEMIND_ORCHESTRATOR_POLL_S": "0.05", "HIVEMIND_DRAIN_DELAY_S": "0",
}  # fmt: skip
TTL_S = 1.5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass
class Orchestrator:
    """One process."""

    process: subprocess.Popen[bytes]
    stub: rpc.OrchestratorServiceStub
    metrics_port: int
    log: Path

    def status(self) -> pb.OrchestratorStatus:
        found: pb.OrchestratorStatus = self.stub.GetStatus(pb.GetStatusRequest(), timeout=2)
        return found

    @property
    def leads(self) -> bool:
        return bool(self.status().is_leader)

    @property
    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)


@contextmanager
def orchestrator(redis: RedisProcess, home: Path, name: str = "one", **settings: str) -> Iterator[Orchestrator]:
    ports = [free_port() for _ in range(3)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HIVEMIND_")}
    nobody = f"127.0.0.1:{ports[2]}"
    environment = {
        **clean, **QUICK, "HIVEMIND_HOME": str(home), "HIVEMIND_CONFIG": str(home / "hivemind.toml"),
        "REDIS_URL": redis.url, "HIVEMIND_GRPC_PORT": str(ports[0]), "HIVEMIND_METRICS_PORT": str(ports[1]),
        "HIVEMIND_ROUTER_ADDRESS": nobody, "HIVEMIND_REGISTRY_ADDRESS": nobody, "HIVEMIND_GOVERNOR_ADDRESS": nobody,
        **settings,
    }  # fmt: skip
    home.mkdir(exist_ok=True)
    log = home / f"{name}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "hivemind.servers.orchestrator"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    channel = grpc.insecure_channel(f"127.0.0.1:{ports[0]}")
    running = Orchestrator(process, rpc.OrchestratorServiceStub(channel), ports[1], log)
    try:
        until(lambda: running.ready, within_s=30, what=f"{name} is ready")
        yield running
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        channel.close()


@contextmanager
def three(redis: RedisProcess, home: Path, **settings: str) -> Iterator[list[Orchestrator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(orchestrator(redis, home, name, **settings)) for name in ("a", "b", "c")]
