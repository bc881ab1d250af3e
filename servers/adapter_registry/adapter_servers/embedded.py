"""The embedded engine (servers/engine), which finds an adapter's directory by its id in the same adapters' folder."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from hivemind.servers.adapter_registry.adapter_servers.http_client import ASK_S, LOAD_S, ServerHttp, refused
from hivemind.servers.adapter_registry.adapter_servers.port import Adapter, AdapterServerError, Capabilities
from hivemind.servers.common.catalogue import Endpoint

_CAPABILITIES: Final = Capabilities(lists=True, on_demand=True)


class EmbeddedServer:
    """Implements port.AdapterServer."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.address, self.capabilities = endpoint, endpoint.host, _CAPABILITIES
        self._http = ServerHttp(endpoint)

    async def ensure(self, adapter: Adapter) -> None:
        """See port.AdapterServer."""
        answer = await self._http.call("POST", "/adapters/load", {"adapter_id": adapter.id}, within_s=LOAD_S)
        if answer.status_code != 200:
            raise refused("/adapters/load", answer)

    async def retire(self, adapter_id: str) -> None:
        """See port.AdapterServer."""
        path = f"/adapters/{quote(adapter_id, safe='')}"
        answer = await self._http.call("DELETE", path, within_s=ASK_S)
        if answer.status_code != 200:
            raise refused(path, answer)

    async def list(self) -> Sequence[str]:
        """See port.AdapterServer."""
        told = await self._http.ask("/adapters")
        try:
            return tuple(map(str, told["loaded"]))
        except (KeyError, TypeError) as error:
            raise AdapterServerError("answers /adapters in a way that is not the embedded engine's") from error

    async def health(self) -> bool:
        """See port.AdapterServer."""
        return await self._http.healthy()

    async def close(self) -> None:
        """See port.AdapterServer."""
        await self._http.close()
