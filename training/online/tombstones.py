"""Which platinum examples were forgotten, as the ledger says it. Reads only what was added since the last look."""

import os
from pathlib import Path

from hivemind.servers.arbiter.chain import segments_of
from hivemind.servers.arbiter.lines import BadLine, Stub, Tombstone, parse


class Tombstones:
    """The ledger's folder, which need not be there yet."""

    def __init__(self, datasets: Path) -> None:
        self._datasets = datasets
        self._read: dict[int, int] = {}

    def fresh(self) -> set[str]:
        """Ids that were forgotten since the last look; at the first all that ever were."""
        found: set[str] = set()
        for file in segments_of(self._datasets) if self._datasets.is_dir() else ():
            try:
                found |= self._added(file)
            except OSError:
                continue
        return found

    def _added(self, file: Path) -> set[str]:
        """What whole lines say that were not read before; a file that shrank is read from its start."""
        found: set[str] = set()
        with file.open("rb") as lines:
            about = os.fstat(lines.fileno())
            at = self._read.get(about.st_ino, 0)
            at = at if at <= about.st_size else 0
            lines.seek(at)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                at += len(line)
                if b'"role":"tombstone"' in line or b'"role":"forgotten"' in line:
                    found |= _names(line)
            self._read[about.st_ino] = at
        return found


def _names(line: bytes) -> set[str]:
    try:
        held, _ = parse(line.rstrip(b"\n"))
    except BadLine:
        return set()
    if isinstance(held, Tombstone):
        return set(held.ids)
    return {held.id} if isinstance(held, Stub) else set()
