"""`hivemind up` and `down`: starts a mesh, watches over it, ends it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hivemind.cli import doctor
from hivemind.cli.home import CommandError, cannot_write, data_folders, locked, read_json, write_json
from hivemind.cli.http_api import MeshApi
from hivemind.cli.mesh import (
    LATER,
    MeshPlan,
    children_of,
    make_plan,
    prometheus_targets,
    render_envoy,
    server_of,
)
from hivemind.cli.supervisor import Supervisor

READY_LIMIT_S: Final = 120.0
QUESTION: Final = "Name three colours."
_POLL_S: Final = 0.1
_OF_EACH_SERVER: Final = (
    "/api/models", "/api/config/governor", "/api/platinum:stats", "/api/adapters", "/api/train", "/api/orchestrator",
)  # fmt: skip

Say = Callable[[str], None]


class Mesh:
    """One mesh from start to end. `say` prints a line for the operator."""

    def __init__(self, plan: MeshPlan, environment: Mapping[str, str], say: Say) -> None:
        self.plan, self._environment, self._say = plan, environment, say
        self._supervisor = Supervisor(on_death=self._on_death)
        self._ended = asyncio.Event()
        self._began = time.monotonic()

    async def run(self) -> None:
        """Starts everything, reports, and keeps it until SIGINT or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ended.set)
        try:
            ended = asyncio.create_task(self._ended.wait())
            started = asyncio.create_task(self._start())
            await asyncio.wait((ended, started), return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                started.result()
                await ended
            else:
                started.cancel()
                await asyncio.gather(started, return_exceptions=True)
        finally:
            await self._stop()

    async def _start(self) -> None:
        plan = self.plan
        envoy_config = plan.home / "run" / "envoy.json"
        envoy_config.write_text(render_envoy(plan, self._environment))
        envoy_config.chmod(0o600)
        children = children_of(plan, self._environment, envoy_config)
        for child in children:
            if child.name not in LATER:
                self._supervisor.start(child)
        write_json(plan.home / "run" / "mesh.json", plan.as_json())
        write_json(plan.home / "run" / "prometheus_targets.json", prometheus_targets(plan))
        self._write_state(ready=False)
        async with asyncio.timeout(READY_LIMIT_S):
            needed = [name for name in (*plan.processes, "envoy") if name not in LATER]
            await asyncio.gather(*map(self._until_ready, needed))
            await asyncio.gather(*map(self._until_reached, _OF_EACH_SERVER))
        answer = await asyncio.to_thread(_first_answer, MeshApi(_client_host(plan.host), plan.port))
        self._write_state(ready=True)
        for child in children:
            if child.name in LATER:
                self._supervisor.start(child)
        self._report(answer)

    async def _until_ready(self, name: str) -> None:
        ports = self.plan.processes.get(name)
        port = ports.metrics if ports is not None else self.plan.port
        host = _client_host(self.plan.host)
        while await _status(host, port, "/readyz") != 200:
            if self._supervisor.restarts(name) >= 3:
                raise CommandError(f"{name} does not start: {_last_line(self.plan.home / 'logs' / f'{name}.log')}")
            await asyncio.sleep(_POLL_S)
        self._say(f"  ready  {name:<18}{time.monotonic() - self._began:5.1f} s")

    async def _until_reached(self, path: str) -> None:
        """Envoy looks for its servers by itself: it may know one a little later than that one is ready."""
        while True:
            if await _status(_client_host(self.plan.host), self.plan.port, path) not in (0, 503):
                return
            await asyncio.sleep(_POLL_S)

    async def _stop(self) -> None:
        """Envoy first, so that nothing new comes in; Redis last, so that everything can be written."""
        self._say("ending ...")
        names = list(self.plan.processes)
        routers = [n for n in names if server_of(n) == "router"]
        await self._supervisor.stop(["envoy"], limit_s=1.0)
        await self._supervisor.stop(routers, limit_s=3.0)
        await self._supervisor.stop([n for n in names if n not in routers], limit_s=2.5)
        await self._supervisor.stop(["redis"], limit_s=2.0)
        for name in ("up.json", "mesh.json", "prometheus_targets.json"):
            (self.plan.home / "run" / name).unlink(missing_ok=True)
        self._say("ended")

    def _report(self, answer: str) -> None:
        plan, base = self.plan, f"http://{_client_host(self.plan.host)}:{self.plan.port}"
        self._say(f"\nhivemind answers at {base} after {time.monotonic() - self._began:.1f} s\n")
        self._say(f"  {QUESTION}\n  > {answer}\n")
        self._say(f"  OpenAI   {base}/v1    REST  {base}/api    gRPC  {_client_host(plan.host)}:{plan.port}")
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": QUESTION}]})
        self._say(f"  try      curl -s {base}/v1/chat/completions -d '{body}'")
        self._say(f"  state    {plan.home}")
        self._say("  keys     " + ", ".join(doctor.spoken_keys(self._environment)))
        self._say("  budgets  " + _budgets(MeshApi(_client_host(plan.host), plan.port)))
        for part in doctor.examine(plan.home, plan.config, self._environment):
            if not part.present:
                self._say(f"  without  {part.name}: would add {part.adds}; {part.get}")
        self._say("\nCtrl-C ends it.")

    def _on_death(self, name: str, code: int, wait_s: float) -> None:
        self._say(f"  {name} ended with code {code}; started again {f'in {wait_s:g} s' if wait_s else 'at once'}")

    def _write_state(self, *, ready: bool) -> None:
        state = {"pid": os.getpid(), "started": process_start(os.getpid()), "ready": ready}
        write_json(self.plan.home / "run" / "up.json", state)


def up(*, home: Path, config: Path, port: int, replicas: Mapping[str, int], say: Say) -> None:
    """Runs a mesh in the foreground until it is told to end. CommandError if it cannot start."""
    try:
        _up(home=home, config=config, port=port, replicas=replicas, say=say)
    except OSError as error:
        raise cannot_write(error, home) from error


def _up(*, home: Path, config: Path, port: int, replicas: Mapping[str, int], say: Say) -> None:
    environment = doctor.environment()
    with locked(home):
        doctor.check_needed(doctor.examine(home, config, environment))
        plan = make_plan(
            home=home,
            config=config,
            host=environment.get("HIVEMIND_HOST") or "127.0.0.1",
            port=port,
            redis_url=environment.get("REDIS_URL") or None,
            engine=_needs_engine(config, environment),
            replicas=replicas,
        )
        say(f"starting {len(plan.processes) + 2} processes on {home} ...")
        try:
            asyncio.run(Mesh(plan, environment, say).run())
        except TimeoutError:
            raise CommandError(f"the mesh was not ready in {READY_LIMIT_S:g} s; look at {home / 'logs'}") from None


def up_detached(*, home: Path, arguments: list[str], say: Say) -> None:
    """Starts `hivemind up` in a session of its own and returns when it has answered once."""
    (home / "logs").mkdir(parents=True, exist_ok=True)
    log = home / "logs" / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hivemind.cli", "up", *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, **data_folders(os.environ), "HIVEMIND_HOME": str(home), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        while not _is_ready(home, process.pid):
            if process.poll() is not None:
                raise CommandError("the mesh did not start: " + _last_line(log))
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(15)
        raise
    say(log.read_text().rstrip().removesuffix("Ctrl-C ends it.").rstrip())
    say("\n`hivemind down` ends it.")


def down(*, home: Path, say: Say) -> None:
    """Ends the mesh of a state folder and waits for it."""
    state = read_json(home / "run" / "up.json")
    if not isinstance(state, dict) or process_start(int(state["pid"])) != state["started"]:
        raise CommandError(f"no mesh runs on {home}")
    pid = int(state["pid"])
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 20
    while process_start(pid) == state["started"]:
        if time.monotonic() > end:
            raise CommandError(f"the mesh with pid {pid} does not end; look at {home / 'logs'}")
        time.sleep(_POLL_S)
    say("ended")


def process_start(pid: int) -> float | None:
    """When a process began, None if there is none (or only its remains). With the pid it names a process for good."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


async def _status(host: str, port: int, path: str) -> int:
    """The status that a GET is answered with, 0 if none comes within a second."""
    with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError):
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: mesh\r\nConnection: close\r\n\r\n".encode())
                return int((await reader.readline()).split()[1])
            finally:
                writer.close()
    return 0


def _needs_engine(config: Path, environment: Mapping[str, str]) -> bool:
    """Whether the courier is served here: it is not if HIVEMIND_COURIER or the catalogue names a server."""
    from hivemind.servers.common.catalogue import COURIER, load_catalogue

    if environment.get("HIVEMIND_COURIER", "").startswith(("http://", "https://")):
        return False
    marker = "http://engine.invalid/v1"
    courier = load_catalogue(config, {**environment, "HIVEMIND_ENGINE_URL": marker}).get(COURIER)
    return courier is not None and courier.endpoints[0].base_url == marker


def _first_answer(api: MeshApi) -> str:
    body = {"model": "auto", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 48}
    last: Exception | None = None
    for _ in range(20):
        try:
            answer: dict[str, Any] = api.post("/v1/chat/completions", body)
            return " ".join(str(answer["choices"][0]["message"]["content"]).split())
        except CommandError as error:
            last = error
            time.sleep(0.25)
    raise CommandError(f"the mesh runs but does not answer: {last}")


def _budgets(api: MeshApi) -> str:
    try:
        budgets = api.get("/api/spend").get("budgets", [])
    except CommandError as error:
        return str(error)
    texts = [
        f"{int(b['budget']['limit_micros']) / 1e6:g} USD a {b['budget']['period'].lower()} for "
        f"{b['budget']['purpose'].lower()}{'' if b['budget']['tenant'] == '*' else ' of ' + b['budget']['tenant']}"
        for b in budgets
    ]
    serving = any(b["budget"]["purpose"] == "SERVING" for b in budgets)
    return "; ".join(texts + ([] if serving else ["serving has no limit (hivemind governor set budget=*:DAY:5000000)"]))


def _is_ready(home: Path, pid: int) -> bool:
    state = read_json(home / "run" / "up.json")
    return isinstance(state, dict) and state.get("pid") == pid and bool(state.get("ready"))


def _client_host(host: str) -> str:
    """Where a client on this machine reaches a bind address."""
    return "127.0.0.1" if host in ("", "0.0.0.0", "::") else host


def _last_line(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1][:400] if lines else f"see {log}"
