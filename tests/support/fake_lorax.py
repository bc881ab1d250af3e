"""LoRAX as its documentation describes it (0.12: docs/reference/rest_api.md, launcher and adapter pages)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from hivemind.servers.common.catalogue import Endpoint
from tests.support.served import served


@dataclass
class FakeLorax:
    """`loaded`: directories of adapters in memory. `overloaded`, `loading`: how it answers for a while; `mute`: it
    answers without the adapter's header."""

    loaded: list[str] = field(default_factory=list)
    requests: int = 0
    overloaded: bool = False
    loading: bool = False
    mute: bool = False
    endpoint: Endpoint = field(init=False)

    async def generate(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.json()
        if self.overloaded:
            return web.json_response({"error": "Model is overloaded", "error_type": "overloaded"}, status=429)
        if not body.get("inputs"):
            return web.json_response({"error": "`inputs` cannot be empty", "error_type": "validation"}, status=422)
        parameters = body.get("parameters") or {}
        adapter, headers = parameters.get("adapter_id"), {}
        if adapter:
            if parameters.get("adapter_source") != "local" or not (Path(adapter) / "adapter_config.json").is_file():
                message = f"Request failed during generation: no local weights found in {adapter}"
                return web.json_response({"error": message, "error_type": "generation"}, status=424)
            if adapter not in self.loaded:
                self.loaded.append(adapter)
            headers = {} if self.mute else {"x-adapter-id": adapter}
        return web.json_response({"generated_text": "!"}, headers=headers)

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self.loading else 200)

    def restart(self) -> None:
        self.loaded.clear()


@asynccontextmanager
async def fake_lorax() -> AsyncIterator[FakeLorax]:
    fake = FakeLorax()
    routes = [web.post("/generate", fake.generate), web.get("/health", fake.health)]
    async with served(routes) as port:
        fake.endpoint = Endpoint(0, f"http://127.0.0.1:{port}/v1", "base")
        yield fake
