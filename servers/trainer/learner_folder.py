"""The folder that the Trainer shares with a learner: `<home>/learner/<role>/`; training/online/publication.py says what
lies in it."""

from dataclasses import dataclass, replace
from pathlib import Path

from hivemind.servers.trainer.json_file import read_object, write_object


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an example was read by an adapter and by the one in office: 1 won, 0 lost, 0.5 a tie. `adapter_id` empty: by
    the adapter of the publication that this goes with."""

    request_id: str
    adapter_id: str
    compared_with: str
    score: float


@dataclass(frozen=True, slots=True)
class Publication:
    """An adapter to register, and how it did against its parent. `key` names it over all restarts; `closed`: when the
    first batch was closed that it answers to (Unix seconds), 0 where it only rehearsed."""

    name: str
    key: str
    role: str
    parent: str
    closed: float
    outcomes: tuple[Outcome, ...]

    def outcomes_of(self, adapter_id: str) -> tuple[Outcome, ...]:
        """The outcomes under the id that the registry gave."""
        return tuple(
            replace(o, adapter_id=adapter_id, request_id=_named(o.request_id, adapter_id)) for o in self.outcomes
        )


@dataclass(frozen=True, slots=True)
class LearnerFolder:
    """One learner's. `home`: the state folder of the mesh. Methods raise OSError where the disk fails."""

    home: Path
    role: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.home / "learner" / self.role

    def say_champion(self, name: str, folder: str) -> None:
        """Tells the learner who is in office; both empty: the base model."""
        if read_object(self.path / "champion.json") != {"id": name, "path": folder}:
            write_object(self.path / "champion.json", {"id": name, "path": folder})

    def publications(self) -> list[Publication]:
        """Those that wait for an answer, oldest first."""
        found = []
        for folder in sorted(self.path.glob("publications/[0-9]*")):
            told = read_object(folder / "publication.json")
            if told is not None and not (folder / "published.json").exists():
                outcomes = tuple(Outcome(**o) for o in told.pop("outcomes"))
                found.append(Publication(name=folder.name, outcomes=outcomes, **told))
        return found

    def adapter_of(self, publication: Publication) -> str:
        """Where its adapter lies, as RegisterAdapter wants it."""
        return f"learner/{self.role}/publications/{publication.name}/adapter"

    def answer(self, publication: Publication, adapter_id: str, time: float, error: str = "") -> None:
        """Tells the learner what became of a publication."""
        where = self.path / "publications" / publication.name / "published.json"
        write_object(where, {"adapter_id": adapter_id, "time": time, "error": error})

    def evidence(self) -> list[tuple[Path, list[Outcome]]]:
        """The outcomes to record, oldest first, with the files to remove when that is done."""
        found = []
        for path in sorted(self.path.glob("evidence/[0-9]*.json")):
            told = read_object(path) or {"outcomes": []}
            found.append((path, [Outcome(**o) for o in told["outcomes"]]))
        return found


def _named(what: str, adapter_id: str) -> str:
    kind, _, name = what.partition(":")
    return f"{kind}:{adapter_id}:{name}"[:128]
