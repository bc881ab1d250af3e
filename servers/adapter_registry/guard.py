"""Looks after every role in the background: takes traffic from challengers that fail, rolls champions back that break a
guardrail, and promotes where the policy of the role allows it."""

import asyncio
import time
from collections.abc import Callable

import structlog

from hivemind.servers.adapter_registry.autopromote import refusal
from hivemind.servers.adapter_registry.feed import StateFeed
from hivemind.servers.adapter_registry.ports import Call
from hivemind.servers.adapter_registry.promotion import Preview
from hivemind.servers.adapter_registry.registry import Promotion, Registry
from hivemind.servers.adapter_registry.roles import Change, Occasion, Role, rejected
from hivemind.servers.adapter_registry.verdict import breach
from hivemind.servers.common.context import new_request_id
from hivemind.servers.common.errors import MeshError, invalid_field

_log = structlog.get_logger()


class Guard:
    """One look at every role each `every_s` seconds. Several registries may look at a role: one wins."""

    def __init__(
        self, feed: StateFeed, registry: Registry, *, every_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._feed, self._registry, self._every_s, self._clock = feed, registry, every_s, clock

    async def run(self) -> None:
        """For ever; an absent store or a change by somebody else is tried again at the next look."""
        while True:
            await asyncio.sleep(self._every_s)
            snapshot = self._feed.snapshot
            for name in snapshot.roles if snapshot is not None else ():
                try:
                    await self.look(name)
                except MeshError as error:
                    _log.info("guard_put_off", role=name, reason=error.reason)

    async def look(self, name: str) -> None:
        """One look at a role."""
        role = await self._feed.role(name)
        if role is None:
            return
        if role.promoted and role.champion not in role.guarded and await self._champion_fell(role):
            return
        for adapter_id in await self._registry.challengers(role):
            found = await self._registry.assessed(role, adapter_id)
            if found.assessment.verdict == "ROLLBACK":
                await self._reject(name, adapter_id, found.assessment.reason)
            elif await self._promote(role, adapter_id, found):
                return  # what was read of the role holds no longer

    async def _champion_fell(self, role: Role) -> bool:
        evidence = await self._registry.former(role)
        broken = breach(evidence.challenger, evidence.champion, self._registry.policies.rules)
        if broken:
            _log.warning("champion_rolled_back", role=role.name, adapter=role.champion, why=broken)
            reason = f"automatic: {role.champion} {broken}"
            await self._registry.rollback(role.name, _call(), reason=reason, expected=role.champion, automatic=True)
        return bool(broken)

    async def _reject(self, name: str, adapter_id: str, why: str) -> None:
        _log.warning("challenger_rejected", role=name, adapter=adapter_id, why=why)
        call = _call()

        def change(role: Role) -> Change:
            if role.challenge(adapter_id) is None:
                raise invalid_field("adapter_id", f"{adapter_id} challenges no more")
            return rejected(
                role, adapter_id, Occasion(self._clock(), call.request_id, f"automatic: {why}", automatic=True)
            )

        await self._registry.change(name, change, call)

    async def _promote(self, role: Role, adapter_id: str, found: Preview) -> bool:
        """Promotes a challenger if policy and verdict are for it."""
        if refusal(self._registry.policies.autopromote, role, found.assessment.verdict, now=self._clock()):
            return False
        _log.info("promoted_by_policy", role=role.name, adapter=adapter_id, why=found.assessment.reason)
        reason = f"automatic: {found.assessment.reason}"
        wish = Promotion(role.name, adapter_id, found.hash, role.champion, reason=reason, automatic=True)
        await self._registry.promote(wish, _call())
        return True


def _call() -> Call:
    return Call(request_id=new_request_id())
