"""Stands for the program of a training job: honours its protocol, trains nothing. `--run FOLDER`.

What it does stands in `script.json` of the state folder (the run folder's grandparent), or in that of the run folder.
Every step is noted in `steps.jsonl` of the run folder, so that a test sees what was done twice.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Script:
    """`hold_at`: before this step it waits for the file `go`. `checkpoint_every`: steps between checkpoints. `kill_at`:
    per attempt the step in which it kills itself, 0 for none. `nan_at`: the step whose loss is NaN. `exit`: its exit
    code after the last step, with `reason`. `deaf`: it ignores SIGTERM. `mute_at`: from this step on it gives no sign
    of life and goes nowhere. `garbage`: writes what is no log. `full_at`: the disk is full when it saves."""

    steps: int = 6
    hold_at: int = 0
    checkpoint_every: int = 2
    kill_at: list[int] = field(default_factory=list)
    nan_at: int = 0
    exit: int = 0
    reason: str = ""
    deaf: bool = False
    mute_at: int = 0
    garbage: bool = False
    full_at: int = 0
    adapter: bool = True


class Job:
    def __init__(self, run: Path) -> None:
        self.run, self.ended = run, False
        own = run / "script.json"
        file = own if own.exists() else run.parent.parent / "script.json"
        self.script = Script(**json.loads(file.read_text())) if file.exists() else Script()
        self.config = json.loads((run / "config.json").read_text())
        if self.script.deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: Any) -> None:
        self.ended = True

    def log(self, event: str, **fields: Any) -> None:
        with (self.run / "log.jsonl").open("a") as log:
            log.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def checkpoint(self) -> int:
        file = self.run / "checkpoint.json"
        return int(json.loads(file.read_text())["step"]) if file.exists() else 0

    def save(self, step: int) -> None:
        (self.run / "aside.json").write_text(json.dumps({"step": step}))
        (self.run / "aside.json").replace(self.run / "checkpoint.json")
        self.log("checkpoint", step=step)

    def attempt(self) -> int:
        file = self.run / "attempts"
        count = int(file.read_text()) if file.exists() else 0
        file.write_text(str(count + 1))
        return count

    def train(self) -> int:
        attempt, first = self.attempt(), self.checkpoint()
        self.log("started", backend="cpu", reason="no CUDA", resumed_from=first, max_steps=self.script.steps)
        for step in range(first + 1, self.script.steps + 1):
            self.one_step(step, attempt)
            if self.ended:
                self.save(step)
                return 3
            if step % self.script.checkpoint_every == 0:
                self.save(step)
        return self.finish()

    def one_step(self, step: int, attempt: int) -> None:
        while step == self.script.hold_at and not (self.run / "go").exists() and not self.ended:
            (self.run / "heartbeat").touch()
            time.sleep(0.01)
        while self.script.mute_at and step >= self.script.mute_at and not self.ended:
            time.sleep(0.01)
        if attempt < len(self.script.kill_at) and self.script.kill_at[attempt] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.script.full_at:
            self.log("failed", reason="the disk is full: No space left on device; free some of HIVEMIND_HOME")
            sys.exit(1)
        with (self.run / "steps.jsonl").open("a") as notes:
            notes.write(json.dumps({"step": step, "pid": os.getpid()}) + "\n")
        if self.script.garbage:
            with (self.run / "log.jsonl").open("a") as log:
                log.write('{"event":"step","st\n[1]\n')
        loss = float("nan") if step == self.script.nan_at else 2.0 / step
        eta = 0.02 * (self.script.steps - step)
        self.log("step", step=step, max_steps=self.script.steps, loss=loss, tokens_per_second=500.0, eta_s=eta)
        time.sleep(0.02)

    def finish(self) -> int:
        self.log("evaluating")
        (self.run / "data_card.json").write_text(json.dumps({"platinum": {"ids": ["a", "b"], "sequences": [4, 9]}}))
        self.log("evaluated", passed=self.script.exit != 4, heldout_loss=0.5, heldout_gain=0.75)
        if self.script.exit:
            self.log("rejected" if self.script.exit == 4 else "failed", reason=self.script.reason)
            print("some words about it", file=sys.stderr)
            return self.script.exit
        if self.script.adapter:
            (self.run / "adapter").mkdir(exist_ok=True)
            (self.run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        self.log("done")
        return 0


if __name__ == "__main__":
    sys.exit(Job(Path(sys.argv[2])).train())
