"""What goes from the learner to its Trainer: adapters to publish and evidence to record, as folders and files that are
whole or not there.

publications/<number>/adapter/           the adapter
publications/<number>/publication.json   what the Trainer tells the registry of it
publications/<number>/published.json     the Trainer's answer: the version's id, or why there is none
evidence/<number>.json                   outcomes to record; the Trainer removes it
champion.json                            by the Trainer: whom the learner starts from and is measured against
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from hivemind.servers.trainer.json_file import read_object, write_object
from hivemind.servers.trainer.learner_folder import Outcome
from hivemind.training.adapter_files import AdapterMeta, sync_folder, sync_path, write_adapter

ADAPTER: Final = "adapter"


@dataclass(frozen=True, slots=True)
class Champion:
    """The adapter in office and its folder; both empty: the base model."""

    id: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Trainer did with a publication. `adapter_id` is empty where the registry refused it, as `error` says."""

    adapter_id: str
    time: float
    error: str = ""


class Outbox:
    """The folder that learner and Trainer share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("publications", "evidence"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for left in (folder / name).glob(".*"):  # of a process that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def champion(self) -> Champion | None:
        """Who is in office, as the Trainer said last; None where it has not yet."""
        found = read_object(self._folder / "champion.json")
        return None if found is None else Champion(str(found["id"]), str(found["path"]))

    def publish(
        self, number: int, model: Any, tokenizer: Any, meta: AdapterMeta, *, run: str, closed: float,
        outcomes: Sequence[Outcome],
    ) -> None:  # fmt: skip
        """Hands an adapter over; a number that was handed over before stays as it is."""
        target = self._folder / "publications" / f"{number:06d}"
        if target.exists():
            return
        aside = target.with_name(f".{target.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            write_adapter(model, tokenizer, aside / ADAPTER, meta)
            told = {
                "key": f"online-{run}-{number}", "role": meta.role, "parent": meta.parent, "closed": closed,
                "outcomes": outcomes,
            }  # fmt: skip
            (aside / "publication.json").write_bytes(orjson.dumps(told))
            sync_folder(aside)
            aside.rename(target)
            sync_path(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def answer(self, number: int) -> Answer | None:
        """What became of a publication; None where the Trainer has not answered yet."""
        found = read_object(self._folder / "publications" / f"{number:06d}" / "published.json")
        if found is None:
            return None
        return Answer(str(found["adapter_id"]), float(found["time"]), str(found.get("error", "")))

    def waits(self, number: int) -> bool:
        """Whether a publication was handed over and is still here."""
        return (self._folder / "publications" / f"{number:06d}").exists()

    def newest(self) -> tuple[int, Path] | None:
        """The number and the adapter of the last publication that is still here."""
        found = max((self._folder / "publications").glob("[0-9]*"), default=None)
        return None if found is None else (int(found.name), found / ADAPTER)

    def clear(self, number: int) -> None:
        """Removes a publication that was answered."""
        shutil.rmtree(self._folder / "publications" / f"{number:06d}", ignore_errors=True)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Hands outcomes over."""
        if not outcomes:
            return
        folder = self._folder / "evidence"
        number = max((int(p.stem) for p in folder.glob("*.json")), default=0) + 1
        write_object(folder / f"{number:08d}.json", {"outcomes": outcomes})
