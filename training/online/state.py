"""The learner's state on disk: `state/<number>/` with learner.json and weights.safetensors, whole or not there.

Written aside, brought to the disk, renamed; the one before goes when the next is there. Where only texts changed, the
weights are linked, not written again.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from hivemind.training.adapter_files import sync_folder, sync_path

RECORD: Final = "learner.json"
WEIGHTS: Final = "weights.safetensors"


@dataclass(slots=True)
class Progress:
    """What was done so far, and where.

    `cursor`: the place in the inbox up to which lessons were taken over; `champion`: the adapter that the weights began
    as; `number`: of the last publication that was written; `adapter_id`, `batch_closed`, `published_at`: of the last
    one that was registered; `versions`: the last hundred of these; `unpublished`: when the first batch was closed that
    no publication answers to, 0 for none; `drains`: requests to drain that were followed. Times in Unix seconds.
    """

    cursor: str
    run: str
    champion: str = ""
    learnt: int = 0
    batches: int = 0
    published: int = 0
    refused: int = 0
    steps: int = 0
    tokens: int = 0
    step_seconds: float = 0.0
    cpu_seconds: float = 0.0
    first_sequence: int = 0
    last_sequence: int = 0
    number: int = 0
    adapter_id: str = ""
    batch_closed: float = 0.0
    published_at: float = 0.0
    unpublished: float = 0.0
    drains: int = 0
    note: str = ""
    evaluation: dict[str, float] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)

    def learn(self, sequence: int) -> None:
        """Counts an example that is in the weights from now on; `sequence`: its place in the ledger, 0 for none."""
        self.learnt += 1
        if sequence:
            self.last_sequence = max(self.last_sequence, sequence)
            self.first_sequence = min(self.first_sequence or sequence, sequence)

    def leave_out(self, reason: str, count: int) -> None:
        """Counts examples that are not learnt."""
        if count:
            self.set_aside[reason] = self.set_aside.get(reason, 0) + count

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the CPU time of a block."""
        began = time.process_time()
        try:
            yield
        finally:
            self.cpu_seconds += time.process_time() - began


class StateFolder:
    """The states of one learner; only its process writes there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def load(self) -> tuple[dict[str, Any], Mapping[str, Any]] | None:
        """The record and the tensors of the newest state; None where there is none."""
        from safetensors.torch import load_file

        newest = self._newest()
        if newest is None:
            return None
        tensors: Mapping[str, Any] = load_file(newest / WEIGHTS) if (newest / WEIGHTS).exists() else {}
        return orjson.loads((newest / RECORD).read_bytes()), tensors

    def save(self, record: Mapping[str, Any], tensors: Mapping[str, Any] | None) -> None:
        """Replaces the state. `tensors` None: those of the state before stay."""
        from safetensors.torch import save_file

        before = self._newest()
        number = int(before.name) + 1 if before is not None else 1
        aside = self._folder / f".{number:08d}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            (aside / RECORD).write_bytes(orjson.dumps(record))
            if tensors is not None:
                save_file(dict(tensors), aside / WEIGHTS)
            elif before is not None and (before / WEIGHTS).exists():
                os.link(before / WEIGHTS, aside / WEIGHTS)
            sync_folder(aside)
            aside.rename(self._folder / f"{number:08d}")
            sync_path(self._folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in self._states()[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def _states(self) -> list[Path]:
        return sorted(p for p in self._folder.iterdir() if p.name.isdecimal())

    def _newest(self) -> Path | None:
        return next(reversed(self._states()), None)
