"""The steps of a cycle."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hivemind.servers.orchestrator.cycle import Result, Token
from hivemind.servers.orchestrator.map_keeper import MapKeeper
from hivemind.servers.orchestrator.ports import (
    AdapterInfo,
    Governor,
    Money,
    OnlineUpdates,
    Policy,
    Promotion,
    Registry,
    RoleState,
    Router,
)
from hivemind.servers.orchestrator.ramp import Ramp
from hivemind.servers.orchestrator.worth import Worth, worth_of

GUESS_MICROS: Final = 5_000.0
"""What a refinement is taken to cost before the first one has told."""
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class ReadPlatinum:
    """Reads new examples."""

    keeper: MapKeeper
    name: str = "platinum"

    async def run(self, token: Token) -> Result:
        """See cycle.Step."""
        return await self.keeper.read_ledger(token)


@dataclass(frozen=True, slots=True)
class UpdateMap:
    """Brings the cognitive map up to date."""

    keeper: MapKeeper
    name: str = "map"

    async def run(self, token: Token) -> Result:
        """See cycle.Step."""
        return await self.keeper.update(token)


@dataclass(frozen=True, slots=True)
class Refine:
    """Has recent answers refined where that is worth most. `can_refine`: whether any model could."""

    keeper: MapKeeper
    router: Router
    governor: Governor
    per_cycle: int
    micros: int
    can_refine: Callable[[], bool]
    name: str = "refine"

    async def run(self, token: Token) -> Result:
        """See cycle.Step."""
        if not self.per_cycle:
            return Result("SKIPPED", "switched off (refine_per_cycle = 0)")
        if not self.can_refine():
            return Result("SKIPPED", "neither an oracle nor an arbiter is configured")
        money = await self.governor.refinement()
        if not money.enabled:
            return Result("SKIPPED", "the Governor has refinement switched off")
        price = max(1.0, self.keeper.refinement_micros or GUESS_MICROS)
        count = min(self.per_cycle, int(self._affordable(money) // price))
        if not count:
            return Result("OUT_OF_BUDGET", f"a refinement costs about {price:.0f} micro-USD, more than is left for it")
        worth = worth_of(await self.router.recent(), self.keeper.shared)
        for place, domain in enumerate(worth[:3]):
            value = _value(domain, place)
            key = f"refine-{token()}-{time.time_ns()}"
            found = await self.router.nominate(domain.domain, count, value, token=token(), key=key)
            if found:
                return Result("DONE", _told(domain, len(found)), round(len(found) * price))
        return Result("SKIPPED", "no recent request is worth it")

    def _affordable(self, money: Money) -> int:
        return self.micros if money.left_micros is None else min(self.micros, money.left_micros)


def _value(worth: Worth, place: int) -> float:
    """Its place in the Arbiter's queue: above what is drawn at random, below what a client has complained of."""
    return max(0.3, min(0.8, 0.8 * worth.doubt - 0.1 * place))


def _told(worth: Worth, count: int) -> str:
    return (
        f"{count} answers of {worth.domain} nominated: {worth.requests} requests lately, each "
        f"{worth.gap_micros:.0f} micro-USD above the courier's price, {worth.doubt:.0%} doubt"
    )


@dataclass(frozen=True, slots=True)
class PublishOnline:
    """Has online updates published."""

    updates: OnlineUpdates
    name: str = "online"

    async def run(self, token: Token) -> Result:
        """See cycle.Step."""
        return await self.updates.publish(token=token())


@dataclass(frozen=True, slots=True)
class Challengers:
    """Has new adapters answer in the background, gives challengers more traffic step by step while their evidence is
    not enough for a verdict, and promotes those whose evidence is for it."""

    registry: Registry
    policy: Policy
    ramp: Ramp
    now: Callable[[], float] = time.time
    name: str = "challengers"

    async def run(self, token: Token) -> Result:
        """See cycle.Step."""
        if not self.policy.roles:
            return Result("SKIPPED", "no role may change by itself (autopromote is off)")
        did: list[str] = []
        seen: list[str] = []
        challengers: set[str] = set()
        for role in await self.registry.roles():
            if role.role in self.policy.roles:
                challengers |= set(role.challengers)
                await self._look_after(role, token, did, seen)
        self.ramp.forget_all_but(challengers)
        if did:
            return Result("DONE", "; ".join(did))
        return Result("SKIPPED", "; ".join(seen) or "nobody challenges")

    async def _look_after(self, role: RoleState, token: Token, did: list[str], seen: list[str]) -> None:
        """Changes a role once at the most: what was read of it holds no longer then."""
        changed = await self._shadow(role, token)
        for adapter in reversed(role.challengers):  # the newest has learnt what those before it have
            found = await self.registry.preview(role.role, adapter)
            if changed is None and found.verdict == "PROMOTE":
                changed = await self._promote(role, found, token, seen)
            elif changed is None and found.verdict == "HOLD" and found.split_holds:
                changed = await self._raise(role, found, token, seen)
            else:
                seen.append(f"{adapter}: {found.verdict}, {found.reason}")
        if changed is not None:
            did.append(changed)

    async def _shadow(self, role: RoleState, token: Token) -> str | None:
        """Puts the newest adapter beside the champion, if it was never tried."""
        fresh = next(iter(await self.registry.newest(role.role)), None)
        if fresh is None or not _untried(fresh, role):
            return None
        await self.registry.shadow(role, fresh.id, token=token())
        return f"{fresh.id} answers in the background"

    async def _promote(self, role: RoleState, found: Promotion, token: Token, seen: list[str]) -> str | None:
        why_not = await self._too_soon(role.role)
        if why_not:
            seen.append(f"{found.adapter}: {found.verdict}, {why_not}")
            return None
        await self.registry.promote(role.role, found, token=token())
        return f"{found.adapter} promoted: {found.reason}"

    async def _raise(self, role: RoleState, found: Promotion, token: Token, seen: list[str]) -> str | None:
        """The next share, where it has had enough outcomes and time at the one it has."""
        share, given = role.shares.get(found.adapter, 0.0), sum(role.shares.values())
        following = self.ramp.next_share(found.adapter, share, found.outcomes, given=given)
        lately = await self.registry.traffic_changes(role.role, found.adapter) if following is not None else ()
        if following is None or (lately and self.now() - lately[0] < self.policy.cooldown_s):
            seen.append(f"{found.adapter}: {found.verdict}, {found.reason}")
            return None
        await self.registry.give(role, found.adapter, following, token=token())
        return f"{found.adapter} gets {following:.0%} of the traffic, after {found.outcomes} outcomes"

    async def _too_soon(self, role: str) -> str:
        now = self.now()
        lately = [t for t in await self.registry.promotions(role) if now - t < _DAY_S]
        if len(lately) >= self.policy.max_per_day:
            return f"{len(lately)} promotions in 24 hours are enough"
        if lately and now - lately[0] < self.policy.cooldown_s:
            return f"the last promotion was {now - lately[0]:.0f} s ago, and {self.policy.cooldown_s:.0f} s must pass"
        return ""


def _untried(adapter: AdapterInfo, role: RoleState) -> bool:
    return adapter.state == "REGISTERED" and adapter.id not in (role.champion, *role.challengers)


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """Drops evidence that has faded to nothing."""

    keeper: MapKeeper
    name: str = "housekeeping"

    async def run(self, token: Token) -> Result:
        """See cycle.Step."""
        token()
        faded = self.keeper.forget_faded()
        return Result("DONE" if faded else "SKIPPED", f"{faded} faded sums of evidence dropped")
