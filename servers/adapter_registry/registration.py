"""Takes a directory in: copies it aside, checks the copy, gives it its place, and tells the store."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from hivemind.servers.adapter_registry.adapters import AdapterRecord, version_id
from hivemind.servers.adapter_registry.base_model import BaseModel, BaseModels
from hivemind.servers.adapter_registry.ports import Answer, Call, Store
from hivemind.servers.adapter_registry.roles import Occasion, Role, registered
from hivemind.servers.adapter_registry.validation import CheckedAdapter, check_directory, check_entries, locate
from hivemind.servers.adapter_registry.versions import Versions
from hivemind.servers.common.context import is_id
from hivemind.servers.common.errors import MeshError, invalid_field

_log = structlog.get_logger()

_TRIES: Final = 50


@dataclass(frozen=True, slots=True)
class Registration:
    """What is asked for."""

    role: str
    path: str
    parent: str = ""


class Registrar:
    """Registers directories. `roots`: where they may lie."""

    def __init__(
        self, store: Store, versions: Versions, bases: BaseModels, roots: Sequence[Path],
        *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._versions, self._bases, self._roots, self._clock = store, versions, bases, roots, clock
        self._copying = asyncio.Semaphore(2)
        self._running: set[asyncio.Task[str]] = set()

    def is_there(self, path: str) -> bool:
        """Whether there is anything at a path, relative to one of the roots or absolute."""
        return any((root / path).exists() for root in self._roots)

    async def register(self, wish: Registration, call: Call) -> str:
        """The id of the version; that of the known one where the role has these weights and this configuration already.

        ADAPTER_INVALID with file and problem; STORE_FULL where the disk is full. Nothing half is ever visible.
        """
        if not is_id(wish.role):
            raise invalid_field("role", "must match [a-z0-9._-]+")
        first = await self._store.repeated(call)
        if first is not None:
            return first.adapter_id
        await self._check_parent(wish.parent)
        task = asyncio.create_task(self._register(wish, call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)  # a client that leaves does not stop it half-way

    async def _register(self, wish: Registration, call: Call) -> str:
        async with self._copying:
            folder = await asyncio.to_thread(self._copied, wish.path)
            try:
                return await self._take_in(wish, folder, call)
            finally:
                await asyncio.to_thread(self._versions.discard, folder)

    async def _take_in(self, wish: Registration, folder: Path, call: Call) -> str:
        base, checked = await asyncio.to_thread(self._checked, wish.role, folder)
        known = await self._store.by_digest(wish.role, checked.digest)
        if known:
            return known
        above = await asyncio.to_thread(self._versions.highest, wish.role)
        number = await self._store.next_version(wish.role, above)
        record = _record(wish, number, base, checked, self._clock())
        await asyncio.to_thread(self._versions.publish, folder, wish.role, number, _meta(record, checked))
        _log.info("adapter_stored", id=record.id, sha256=record.sha256, rank=record.rank)
        return await self._tell(record, call)

    async def _check_parent(self, parent: str) -> None:
        if parent and not (is_id(parent) and await self._store.adapters([parent])):
            raise invalid_field("parent", f"no adapter has the id {parent!r}")

    def _copied(self, path: str) -> Path:
        source = locate(path, self._roots)
        return self._versions.copy(source, check_entries(source))

    def _checked(self, role: str, folder: Path) -> tuple[BaseModel, CheckedAdapter]:
        base = self._bases.of(role)
        if not base.shapes:
            _log.warning("shapes_not_checked", role=role, base_model=base.id, why="its weights are not at hand here")
        return base, check_directory(folder, base)

    async def _tell(self, record: AdapterRecord, call: Call) -> str:
        """Where the store does not take it, or knows it already, the copy goes again."""
        kept = False
        try:
            answer = await self._commit(record, call)
            kept = answer.adapter_id == record.id
            return answer.adapter_id
        except MeshError as error:
            kept = error.reason == "STORE_UNAVAILABLE"  # it may have been stored before the answer was lost
            raise
        finally:
            if not kept:
                await asyncio.to_thread(self._versions.withdraw, record.path)

    async def _commit(self, record: AdapterRecord, call: Call) -> Answer:
        for _ in range(_TRIES):
            _, roles = await self._store.load()
            role = roles.get(record.role, Role(record.role))
            change = registered(role, record.id, Occasion(self._clock(), call.request_id))
            answer = await self._store.commit(role, change, call, record)
            if answer is not None:
                return answer
        raise MeshError("STORE_UNAVAILABLE", "too many changes at the same time; retry", retry_after_s=1.0)


def _record(
    wish: Registration, number: int, base: BaseModel, checked: CheckedAdapter, now: float
) -> AdapterRecord:  # fmt: skip
    meta = checked.meta
    id_ = version_id(wish.role, number)
    return AdapterRecord(
        id=id_, role=wish.role, path=f"{wish.role}/v{number:06d}", base_model=base.id,
        base_revision=meta.base_revision or base.revision, rank=checked.rank, sha256=checked.sha256,
        size_bytes=checked.size_bytes, digest=checked.digest, create_time=now, parent=wish.parent or meta.parent,
        first_sequence=meta.first_sequence, last_sequence=meta.last_sequence, data_licence=meta.data_licence,
        evaluation=meta.evaluation,
    )  # fmt: skip


def _meta(record: AdapterRecord, checked: CheckedAdapter) -> dict[str, Any]:
    """adapter_meta.json of a stored version."""
    return {
        "id": record.id, "role": record.role, "base_model": record.base_model, "base_revision": record.base_revision,
        "parent": record.parent, "first_sequence": record.first_sequence, "last_sequence": record.last_sequence,
        "hyper_parameters": dict(checked.meta.hyper_parameters), "evaluation": dict(record.evaluation),
        "sha256": record.sha256, "size_bytes": record.size_bytes, "rank": record.rank,
        "data_licence": record.data_licence, "create_time": record.create_time,
    }  # fmt: skip
