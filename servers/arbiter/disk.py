"""What the ledger does to files, behind a port, so that tests can let a disk fail; and the lock of its folder."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from hivemind.servers.common.errors import MeshError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOCK_POLL_S: Final = 0.001


class Disk(Protocol):
    """The calls that change a file. Each may raise OSError."""

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Writes at an offset; answers how many bytes were written, perhaps fewer than given."""

    def sync(self, fd: int) -> None:
        """Returns when what was written is on the disk."""

    def truncate(self, fd: int, size: int) -> None:
        """Cuts a file to a size."""

    def replace(self, source: Path, target: Path) -> None:
        """Puts a file in another's place at once."""


class RealDisk:
    """The operating system's."""

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """See Disk."""
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        """See Disk. fdatasync also stores the size, which is all of the metadata that the ledger needs."""
        os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """See Disk."""
        os.ftruncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        """See Disk. The folder is synced, so that the name is as durable as the bytes."""
        source.replace(target)
        sync_folder(target.parent)


class Handle:
    """An open file that is closed with its last user, so that a reader never reads from another file's descriptor."""

    __slots__ = ("fd", "inode")

    def __init__(self, path: Path, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self.inode = os.fstat(self.fd).st_ino

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.fd)


class FolderLock:
    """One writer at a time in a folder, over processes: a lock on a file, freed by the kernel when its owner dies."""

    def __init__(self, file: Path, *, wait_s: float) -> None:
        self._file, self._wait_s = file, wait_s
        self._handle: Handle | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock; STORE_UNAVAILABLE if another does not give it back in time."""
        handle = self._acquire(time.monotonic() + self._wait_s)
        try:
            yield
        finally:
            fcntl.flock(handle.fd, fcntl.LOCK_UN)

    def _acquire(self, end: float) -> Handle:
        while True:
            handle = self._open()
            try:
                fcntl.flock(handle.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    message = f"the ledger's folder is locked by another process for over {self._wait_s:g} s"
                    raise MeshError("STORE_UNAVAILABLE", message, retry_after_s=1.0) from None
                time.sleep(_LOCK_POLL_S)
                continue
            if is_at(handle, self._file):
                return handle
            self._handle = None  # the folder was taken away and made again

    def _open(self) -> Handle:
        if self._handle is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = Handle(self._file, os.O_RDWR | os.O_CREAT)
        return self._handle


def is_at(handle: Handle, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return path.stat().st_ino == handle.inode
    except FileNotFoundError:
        return False


def refused(error: OSError) -> MeshError:
    """What a caller is told of a disk that refuses; nothing is stored then."""
    what = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return MeshError("STORE_FULL", f"the ledger's disk is full ({what}); free some room", retry_after_s=5.0)
    return MeshError("STORE_UNAVAILABLE", f"the ledger's disk refuses ({what}); retry shortly", retry_after_s=1.0)


def write_all(disk: Disk, fd: int, data: bytes, offset: int) -> None:
    """Writes all of the data, however few bytes each call takes; OSError if the disk takes none."""
    left = memoryview(data)
    while left:
        written = disk.write(fd, left, offset)
        if written <= 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        offset += written
        left = left[written:]


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """That many bytes, fewer at the end of the file."""
    found = os.pread(fd, length, offset)
    while len(found) < length:
        more = os.pread(fd, length - len(found), offset + len(found))
        if not more:
            break
        found += more
    return found


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
