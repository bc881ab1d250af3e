"""Brings the foundational adapter into office at start."""

import asyncio
from typing import Final

import structlog

from hivemind.servers.adapter_registry.ports import Call
from hivemind.servers.adapter_registry.registration import Registrar, Registration
from hivemind.servers.adapter_registry.registry import Promotion, Registry
from hivemind.servers.common.context import new_request_id
from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()

ROLE: Final = "implementer"
_AGAIN_S: Final = 1.0
_LATER: Final = frozenset({"STORE_UNAVAILABLE", "STORE_FULL"})


class AdapterDeploymentManager:
    """Registers the directory that `text_adapter_path` names and makes it champion of `implementer`, once: an adapter
    that was in office before, or a role that has a champion, is left alone."""

    def __init__(self, registrar: Registrar, registry: Registry, path: str) -> None:
        self._registrar, self._registry, self._path = registrar, registry, path

    async def run(self) -> None:
        """Until it is done; waits for an absent store. A directory that is refused is logged, and all else works."""
        while True:
            try:
                await self.deploy()
                return
            except MeshError as error:
                if error.reason not in _LATER:
                    _log.error("foundational_adapter_refused", path=self._path, reason=error.reason, why=error.message)
                    return
            await asyncio.sleep(_AGAIN_S)

    async def deploy(self) -> None:
        """One try."""
        if not self._registrar.is_there(self._path):
            _log.info("no_foundational_adapter", path=self._path, effect="the base model serves until one is promoted")
            return
        call = Call(request_id=new_request_id())
        adapter_id = await self._registrar.register(Registration(ROLE, self._path), call)
        found = await self._registry.adapter(adapter_id)
        if found.state != "REGISTERED":
            _log.info("foundational_adapter_known", id=adapter_id, state=found.state)
            return
        wish = Promotion(ROLE, adapter_id, expected="", override=True, reason="the foundational adapter, at start")
        try:
            await self._registry.promote(wish, call)
        except MeshError as error:
            if error.reason != "CHAMPION_CHANGED":
                raise
            _log.info("foundational_adapter_left_alone", id=adapter_id, why=error.message)
            return
        _log.info("foundational_adapter_activated", id=adapter_id, role=ROLE)
