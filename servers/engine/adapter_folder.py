"""The adapters on disk, by id: `<role>-v000001` is the directory `<role>/v000001` of the adapters' folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hivemind.servers.engine.errors import EngineError
from hivemind.servers.engine.gguf_adapter import CONFIG

_ID: Final = re.compile(r"([a-z0-9][a-z0-9._-]{0,99})-(v[0-9]{6,12})")


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """Finds adapters below `root`. A request names an id and never a path."""

    root: Path

    def path_of(self, adapter_id: str) -> Path:
        """The directory of an adapter; EngineError unknown_model if there is none. Links are not followed."""
        match = _ID.fullmatch(adapter_id)
        if match is None:
            raise EngineError("unknown_model", f"there is no adapter {adapter_id[:128]!r}")
        path = self.root.resolve() / match[1] / match[2]
        if not path.is_dir() or path.resolve() != path:
            raise EngineError("unknown_model", f"there is no adapter {adapter_id!r} in the adapters' folder")
        return path

    def ids(self) -> list[str]:
        """Every adapter on disk, sorted."""
        found = (f"{p.parent.parent.name}-{p.parent.name}" for p in self.root.glob(f"*/v*/{CONFIG}"))
        return sorted(name for name in found if _ID.fullmatch(name))
