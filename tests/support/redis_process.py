"""A real Redis as a process, run as the mesh runs its own."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

from hivemind.servers.common.redis_server import find_redis, redis_command
from tests.support.waiting import until


@dataclass
class RedisProcess:
    """Redis on a port of its own, with its data in `folder`."""

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, binary: Path | None = None) -> None:
        command = redis_command(binary or find_redis().path, self.folder, host="127.0.0.1", port=self.port)
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: self.client.ping(), what="Redis answers")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def redis_process(folder: Path) -> Iterator[RedisProcess]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = RedisProcess(folder, port)
    process.start()
    try:
        yield process
    finally:
        process.kill()
