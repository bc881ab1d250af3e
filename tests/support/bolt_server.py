"""A real Bolt database as a process: ArcadeDB. `python -m tests.support.bolt_server FOLDER BOLT_PORT HTTP_PORT`.

It crashes at interpreter exit, so the process ends itself without one.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import neo4j

from tests.support.orchestrators import free_port
from tests.support.waiting import until

PASSWORD = "bolt-password"
DATABASE = "hivemind"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class BoltServer:
    """A database on a port of its own, with its data in `folder`."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"bolt://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.support.bolt_server",
            str(self.folder),
            str(self.port),
            str(free_port()),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.folder / "server.log").open("ab") as log:  # it writes more logs into the folder that it runs in
            self._process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        until(lambda: self.rows("RETURN 1 AS one"), within_s=90, what="the database answers")

    def rows(self, query: str) -> list[dict[str, object]]:
        """What a Cypher query answers, by the official driver."""
        with (
            neo4j.GraphDatabase.driver(self.url, auth=("root", PASSWORD), connection_timeout=5) as driver,
            driver.session(database=DATABASE) as session,
        ):
            return [dict(record) for record in session.run(query)]

    def send(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def pause(self) -> None:
        """Stops all of its threads, and waits until they are."""
        self.send(signal.SIGSTOP)
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        until(lambda: all((t / "stat").read_text().rpartition(")")[2].split()[0] == "T" for t in tasks.iterdir()))

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def bolt_server(folder: Path) -> Iterator[BoltServer]:
    server = BoltServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.send(signal.SIGCONT)
        server.kill()


def _serve(folder: str, bolt_port: str, http_port: str) -> None:
    from arcadedb_embedded.server import ArcadeDBServer

    plugins = "Bolt:com.arcadedb.bolt.BoltProtocolPlugin"
    settings = {
        "server_plugins": plugins, "bolt_port": int(bolt_port), "bolt_host": "127.0.0.1", "http_port": int(http_port),
        "host": "127.0.0.1",
    }  # fmt: skip
    server = ArcadeDBServer(folder, root_password=PASSWORD, config=settings, jvm_kwargs={"heap_size": "512m"})
    server.start()
    server.create_database(DATABASE)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    os._exit(0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
