"""A small HTTP client for one model server."""

from typing import Any, Final

import httpx

from hivemind.servers.adapter_registry.adapter_servers.port import AdapterServerError
from hivemind.servers.common.catalogue import Endpoint

LOAD_S: Final = 120.0
"""The longest that loading one adapter may take."""
ASK_S: Final = 5.0
"""The longest that a question may take."""
_MESSAGE_MAX: Final = 300


class ServerHttp:
    """Calls the server of an endpoint. Paths are from the root of the server, not from /v1."""

    def __init__(self, endpoint: Endpoint) -> None:
        headers = {"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        root = endpoint.base_url.removesuffix("/v1")
        self._client = httpx.AsyncClient(base_url=root, headers=headers, trust_env=False)

    async def call(self, method: str, path: str, body: Any = None, *, within_s: float) -> httpx.Response:
        """The answer, whatever its status; AdapterServerError if there is none."""
        try:
            return await self._client.request(method, path, json=body, timeout=within_s)
        except httpx.TimeoutException as error:
            raise AdapterServerError(f"did not answer {path} within {within_s:.0f} s") from error
        except httpx.HTTPError as error:
            raise AdapterServerError(f"cannot be reached ({type(error).__name__})") from error

    async def ask(self, path: str) -> Any:
        """The JSON of a GET; AdapterServerError for any other answer."""
        answer = await self.call("GET", path, within_s=ASK_S)
        if answer.status_code != httpx.codes.OK:
            raise refused(path, answer)
        try:
            return answer.json()
        except ValueError as error:
            raise AdapterServerError(f"answered {path} with something that is not JSON") from error

    async def healthy(self) -> bool:
        """Whether GET /health is answered with 200, as all three kinds of server do."""
        return (await self.call("GET", "/health", within_s=ASK_S)).status_code == httpx.codes.OK

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


def refused(path: str, answer: httpx.Response) -> AdapterServerError:
    """The error for a status that is not a yes, with the server's own words."""
    return AdapterServerError(f"answered {path} with {answer.status_code}: {message_of(answer)}")


def message_of(answer: httpx.Response) -> str:
    """What a server says of an error, in the shapes of OpenAI, LoRAX and vLLM, else the text itself."""
    try:
        told = answer.json()
    except ValueError:
        return answer.text[:_MESSAGE_MAX]
    error = told.get("error", told.get("detail", told)) if isinstance(told, dict) else told
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:_MESSAGE_MAX]
