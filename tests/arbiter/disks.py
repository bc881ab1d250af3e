"""Disks that fail, for the ledger's tests."""

import errno
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hivemind.servers.arbiter.disk import RealDisk


@dataclass
class FaultyDisk(RealDisk):
    """Fails as it is told: `faults` maps a call's name to the errno of its next calls. `short`: bytes a write takes."""

    faults: dict[str, int] = field(default_factory=dict)
    short: int = 0
    calls: Counter[str] = field(default_factory=Counter)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        if "write" in self.faults and len(data) > 1:
            super().write(fd, data[: len(data) // 2], offset)  # as a disk does that runs full on the way
        self._perhaps_fail("write")
        return super().write(fd, data[: self.short or None], offset)

    def sync(self, fd: int) -> None:
        self._perhaps_fail("sync")
        super().sync(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._perhaps_fail("truncate")
        super().truncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        self._perhaps_fail("replace")
        super().replace(source, target)

    def _perhaps_fail(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.faults:
            raise OSError(self.faults[name], errno.errorcode[self.faults[name]])


class Killed(BaseException):
    """The process is gone: nothing after this call runs."""


@dataclass
class DyingDisk(RealDisk):
    """The process dies at the call number `dies_at`; a write has then reached the file up to `share` of its bytes."""

    dies_at: int
    share: float
    done: int = 0

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        if self._is_last():
            super().write(fd, data[: int(len(data) * self.share)], offset)
            raise Killed
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        if self._is_last():
            raise Killed
        super().sync(fd)

    def truncate(self, fd: int, size: int) -> None:
        if self._is_last():
            raise Killed
        super().truncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        if self._is_last():
            raise Killed
        super().replace(source, target)

    def _is_last(self) -> bool:
        self.done += 1
        return self.done > self.dies_at
