"""vLLM as its documentation describes it (docs/features/lora.md), with its issue 42125: a name that is loaded again
goes on with the weights that it had first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from hivemind.servers.common.catalogue import Endpoint
from tests.support.served import served


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


@dataclass
class FakeVllm:
    """`loaded`: name to directory; `answers_with`: name to the directory whose weights really answer. `updating`:
    VLLM_ALLOW_RUNTIME_LORA_UPDATING."""

    updating: bool = True
    loaded: dict[str, str] = field(default_factory=dict)
    answers_with: dict[str, str] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    endpoint: Endpoint = field(init=False)

    async def load(self, request: web.Request) -> web.Response:
        if not self.updating:
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            return _error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        self.loads.append(name)
        if name in self.loaded:
            return _error(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").is_file():
            return _error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        self.loaded[name] = path
        self.answers_with.setdefault(name, path)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json()).get("lora_name")
        if name not in self.loaded:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def models(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("authorization", ""))
        base = {"id": "base", "object": "model", "root": "base", "parent": None}
        adapters = [{**base, "id": name, "root": path, "parent": "base"} for name, path in self.loaded.items()]
        return web.json_response({"object": "list", "data": [base, *adapters]})

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response()

    def restart(self) -> None:
        self.loaded.clear()
        self.answers_with.clear()


@asynccontextmanager
async def fake_vllm(*, updating: bool = True) -> AsyncIterator[FakeVllm]:
    fake = FakeVllm(updating)
    routes = [
        web.post("/v1/load_lora_adapter", fake.load),
        web.post("/v1/unload_lora_adapter", fake.unload),
        web.get("/v1/models", fake.models),
        web.get("/health", fake.health),
    ]
    async with served(routes) as port:
        fake.endpoint = Endpoint(0, f"http://127.0.0.1:{port}/v1", "base", "secret-key")
        yield fake
