"""Which processes a mesh has, where each listens, and how each is started."""

import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hivemind.cli.home import CommandError, data_folders
from hivemind.cli.supervisor import Child

SERVERS: Final = ("governor", "router", "arbiter", "adapter_registry", "trainer", "orchestrator")
LATER: Final = ("lorax_client",)
"""What no answer needs: started after the first one, so that it does not slow the start."""
_ADDRESS_OF: Final = {
    "router": "HIVEMIND_ROUTER_ADDRESS",
    "governor": "HIVEMIND_GOVERNOR_ADDRESS",
    "adapter_registry": "HIVEMIND_REGISTRY_ADDRESS",
    "orchestrator": "HIVEMIND_ORCHESTRATOR_ADDRESS",
    "arbiter": "HIVEMIND_ARBITER_ADDRESS",
    "trainer": "HIVEMIND_TRAINER_ADDRESS",
}


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one process listens; 0 for what it does not have."""

    grpc: int = 0
    http: int = 0
    metrics: int = 0


@dataclass(slots=True)
class MeshPlan:
    """A mesh before it is started. `processes`: name (`router`, `router-2`, ...) to its ports."""

    home: Path
    config: Path
    host: str
    port: int
    admin_port: int
    redis_url: str
    redis_port: int
    processes: dict[str, Ports] = field(default_factory=dict)

    def of(self, server: str) -> list[Ports]:
        """The replicas of a server."""
        return [p for name, p in self.processes.items() if server_of(name) == server]

    def as_json(self) -> dict[str, Any]:
        """What run/mesh.json says."""
        processes = {
            name: {kind: port for kind, port in (("grpc", p.grpc), ("http", p.http), ("metrics", p.metrics)) if port}
            for name, p in self.processes.items()
        }
        return {
            "host": self.host,
            "port": self.port,
            "envoy_admin_port": self.admin_port,
            "redis_url": self.redis_url,
            "processes": processes,
        }


def server_of(name: str) -> str:
    """The server that a process is a replica of."""
    return name.rpartition("-")[0] or name if name.rpartition("-")[2].isdecimal() else name


def parse_replicas(text: str) -> dict[str, int]:
    """Reads `router=2,arbiter=1`. CommandError for anything else."""
    replicas: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, count = part.partition("=")
        if name not in SERVERS or not count.isdecimal() or not 1 <= int(count) <= 16:
            raise CommandError(f"replicas {part!r}: give NAME=COUNT with a name of {', '.join(SERVERS)} and 1 to 16")
        replicas[name] = int(count)
    return replicas


def make_plan(
    *, home: Path, config: Path, host: str, port: int, redis_url: str | None, engine: bool, replicas: Mapping[str, int]
) -> MeshPlan:
    """Chooses a port for everything. CommandError if the mesh's own is taken."""
    names = [
        name if i == 0 else f"{name}-{i + 1}" for name in SERVERS for i in range(replicas.get(name, 1))
    ] + (["engine"] if engine else []) + list(LATER)  # fmt: skip
    free = iter(_free_ports(3 * len(names) + 3))
    plan = MeshPlan(home, config, host, _front_port(host, port) or next(free), next(free), redis_url or "", 0)
    if redis_url is None:
        plan.redis_port = next(free)
        plan.redis_url = f"redis://127.0.0.1:{plan.redis_port}/0"
    for name in names:
        server = server_of(name)
        grpc = 0 if server in ("engine", *LATER) else next(free)
        http = next(free) if server in ("router", "engine") else 0
        plan.processes[name] = Ports(grpc, http, next(free))
    return plan


def children_of(plan: MeshPlan, environment: Mapping[str, str], envoy_config: Path) -> list[Child]:
    """How to start all of it, in the order in which it is started."""
    from hivemind.envoy.config import envoy_binary, envoy_command
    from hivemind.servers.common.redis_server import RedisMissing, find_redis, redis_command

    shared = shared_environment(plan, environment)
    logs = plan.home / "logs"
    children = []
    if plan.redis_port:
        try:
            command = redis_command(find_redis().path, plan.home / "redis", host="127.0.0.1", port=plan.redis_port)
        except RedisMissing as error:
            raise CommandError(str(error)) from error
        children.append(Child("redis", command, shared, logs / "redis.log"))
    for name, ports in plan.processes.items():
        own = {
            "HIVEMIND_GRPC_PORT": str(ports.grpc),
            "HIVEMIND_HTTP_PORT": str(ports.http),
            "HIVEMIND_METRICS_PORT": str(ports.metrics),
        }
        package = "training" if name in LATER else "servers"
        command = [sys.executable, "-m", f"hivemind.{package}.{server_of(name)}"]
        children.append(Child(name, command, {**shared, **own}, logs / f"{name}.log", signal.SIGINT))
    try:
        command = envoy_command(envoy_binary(), envoy_config)
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error
    children.append(Child("envoy", command, shared, logs / "envoy.log"))
    return children


def shared_environment(plan: MeshPlan, environment: Mapping[str, str]) -> dict[str, str]:
    """What every process of the mesh is told."""
    addresses = {
        variable: ",".join(f"{plan.host}:{p.grpc}" for p in plan.of(server)) for server, variable in _ADDRESS_OF.items()
    }
    engine = plan.processes.get("engine")
    url = {"HIVEMIND_ENGINE_URL": f"http://{plan.host}:{engine.http}/v1"} if engine else {}
    return {
        **environment,
        **addresses,
        **url,
        **data_folders(environment),
        "HIVEMIND_HOME": str(plan.home),
        "HIVEMIND_CONFIG": str(plan.config),
        "HIVEMIND_HOST": plan.host,
        "REDIS_URL": plan.redis_url,
        "PYTHONUNBUFFERED": "1",
    }


def render_envoy(plan: MeshPlan, environment: Mapping[str, str]) -> str:
    """Envoy's configuration for this mesh."""
    from hivemind.envoy.config import SERVICE_OF, Endpoint, EnvoyPlan, render_config
    from hivemind.servers.common.settings import ServerSettings

    settings = ServerSettings()
    return render_config(
        EnvoyPlan(
            host=plan.host,
            port=plan.port,
            admin_port=plan.admin_port,
            endpoints={s: tuple(Endpoint(plan.host, p.grpc) for p in plan.of(s)) for s in SERVICE_OF},
            router_http=tuple(Endpoint(plan.host, p.http) for p in plan.of("router")),
            access_log=plan.home / "logs" / "access.log",
            max_body=settings.max_body,
            deadline_s=settings.deadline_s + 5,
        )
    )


def prometheus_targets(plan: MeshPlan) -> list[dict[str, Any]]:
    """A file_sd target list: every metrics port of the mesh."""
    return [
        {"targets": [f"{plan.host}:{p.metrics}"], "labels": {"job": "hivemind", "server": server_of(n), "process": n}}
        for n, p in plan.processes.items()
    ] + [
        {
            "targets": [f"127.0.0.1:{plan.admin_port}"],
            "labels": {"job": "envoy", "server": "envoy", "process": "envoy", "__metrics_path__": "/stats/prometheus"},
        }
    ]


def _front_port(host: str, port: int) -> int:
    """The mesh's own port if it is free, 0 if any will do."""
    if port == 0:
        return 0
    try:
        with socket.create_server((host, port)):
            return port
    except PermissionError:
        raise CommandError(
            f"port {port} needs more rights; set HIVEMIND_PORT to one above 1023, or 0 for any"
        ) from None
    except OSError as error:
        cure = "end what listens there, set HIVEMIND_PORT to another, or 0 for any free one"
        raise CommandError(f"port {port} on {host} cannot be had ({os.strerror(error.errno or 0)}); {cure}") from None


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held until the last is found, so that none comes twice."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports
