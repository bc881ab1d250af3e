"""vLLM, written from its documentation; not tried live.

It must run with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. A name that is loaded again with other weights may go on with
the old ones (its issue 42125), so a name that stands for another directory is an error and is never loaded over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hivemind.servers.adapter_registry.adapter_servers.http_client import ASK_S, LOAD_S, ServerHttp, message_of, refused
from hivemind.servers.adapter_registry.adapter_servers.port import Adapter, AdapterServerError, Capabilities
from hivemind.servers.common.catalogue import Endpoint

_CAPABILITIES: Final = Capabilities(lists=True, on_demand=False)
_NOT_ENABLED: Final = "has no way to load adapters; start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


class VllmServer:
    """Implements port.AdapterServer."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.address, self.capabilities = endpoint, endpoint.host, _CAPABILITIES
        self._http = ServerHttp(endpoint)

    async def ensure(self, adapter: Adapter) -> None:
        """See port.AdapterServer."""
        held = await self._held()
        if adapter.id in held:
            if held[adapter.id] not in ("", adapter.directory):
                raise AdapterServerError(f"holds another directory under the name {adapter.id}")
            return
        body = {"lora_name": adapter.id, "lora_path": adapter.directory}
        answer = await self._http.call("POST", "/v1/load_lora_adapter", body, within_s=LOAD_S)
        if answer.status_code == 404 and message_of(answer) == "Not Found":  # there is no such path
            raise AdapterServerError(_NOT_ENABLED)
        if answer.status_code != 200:
            raise refused("/v1/load_lora_adapter", answer)

    async def retire(self, adapter_id: str) -> None:
        """See port.AdapterServer."""
        body = {"lora_name": adapter_id}
        answer = await self._http.call("POST", "/v1/unload_lora_adapter", body, within_s=ASK_S)
        if answer.status_code != 200 and adapter_id in await self._held():
            raise refused("/v1/unload_lora_adapter", answer)

    async def list(self) -> Sequence[str]:
        """See port.AdapterServer."""
        return tuple(await self._held())

    async def health(self) -> bool:
        """See port.AdapterServer."""
        return await self._http.healthy()

    async def close(self) -> None:
        """See port.AdapterServer."""
        await self._http.close()

    async def _held(self) -> Mapping[str, str]:
        """The adapters by name, each with the directory that vLLM names (empty: none). An adapter has a parent."""
        told: Any = await self._http.ask("/v1/models")
        try:
            return {str(m["id"]): str(m.get("root") or "") for m in told["data"] if m.get("parent")}
        except (KeyError, TypeError, AttributeError) as error:
            raise AdapterServerError("answers /v1/models in a way that is not OpenAI's") from error
