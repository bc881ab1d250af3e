"""The Redis client of a server: bounded waits, quick retries, errors as domain errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from hivemind.servers.common.errors import MeshError


def redis_client(url: str, *, timeout_s: float, connections: int = 32) -> Redis:
    """A pooled client that never waits longer than `timeout_s` for an answer and tries a lost connection once more."""
    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, 1.0),
        max_connections=connections,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 1),
        retry_on_error=[ConnectionError, BusyLoadingError],
        health_check_interval=0,
    )


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns what Redis may fail with into STORE_UNAVAILABLE or STORE_FULL."""
    try:
        yield
    except OutOfMemoryError as error:
        raise MeshError("STORE_FULL", "the store (Redis) is out of memory; give it more or delete old data") from error
    except (ConnectionError, TimeoutError, ReadOnlyError, OSError) as error:
        message = f"the store (Redis) cannot take this now ({type(error).__name__}); retry shortly"
        raise MeshError("STORE_UNAVAILABLE", message, retry_after_s=1.0) from error
    except ResponseError as error:
        if "READONLY" in str(error):  # as a script in a pipeline tells it
            message = "the store (Redis) is a read-only replica now; retry shortly"
            raise MeshError("STORE_UNAVAILABLE", message, retry_after_s=1.0) from error
        if "MISCONF" in str(error) or "OOM" in str(error):
            raise MeshError("STORE_FULL", "the store (Redis) refuses writes; look at its disk and memory") from error
        raise
    except RedisError as error:
        raise MeshError("STORE_UNAVAILABLE", "the store (Redis) failed; retry shortly", retry_after_s=1.0) from error
