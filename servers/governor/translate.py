"""Between the messages of governor.proto and the Governor's core."""

import hashlib
from collections.abc import Iterable

from hivemind.servers.common.translate import timestamp
from hivemind.servers.governor.config import Budget, Config, Patch, Rate
from hivemind.servers.governor.feed import Snapshot
from hivemind.servers.governor.money import DEFAULT_TTL_S, BudgetState, Grant, Item, Row, Settlement, Update, Wish
from hivemind.v1 import common_pb2, governor_pb2


def config_of(config: Config) -> governor_pb2.GovernorConfig:
    """The configuration as the contract has it."""
    message = governor_pb2.GovernorConfig(
        enabled=config.enabled,
        enable_oracle_refinement=config.enable_oracle_refinement,
        force_gpt4o_arbiter=config.force_gpt4o_arbiter,
        quality_dial=config.quality_dial,
        budgets=[_budget(b.tenant, b.period, b.purpose, b.limit_micros) for b in config.budgets],
        rates=[
            governor_pb2.RateLimit(tenant=r.tenant, requests_per_minute=r.requests_per_minute, burst=r.burst)
            for r in config.rates
        ],
        etag=config.etag,
        budget_fail_open=config.budget_fail_open,
        refinement_price_ceiling_micros=config.refinement_price_ceiling_micros,
    )
    if config.updated:
        message.update_time.CopyFrom(timestamp(config.updated))
    for change in config.history:
        message.changes.add(
            time=timestamp(change.time), changes=change.changes, actor=change.actor, request_id=change.request_id
        )
    return message


def snapshot_of(snapshot: Snapshot) -> governor_pb2.WatchConfigResponse:
    """What a watcher is told."""
    config = snapshot.config
    version = common_pb2.SnapshotVersion(revision=config.revision)
    if config.updated:
        version.update_time.CopyFrom(timestamp(config.updated))
    return governor_pb2.WatchConfigResponse(
        config=config_of(config), version=version, router_replicas=snapshot.router_replicas
    )


def patch_of(message: governor_pb2.SetConfigRequest) -> Patch:
    """The wish to change; fields that are absent are None."""

    def given(name: str) -> bool:
        return message.HasField(name)  # type: ignore[arg-type]

    return Patch(
        enabled=message.enabled if given("enabled") else None,
        enable_oracle_refinement=message.enable_oracle_refinement if given("enable_oracle_refinement") else None,
        force_gpt4o_arbiter=message.force_gpt4o_arbiter if given("force_gpt4o_arbiter") else None,
        quality_dial=message.quality_dial if given("quality_dial") else None,
        budget_fail_open=message.budget_fail_open if given("budget_fail_open") else None,
        refinement_price_ceiling_micros=(
            message.refinement_price_ceiling_micros if given("refinement_price_ceiling_micros") else None
        ),
        budgets=tuple(map(_core_budget, message.budgets)),
        rates=tuple(Rate(r.tenant, r.requests_per_minute, r.burst) for r in message.rates),
        remove_budgets=tuple(map(_core_budget, message.remove_budgets)),
        remove_rates=tuple(message.remove_rates),
    )


def fingerprint_of(message: governor_pb2.SetConfigRequest) -> str:
    """Names a request apart from its idempotency key."""
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()[:32]


def wish_of(message: governor_pb2.ReserveBudgetRequest) -> Wish:
    """The reservation that is wanted."""
    charge = message.on_expiry == governor_pb2.ReserveBudgetRequest.CHARGE
    return Wish(
        tenant=message.tenant,
        purpose=_purpose(message.purpose),
        min_micros=message.min_micros,
        wanted_micros=message.wanted_micros,
        ttl_s=message.ttl.ToMilliseconds() / 1000 if message.HasField("ttl") else DEFAULT_TTL_S,
        on_expiry="CHARGE" if charge else "RELEASE",
        holder=message.holder,
        idempotency_key=message.idempotency_key,
    )


def grant_of(grant: Grant) -> governor_pb2.ReserveBudgetResponse:
    """The reservation that was made."""
    message = governor_pb2.ReserveBudgetResponse(
        reservation_id=grant.reservation_id,
        granted_micros=grant.granted_micros,
        unlimited=grant.unlimited,
        remaining_micros=grant.remaining_micros,
    )
    message.ttl.FromMilliseconds(int(grant.ttl_s * 1000))
    return message


def settlement_of(message: governor_pb2.SettleBudgetRequest) -> Settlement:
    """The spend to book."""
    items = tuple(
        Item(
            i.tenant, i.model, _purpose(i.purpose), i.cost_micros, i.requests, i.prompt_tokens, i.completion_tokens,
            i.master_cost_micros,
        )
        for i in message.items
    )  # fmt: skip
    updates = tuple(Update(u.reservation_id, u.spent_micros, u.close) for u in message.reservations)
    return Settlement(message.idempotency_key, items, updates)


def spend_of(
    rows: Iterable[Row], budgets: Iterable[BudgetState], *, tenant: str, model: str
) -> governor_pb2.GetSpendResponse:
    """Sums of spend, of one tenant or model where they are named."""
    message = governor_pb2.GetSpendResponse()
    for row in rows:
        if (tenant and row.tenant != tenant) or (model and row.model != model):
            continue
        message.rows.add(
            date=row.date,
            tenant=row.tenant,
            model=row.model,
            purpose=common_pb2.Purpose.Value(row.purpose),
            cost_micros=row.cost_micros,
            requests=row.requests,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            master_cost_micros=row.master_cost_micros,
        )
        message.total_micros += row.cost_micros
        message.saved_micros += row.master_cost_micros - row.cost_micros
    for state in budgets:
        message.budgets.add(
            budget=_budget(state.tenant, state.period, state.purpose, state.limit_micros),
            spent_micros=state.spent_micros,
            reserved_micros=state.held_micros,
            remaining_micros=state.remaining_micros,
            reset_time=timestamp(state.reset),
        )
    return message


def _core_budget(message: governor_pb2.Budget) -> Budget:
    period = common_pb2.Period.Name(message.period)
    return Budget(message.tenant, period, message.limit_micros, _purpose(message.purpose))


def _budget(tenant: str, period: str, purpose: str, limit_micros: int) -> governor_pb2.Budget:
    return governor_pb2.Budget(
        tenant=tenant,
        period=common_pb2.Period.Value(period),
        limit_micros=limit_micros,
        purpose=common_pb2.Purpose.Value(purpose),
    )


def _purpose(value: int) -> str:
    return "REFINEMENT" if value == common_pb2.REFINEMENT else "SERVING"
