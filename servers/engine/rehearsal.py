"""The last prompts, so that the next generation has read them before it takes over.

Its cache is empty: without this the next request of every conversation would wait until its whole prompt is read anew.
Those that wait for the new adapter are among them; read now, they keep nobody else waiting in their turn.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from hivemind.servers.engine.errors import EngineError
from hivemind.servers.engine.generation import Generation
from hivemind.servers.engine.relay import Relay

_log = structlog.get_logger()

_AT_MOST_S: Final = 15.0
_LARGEST: Final = 256 * 1024
_SHORT: Final = {"stream": False, "max_tokens": 1, "n_predict": 1, "n": 1}


@dataclass(frozen=True, slots=True)
class _Prompt:
    adapter_id: str | None
    path: str
    body: bytes


class Rehearsal:
    """Remembers the last `most` prompts that differ, in memory only; none above 256 KiB."""

    def __init__(self, relay: Relay, *, most: int) -> None:
        self._relay, self._most = relay, most
        self._prompts: dict[_Prompt, None] = {}

    def note(self, adapter_id: str | None, path: str, asked: Mapping[str, Any]) -> None:
        """Remembers what is asked of llama.cpp at `path`; the one asked longest ago makes room."""
        body = orjson.dumps({**{k: v for k, v in asked.items() if k != "stream_options"}, **_SHORT})
        if len(body) > _LARGEST:
            return
        prompt = _Prompt(adapter_id, path, body)
        self._prompts.pop(prompt, None)
        self._prompts[prompt] = None
        if len(self._prompts) > self._most:
            del self._prompts[next(iter(self._prompts))]

    async def rehearse(self, generation: Generation) -> None:
        """Has a generation read them, the newest last, for at most 15 s. What it refuses is passed over."""
        prompts = [p for p in self._prompts if p.adapter_id is None or p.adapter_id in generation.adapters]
        try:
            async with asyncio.timeout(_AT_MOST_S):
                for prompt in prompts:
                    await self._read(generation, prompt)
        except TimeoutError:
            _log.info("rehearsal_cut_short", port=generation.port)

    async def _read(self, generation: Generation, prompt: _Prompt) -> None:
        body = orjson.dumps({**orjson.loads(prompt.body), "lora": generation.scales(prompt.adapter_id)})
        with suppress(EngineError):
            async with self._relay.post(generation.port, prompt.path, body) as answer:
                await answer.read()
