"""gRPC channels to peers of the mesh."""

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Final, TypeVar

import grpc
import structlog

from hivemind.servers.common.context import current_call

_log = structlog.get_logger()

_RECONNECT_S: Final = 0.5

T = TypeVar("T")

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),  # with the defaults a restart of a peer fails half of the calls
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.lb_policy_name", "round_robin"),
)


def peer_channel(addresses: str) -> grpc.aio.Channel:
    """A channel to a peer. `addresses`: `host:port`, several replicas separated by commas."""
    hosts = [a.strip() for a in addresses.split(",") if a.strip()]
    target = f"ipv4:{','.join(hosts)}" if len(hosts) > 1 else hosts[0]
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


def peer_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Metadata for a call to a peer: the mesh's key if there is one, and the id and trace of the call at hand."""
    pairs: list[tuple[str, str]] = []
    if api_key:
        pairs.append(("authorization", f"Bearer {api_key}"))
    call = current_call.get(None)
    if call is not None:
        pairs.append(("x-request-id", call.request_id))
        if call.traceparent:
            pairs.append(("traceparent", call.traceparent))
    return tuple(pairs)


async def follow(
    peer: str, watch: Callable[[], AsyncIterable[T]], take: Callable[[T], None], lost: Callable[[], None] = lambda: None
) -> None:
    """Takes what a peer tells in a Watch stream, for ever. One that ends is opened again; its last word holds.

    `lost` is called whenever it ends; the log tells of the first time only (`<peer>_lost`).
    """
    silent = False
    while True:
        try:
            async for message in watch():
                take(message)
                silent = False
        except grpc.aio.AioRpcError as error:
            if not silent:
                _log.warning(f"{peer}_lost", code=error.code().name)
            silent = True
        lost()
        await asyncio.sleep(_RECONNECT_S)
