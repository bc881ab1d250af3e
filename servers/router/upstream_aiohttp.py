"""HTTP to model servers by aiohttp: one session, pooled connections, nothing decoded on the way."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import aiohttp
from yarl import URL

from hivemind.servers.common.catalogue import Endpoint
from hivemind.servers.router.ports import UpstreamError

_SKIP = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class AiohttpUpstream:
    """Implements ports.Upstream. Make it inside the running loop; `close` at the end."""

    def __init__(self, *, connections: int) -> None:
        connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=30.0, ttl_dns_cache=10)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            skip_auto_headers=_SKIP,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 16,
        )
        self._targets: dict[tuple[str, str], URL] = {}

    async def post(
        self, endpoint: Endpoint, path: str, body: bytes, headers: Mapping[str, str], *, connect_s: float
    ) -> "AiohttpResponse":
        """See ports.Upstream."""
        key = (endpoint.base_url, path)
        url = self._targets.get(key)
        if url is None:
            url = self._targets[key] = URL(endpoint.base_url + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        try:
            response = await self._session.post(url, data=body, headers=headers, timeout=timeout, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise _told(error) from error
        return AiohttpResponse(response)

    async def close(self) -> None:
        """Closes every connection."""
        await self._session.close()


class AiohttpResponse:
    """Implements ports.UpstreamResponse."""

    __slots__ = ("_response", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    def header(self, name: str) -> str:
        """See ports.UpstreamResponse."""
        return self._response.headers.get(name, "")

    async def read(self, limit: int) -> bytes:
        """See ports.UpstreamResponse."""
        content = self._response.content
        try:
            first = await content.readany()
            if content.at_eof():
                return first
            pieces, size = [first], len(first)
            async for chunk in self.chunks():
                pieces.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise UpstreamError("too_large", f"the model server's answer is larger than {limit} bytes")
        except (aiohttp.ClientError, OSError) as error:
            raise _told(error) from error
        return b"".join(pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        """See ports.UpstreamResponse."""
        content = self._response.content
        try:
            while True:
                chunk = await content.readany()
                if not chunk:
                    return
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise _told(error) from error

    def close(self) -> None:
        """See ports.UpstreamResponse."""
        self._response.close()


def _told(error: Exception) -> UpstreamError:
    """What went wrong, without addresses or keys."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return UpstreamError("dns", "the name of the model server cannot be resolved")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        return UpstreamError("tls", "the TLS connection to the model server failed")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamError("connect_timeout", "the model server did not accept a connection in time")
    if isinstance(error, aiohttp.ClientConnectorError | ConnectionRefusedError):
        return UpstreamError("connect", "the model server refuses connections")
    if isinstance(error, aiohttp.ClientPayloadError):
        return UpstreamError("truncated", "the model server broke off in the middle of its answer")
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | asyncio.IncompleteReadError):
        return UpstreamError("disconnected", "the model server closed the connection without an answer")
    return UpstreamError("protocol", f"the model server's answer is not HTTP that can be read ({type(error).__name__})")
