"""Which adapters a generation holds: those used last, as many as the memory limit takes. Pure."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hivemind.servers.engine.gguf_adapter import AdapterBroken


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter's GGUF file and what it takes of the memory."""

    file: Path
    size_bytes: int


@dataclass(slots=True)
class Residency:
    """The adapters that are held, the one used longest ago first. `limit` is in bytes."""

    limit: int
    _held: OrderedDict[str, Resident] = field(default_factory=OrderedDict)

    @property
    def held(self) -> dict[str, Resident]:
        """What is held now, the one used longest ago first."""
        return dict(self._held)

    def __contains__(self, adapter_id: object) -> bool:
        return adapter_id in self._held

    def touch(self, adapter_id: str | None) -> None:
        """Notes a use of an adapter, if it is held."""
        if adapter_id is not None and adapter_id in self._held:
            self._held.move_to_end(adapter_id)

    def forget(self, adapter_id: str) -> None:
        """Holds an adapter no longer; nothing happens if it was not held."""
        self._held.pop(adapter_id, None)

    def with_added(self, adapter_id: str, added: Resident) -> dict[str, Resident]:
        """What would be held with one more, after those used longest ago have made room.

        Raises AdapterBroken for one that is larger than the limit.
        """
        if added.size_bytes > self.limit:
            raise AdapterBroken(
                f"it takes {added.size_bytes >> 20} MiB and adapters may take {self.limit >> 20} MiB"
                " (HIVEMIND_ENGINE_ADAPTER_MIB)"
            )
        kept = OrderedDict(self._held)
        kept.pop(adapter_id, None)
        while kept and sum(r.size_bytes for r in kept.values()) + added.size_bytes > self.limit:
            kept.popitem(last=False)
        return {**kept, adapter_id: added}

    def replace(self, held: Mapping[str, Resident]) -> None:
        """Puts in force what a new generation holds."""
        self._held = OrderedDict(held)
