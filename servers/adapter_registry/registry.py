"""The registry: who is champion, who challenges, on what evidence. Everything that the RPCs and the loops ask for."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from hivemind.servers.adapter_registry.adapters import AdapterRecord, AdapterView, role_of, view
from hivemind.servers.adapter_registry.autopromote import AutopromotePolicy
from hivemind.servers.adapter_registry.evidence import Evidence, Outcome, Point
from hivemind.servers.adapter_registry.feed import RoleView, StateFeed
from hivemind.servers.adapter_registry.ports import Answer, Call, Store
from hivemind.servers.adapter_registry.promotion import (
    Preview,
    check_evidence,
    check_hash,
    preview,
    requests_per_day,
    summary,
)
from hivemind.servers.adapter_registry.roles import (
    Challenge,
    Change,
    Event,
    Mark,
    Occasion,
    Role,
    check_champion,
    promoted,
    rolled_back,
    with_traffic,
)
from hivemind.servers.adapter_registry.verdict import Rules, assess
from hivemind.servers.adapter_registry.versions import Versions
from hivemind.servers.common.errors import MeshError, Violation, invalid_field, not_found

_TRIES: Final = 50
_COST_MAX: Final = 10**12
_LATENCY_MAX_S: Final = 86_400.0
OUTCOMES_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Promotion:
    """What is asked for. `expected`: the champion that must be in office, None: not said."""

    role: str
    adapter_id: str = ""
    preview_hash: str = ""
    expected: str | None = None
    override: bool = False
    reason: str = ""
    automatic: bool = False


@dataclass(frozen=True, slots=True)
class Policies:
    """What verdicts and automatic promotions rest on."""

    rules: Rules = field(default_factory=Rules)
    autopromote: AutopromotePolicy = field(default_factory=AutopromotePolicy)

    @property
    def name(self) -> str:
        """Names both."""
        return f"{self.rules.name}|{self.autopromote.name}"


class Registry:
    """Reads and changes roles. Changes are made on what the store has now, and again where another came first."""

    def __init__(
        self,
        store: Store,
        feed: StateFeed,
        versions: Versions,
        policies: Policies,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._feed, self._versions, self._clock = store, feed, versions, clock
        self.policies = policies

    async def adapter(self, adapter_id: str) -> AdapterView:
        """One adapter; NOT_FOUND_RESOURCE."""
        record, mark = await self._known(adapter_id)
        return view(record, await self._role(record.role), mark)

    async def adapters(self, role: str, before: int, count: int) -> list[AdapterView]:
        """A page of adapters, newest first."""
        records = await self._store.newest(role, before, count)
        marks = await self._store.adapters([r.id for r in records])
        _, roles = await self._store.load()
        return [view(r, roles.get(r.role, Role(r.role)), marks[r.id][1]) for r in records if r.id in marks]

    async def events(self, role: str, before: int, count: int) -> list[Event]:
        """A page of events, newest first."""
        return await self._store.events(role, before, count)

    async def preview(self, role_name: str, adapter_id: str = "") -> Preview:
        """What promoting would do; without an id of the newest that is not champion. Changes nothing."""
        role = await self._role(role_name)
        if not adapter_id:
            newest = await self._store.newest(role_name, 0, 2)
            adapter_id = next((r.id for r in newest if r.id != role.champion), "")
        return await self._preview(role, adapter_id)

    async def promote(self, wish: Promotion, call: Call) -> RoleView:
        """Makes an adapter champion. CHAMPION_CHANGED, STALE_PREVIEW or EVIDENCE_MISSING where it may not be."""
        _check_promotion(wish)

        async def change(role: Role) -> Change:
            adapter_id, named = await self._promotable(role, wish)
            occasion = Occasion(
                self._clock(), call.request_id, wish.reason or named.assessment.reason, named.hash, wish.automatic
            )
            return promoted(role, adapter_id, occasion)

        return await self._change(wish.role, change, call)

    async def rollback(
        self, role_name: str, call: Call, *, reason: str = "", expected: str = "", automatic: bool = False
    ) -> RoleView:
        """Makes the champion before champion again, without one the base model. CHAMPION_CHANGED unless `expected` is
        in office, where it is given."""

        async def change(role: Role) -> Change:
            if expected:
                check_champion(role, expected)
            return rolled_back(role, Occasion(self._clock(), call.request_id, reason, automatic=automatic))

        return await self._change(role_name, change, call)

    async def set_traffic(self, role_name: str, wish: Challenge, call: Call, *, etag: str = "") -> RoleView:
        """Sets a challenger's share, whatever the replicas hold. ETAG_MISMATCH where the role is at another etag."""
        await self._known(wish.adapter_id, role_name)

        async def change(role: Role) -> Change:
            if etag and etag != role.etag:
                message = f"{role.name} is at etag {role.etag}, not {etag}; read it again and retry"
                raise MeshError("ETAG_MISMATCH", message, metadata={"etag": role.etag})
            return with_traffic(role, wish, Occasion(self._clock(), call.request_id))

        return await self._change(role_name, change, call)

    async def change(self, role_name: str, make: Callable[[Role], Change], call: Call) -> RoleView:
        """Any other change of a role, made by a pure function."""

        async def change(role: Role) -> Change:
            return make(role)

        return await self._change(role_name, change, call)

    async def record(self, outcomes: Sequence[Outcome], call: Call) -> tuple[int, int]:
        """Counts outcomes; how many were new and how many known. INVALID_FIELD names every one that is wrong."""
        wrong = [Violation(f"outcomes[{i}].{name}", text) for i, o in enumerate(outcomes) for name, text in _wrong(o)]
        if len(outcomes) > OUTCOMES_MAX:
            wrong = [Violation("outcomes", f"at most {OUTCOMES_MAX} in one call")]
        if not wrong:
            wrong = await self._unknown(outcomes)
        if wrong:
            raise MeshError(
                "INVALID_FIELD",
                "; ".join(f"{v.field}: {v.description}" for v in wrong[:5]),
                violations=tuple(wrong[:20]),
            )
        return await self._store.record(outcomes, call)

    def desired(self, role: str) -> Mapping[str, str]:
        """The adapters that each replica of a role must hold, the champion first, each with its directory."""
        snapshot = self._feed.snapshot
        if snapshot is None or role not in snapshot.roles:
            return {}
        found = ((i, snapshot.records.get(i)) for i in snapshot.to_hold(role))
        return {i: str(self._versions.directory(record.path)) for i, record in found if record is not None}

    async def newest_challenger(self, role: Role) -> str:
        """The challenger or shadow that was registered last; '' without any."""
        return next(iter(await self.challengers(role)), "")

    async def challengers(self, role: Role) -> list[str]:
        """Challengers and shadows, the one that was registered last first."""
        known = await self._store.adapters([c.adapter_id for c in role.challenges])
        return sorted(known, key=lambda i: known[i][0].order, reverse=True)

    async def assessed(self, role: Role, adapter_id: str) -> Preview:
        """The preview of an adapter for the role as it was read."""
        return await self._preview(role, adapter_id)

    async def former(self, role: Role) -> Evidence:
        """The champion in its reign against the one before in the reign before."""
        return await self._store.former(role)

    async def _promotable(self, role: Role, wish: Promotion) -> tuple[str, Preview]:
        if wish.expected is not None:
            check_champion(role, wish.expected)
        adapter_id = wish.adapter_id or await self.newest_challenger(role)
        if not adapter_id:
            raise _nobody_challenges(role, await self.preview(role.name))
        found = await self._preview(role, adapter_id)
        if wish.preview_hash:
            check_hash(wish.preview_hash, found)
        if not wish.override:
            check_evidence(found)
        return adapter_id, found

    async def _preview(self, role: Role, adapter_id: str) -> Preview:
        if not adapter_id:
            raise _nobody_challenges(role)
        record, _ = await self._known(adapter_id, role.name)
        in_office = adapter_id == role.champion
        evidence = (
            await self._store.former(role)
            if in_office
            else (await self._store.evidence(role, [adapter_id]))[adapter_id]
        )
        points: list[Point] = await self._store.points(role.name, role.reign - in_office, adapter_id)
        hours, minutes = await self._store.hours(role.name)
        found = assess(evidence, {} if in_office else role.shares, self.policies.rules)
        if in_office:
            found = replace(found, verdict="HOLD", reason="it is champion already", needed=0)
        return preview(
            role, adapter_id, record.sha256, evidence, found, policy=self.policies.name,
            requests_per_day=requests_per_day(hours, minutes), points=points,
        )  # fmt: skip

    async def _change(self, role_name: str, make: Callable[[Role], Awaitable[Change]], call: Call) -> RoleView:
        first = await self._store.repeated(call)
        if first is not None:
            return await self._told(first)
        for _ in range(_TRIES):
            role = await self._role(role_name)
            try:
                answer = await self._store.commit(role, await make(role), call)
            except MeshError:
                first = await self._store.repeated(call)
                if first is None:
                    raise
                return await self._told(first)  # this very request was carried out meanwhile, so its time has passed
            if answer is not None:
                return await self._told(answer)
        raise MeshError("STORE_UNAVAILABLE", "too many changes at the same time; retry", retry_after_s=1.0)

    async def _told(self, answer: Answer) -> RoleView:
        """The role after the change; watchers hear of it before the caller does."""
        snapshot = await self._feed.get()
        now = snapshot.roles.get(answer.role.name)
        if now is not None and now.role.revision == answer.role.revision:
            return now
        return RoleView(answer.role) if now is None else replace(now, role=answer.role, evidence={})

    async def _role(self, name: str) -> Role:
        role = await self._feed.role(name)
        if role is None:
            raise not_found("role", name)
        return role

    async def _known(self, adapter_id: str, role: str = "") -> tuple[AdapterRecord, Mark]:
        found = await self._store.adapters([adapter_id]) if role_of(adapter_id) else {}
        if adapter_id not in found:
            raise not_found("adapter", adapter_id)
        if role and found[adapter_id][0].role != role:
            raise invalid_field("adapter_id", f"{adapter_id} is not an adapter of the role {role}")
        return found[adapter_id]

    async def _unknown(self, outcomes: Sequence[Outcome]) -> list[Violation]:
        names = {i for o in outcomes for i in (o.adapter_id, o.compared_with) if i}
        known = await self._store.adapters(sorted(names))
        return [
            Violation(f"outcomes[{i}].{field}", f"no adapter of the role {o.role} has the id {name!r}")
            for i, o in enumerate(outcomes)
            for field, name in (("adapter_id", o.adapter_id), ("compared_with", o.compared_with))
            if name and (name not in known or known[name][0].role != o.role)
        ]


def _check_promotion(wish: Promotion) -> None:
    if wish.override and not wish.reason.strip():
        raise invalid_field(
            "reason", "must say why, where override is true; the history keeps it", reason="MISSING_FIELD"
        )
    if len(wish.reason) > 1000:
        raise invalid_field("reason", "must have 1000 characters at most")
    if wish.adapter_id and not wish.preview_hash and not wish.override:
        text = "must name the preview that the promotion rests on; or set override and a reason"
        raise invalid_field("preview_hash", text, reason="MISSING_FIELD")


def _nobody_challenges(role: Role, newest: Preview | None = None) -> MeshError:
    """With the preview of the newest adapter that is not champion, where there is one."""
    plain = {"role": role.name, "expected_champion": role.champion, "verdict": "HOLD", "adapter_id": ""}
    message = f"nobody challenges {role.name}: register an adapter and give it traffic or shadow first"
    return MeshError("EVIDENCE_MISSING", message, metadata=summary(newest) if newest is not None else plain)


def _wrong(outcome: Outcome) -> list[tuple[str, str]]:
    found = []
    if not role_of(f"{outcome.role}-v000001"):
        found.append(("role", "must match [a-z0-9._-]+"))
    if not 0 < len(outcome.request_id) <= 128:
        found.append(("request_id", "must have 1 to 128 characters"))
    if not 0 <= outcome.cost_micros <= _COST_MAX:
        found.append(("cost_micros", f"must be from 0 to {_COST_MAX}"))
    if outcome.latency_s is not None and not 0 <= outcome.latency_s <= _LATENCY_MAX_S:
        found.append(("latency", "must be from 0 to a day"))
    if outcome.score is not None and outcome.score not in (0.0, 0.5, 1.0):
        found.append(("score", "must be 1 (won), 0.5 (tie) or 0 (lost)"))
    if outcome.rating not in (None, 1, -1):
        found.append(("rating", "must be 1 (good) or -1 (bad)"))
    if outcome.score is not None and outcome.adapter_id == outcome.compared_with:
        found.append(("compared_with", "must be another adapter than adapter_id"))
    return found
