"""The run folders: what the process of a job is to do, and what it left behind. `<home>/runs/<id>/`.

config.json is what training/sft_config.py reads; the Trainer writes it without importing that, and has it checked by
`python -m hivemind.training.sft_config --check FILE`.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hivemind.servers.common.errors import MeshError, Violation
from hivemind.servers.trainer.data_paths import located
from hivemind.servers.trainer.jobs import TRAIN_SHARE, Job, Result
from hivemind.servers.trainer.order import CPU, Recipe
from hivemind.servers.trainer.ports import Champion

CONFIG_FILE: Final = "config.json"
CARD_FILE: Final = "data_card.json"
ADAPTER: Final = "adapter"
WEIGHTS: Final = "adapter_model.safetensors"
BAD_CONFIG: Final = 5
_MAX_JSON: Final = 64 << 20
_NAMED_FIELD: Final = re.compile(r"([a-z_]+(?:[.\[][a-z_0-9.\[\]]*)?): (.+)", re.DOTALL)
_FIELD_HERE: Final = {
    "base": "base_model",
    "base_weights": "base_model",
    "backend": "recipe.backend",
    "seed": "recipe.seed",
}


@dataclass(frozen=True, slots=True)
class Folders:
    """Where things lie: the state folder, the platinum ledger, the adapters."""

    home: Path
    datasets: Path
    adapters: Path


class LocalRuns:
    """Implements ports.Runs. `check`: the command that looks at a config file, which is given as its last argument;
    `refused_tenants`: those whose examples are not learnt from."""

    def __init__(
        self, folders: Folders, *, check: Sequence[str], check_s: float, environment: Mapping[str, str],
        refused_tenants: Callable[[], Sequence[str]],
    ) -> None:  # fmt: skip
        self._folders, self._check, self._check_s = folders, tuple(check), check_s
        self._environment, self._refused_tenants = dict(environment), refused_tenants

    async def write(self, job: Job, champion: Champion | None) -> None:
        """See ports.Runs."""
        try:
            await asyncio.to_thread(self._write, job, champion)
        except OSError as error:
            message = f"the run folder cannot be written ({error.strerror}); free some disk of HIVEMIND_HOME"
            raise MeshError("STORE_FULL", message) from error

    async def check(self, job: Job) -> None:
        """See ports.Runs."""
        try:
            done = await asyncio.to_thread(self._ask, self._folder(job.id) / CONFIG_FILE)
        except subprocess.TimeoutExpired as error:
            message = f"the check of the job's data took longer than {self._check_s:g} s; retry, or name less data"
            raise MeshError("DEADLINE_PASSED", message) from error
        if done.returncode:
            raise _refusal(done.returncode, done.stderr)

    async def discard(self, job_id: str) -> None:
        """See ports.Runs."""
        await asyncio.to_thread(shutil.rmtree, self._folder(job_id), ignore_errors=True)

    async def result(self, job_id: str) -> Result:
        """See ports.Runs."""
        return await asyncio.to_thread(self._result, self._folder(job_id))

    def adapter_path(self, job_id: str) -> str:
        """See ports.Runs."""
        return f"runs/{job_id}/{ADAPTER}"

    def _folder(self, job_id: str) -> Path:
        return self._folders.home / "runs" / job_id

    def _write(self, job: Job, champion: Champion | None) -> None:
        text = json.dumps(self._config(job, champion), indent=1) + "\n"
        folder = self._folder(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{CONFIG_FILE}.{os.getpid()}"
        aside.write_text(text, encoding="utf-8")
        aside.replace(folder / CONFIG_FILE)

    def _config(self, job: Job, champion: Champion | None) -> dict[str, Any]:
        """What the job's program is told: training/sft_config.py says what each field means."""
        order, recipe = job.order, job.order.recipe
        config: dict[str, Any] = {
            "home": str(self._folders.home),
            "role": order.role,
            "base": order.base_model,
            "backend": recipe.backend or ("cpu" if job.lane == CPU else "auto"),
            "data": self._data(job),
            "recipe": _chosen(recipe),
            "max_train_s": job.limit_s * TRAIN_SHARE,
        }
        if recipe.seed is not None:
            config["seed"] = recipe.seed
        if champion is not None and (self._folders.adapters / champion.path / WEIGHTS).is_file():
            config |= {"champion": str(self._folders.adapters / champion.path), "parent": champion.id}
        return config

    def _data(self, job: Job) -> dict[str, Any]:
        """NO_TRAINING_DATA where only the ledger is named and there is none yet."""
        ledger = self._folders.datasets if job.data.platinum and self._folders.datasets.is_dir() else None
        if ledger is None and not job.data.paths and not job.data.mixture:
            problem = f"there is no platinum ledger yet ({self._folders.datasets}); name paths or a mixture"
            raise MeshError("NO_TRAINING_DATA", problem, violations=(Violation("data.platinum", problem),))
        return {
            "paths": [str(path) for path in located(job.data.paths, self._folders.home)],
            "platinum": str(ledger or ""),
            "mixture": job.data.mixture,
            "refused_tenants": sorted(self._refused_tenants()),
        }

    def _ask(self, config: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            (*self._check, str(config)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            errors="replace", timeout=self._check_s, env=self._environment, cwd=config.parent,
        )  # fmt: skip

    def _result(self, folder: Path) -> Result:
        first, last = _sequences(_object(folder / CARD_FILE))
        problem = "" if (folder / ADAPTER / WEIGHTS).is_file() else "its process ended well but left no adapter"
        return Result(first, last, problem)


def _object(file: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none that can be read."""
    try:
        if file.stat().st_size > _MAX_JSON:
            return {}
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _chosen(recipe: Recipe) -> dict[str, Any]:
    names = ("rank", "learning_rate", "max_steps", "epochs", "batch_size", "max_seq_length")
    return {name: getattr(recipe, name) for name in names if getattr(recipe, name) is not None}


def _sequences(card: Mapping[str, Any]) -> tuple[int, int]:
    platinum = card.get("platinum")
    found = platinum.get("sequences") if isinstance(platinum, dict) else None
    sequences = [s for s in found if isinstance(s, int) and 0 < s < 1 << 62] if isinstance(found, list) else []
    return min(sequences, default=0), max(sequences, default=0)


def _refusal(code: int, words: str) -> MeshError:
    """The error that says what the check said: `field: problem` names a field of the order."""
    text = " ".join(words.split())[-2000:]
    if code != BAD_CONFIG:
        return MeshError("INTERNAL_ERROR", "the check of the job's data broke; the Trainer's log has its words")
    named = _NAMED_FIELD.fullmatch(text)
    field, problem = (named[1], named[2]) if named else ("data", text)
    field = _FIELD_HERE.get(field, field)
    reason = "NO_TRAINING_DATA" if field.partition(".")[0] == "data" and field != "data.mixture" else "INVALID_FIELD"
    return MeshError(reason, f"{field}: {problem}", violations=(Violation(field, problem),))
