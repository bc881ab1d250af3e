"""LoRAX (0.12, last released in November 2024), written from its documentation; not tried live.

LoRAX loads an adapter when a request names it, so a request for one token loads it; the header `x-adapter-id` of the
answer proves that the adapter answered. It does not say what it holds and has no way to unload.
"""

from collections.abc import Sequence
from typing import Final

from hivemind.servers.adapter_registry.adapter_servers.http_client import LOAD_S, ServerHttp, refused
from hivemind.servers.adapter_registry.adapter_servers.port import Adapter, AdapterServerError, Capabilities
from hivemind.servers.common.catalogue import Endpoint

_CAPABILITIES: Final = Capabilities(lists=False, on_demand=True)
_HEADER: Final = "x-adapter-id"


class LoraxServer:
    """Implements port.AdapterServer. LoRAX calls an adapter by its directory."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.address, self.capabilities = endpoint, endpoint.host, _CAPABILITIES
        self._http = ServerHttp(endpoint)

    async def ensure(self, adapter: Adapter) -> None:
        """See port.AdapterServer."""
        named = {"adapter_id": adapter.directory, "adapter_source": "local", "max_new_tokens": 1}
        answer = await self._http.call("POST", "/generate", {"inputs": "Hi", "parameters": named}, within_s=LOAD_S)
        if answer.status_code != 200:
            raise refused("/generate", answer)
        if answer.headers.get(_HEADER) != adapter.directory:
            raise AdapterServerError(f"answered for {adapter.id} without it (no such {_HEADER})")

    async def retire(self, adapter_id: str) -> None:
        """See port.AdapterServer. LoRAX drops by itself what is not asked for."""

    async def list(self) -> Sequence[str]:
        """See port.AdapterServer. LoRAX does not say."""
        return ()

    async def health(self) -> bool:
        """See port.AdapterServer."""
        return await self._http.healthy()

    async def close(self) -> None:
        """See port.AdapterServer."""
        await self._http.close()
