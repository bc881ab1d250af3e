"""Consumer groups in Redis: a stream of sequences each. The scripts say how the keys look."""

import asyncio
from collections.abc import Awaitable, Sequence
from importlib import resources
from typing import Any, Final

from redis.asyncio import Redis

from hivemind.servers.arbiter.ports import Member, Taken
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import store_errors

_STREAM: Final = "arbiter:platinum:"
_CONSUMERS: Final = "arbiter:platinum-consumers:"
_GROUPS: Final = "arbiter:platinum-groups"
_TAKE_MAX: Final = 1024
_LEAVE: Final = """
local lease = redis.call('HGET', KEYS[1], ARGV[1])
if lease and string.match(lease, '^%S+') == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
"""


class RedisGroups:
    """Implements ports.ConsumerGroups.

    `idle_s`: after how long without acknowledgement an example goes to another consumer. `lease_s`: how long a consumer
    counts as alive after its last call, in case its server dies with it.
    """

    def __init__(self, redis: Redis, *, idle_s: float, lease_s: float) -> None:
        self._redis = redis
        self._idle_ms, self._lease_ms = round(idle_s * 1000), round(lease_s * 1000)
        folder = resources.files("hivemind.servers.arbiter")
        self._take = redis.register_script((folder / "take.lua").read_text())
        self._acknowledge = redis.register_script((folder / "acknowledge.lua").read_text())
        self._leave = redis.register_script(_LEAVE)

    async def take(self, member: Member, *, last: int, resume: str, joining: bool) -> Taken:
        """See ports.ConsumerGroups."""
        keys = [_STREAM + member.group, _CONSUMERS + member.group, _GROUPS]
        args: list[Any] = [
            member.group, member.consumer, member.token, last, member.at_most, min(member.at_most, _TAKE_MAX),
            self._idle_ms, self._lease_ms, resume, int(joining),
        ]  # fmt: skip
        with store_errors():
            answer: Any = await _whole(self._take(keys=keys, args=args))
        if answer[0] == b"REPLACED":
            message = f"another stream of consumer {member.consumer} of group {member.group} has taken over"
            raise MeshError("ETAG_MISMATCH", message, metadata={"consumer": member.consumer})
        return Taken(
            sequences=tuple(map(int, answer[5:])),
            fed=int(answer[3]),
            open=int(answer[4]),
            resume=answer[2].decode(),
            created=bool(answer[1]),
        )

    async def acknowledge(self, group: str, sequences: Sequence[int]) -> int:
        """See ports.ConsumerGroups."""
        with store_errors():
            args: list[Any] = [group, *(f"{s}-0" for s in sequences)]
            return int(await _whole(self._acknowledge(keys=[_STREAM + group], args=args)))

    async def leave(self, member: Member) -> None:
        """See ports.ConsumerGroups."""
        with store_errors():
            await _whole(self._leave(keys=[_CONSUMERS + member.group], args=[member.consumer, member.token]))

    async def restart(self, group: str) -> None:
        """See ports.ConsumerGroups."""
        with store_errors():
            await _whole(self._redis.delete(_STREAM + group))

    async def progress(self) -> dict[str, tuple[int, int]]:
        """See ports.ConsumerGroups."""
        with store_errors():
            names: Any = await _whole(self._redis.smembers(_GROUPS))
            groups = sorted(n.decode() for n in names)
            pipe = self._redis.pipeline(transaction=False)
            for group in groups:
                pipe.xinfo_stream(_STREAM + group)
            found: Any = await _whole(pipe.execute(raise_on_error=False))
        return {g: _progress(i) for g, i in zip(groups, found, strict=True) if isinstance(i, dict)}


async def _whole(call: Awaitable[Any]) -> Any:
    """Lets a call of Redis end by itself even if its caller is cancelled.

    The client waits with asyncio.wait_for, which on Python 3.11 loses a cancellation that comes in the moment when it
    ends: the caller would go on for ever.
    """
    task = asyncio.ensure_future(call)
    await asyncio.wait([task])
    return task.result()


def _progress(info: dict[str, Any]) -> tuple[int, int]:
    return int(info["last-generated-id"].split(b"-")[0]), int(info["length"])
