"""The Governor over gRPC, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.governor.config import Config
from hivemind.servers.governor.feed import ConfigFeed
from hivemind.servers.governor.service import GovernorService
from hivemind.servers.governor.store_redis import RedisStore
from hivemind.v1 import common_pb2 as common
from hivemind.v1 import governor_pb2 as pb
from hivemind.v1 import governor_pb2_grpc as rpc
from tests.support.redis_process import RedisProcess

DAY_MS = 86_400_000
CHARGE = pb.ReserveBudgetRequest.CHARGE


@dataclass
class Rig:
    """A Governor with its client; `shift_ms` lets time pass for its scripts."""

    stub: rpc.GovernorServiceStub
    feed: ConfigFeed
    redis: Redis
    shift_ms: int = 0

    async def set_budget(self, tenant: str, limit: int, period: Any = common.DAY) -> pb.GovernorConfig:
        budget = pb.Budget(tenant=tenant, period=period, limit_micros=limit)
        return await self.stub.SetConfig(pb.SetConfigRequest(budgets=[budget]))

    async def reserve(self, tenant: str, least: int, wanted: int = 0, **fields: Any) -> pb.ReserveBudgetResponse:
        return await self.stub.ReserveBudget(
            pb.ReserveBudgetRequest(tenant=tenant, min_micros=least, wanted_micros=wanted, **fields)
        )

    async def settle(self, key: str, *items: pb.SpendItem, **updates: tuple[int, bool]) -> pb.SettleBudgetResponse:
        reservations = [
            pb.ReservationUpdate(reservation_id=i.removeprefix("r_"), spent_micros=s, close=c)
            for i, (s, c) in updates.items()
        ]
        return await self.stub.SettleBudget(
            pb.SettleBudgetRequest(idempotency_key=key, items=items, reservations=reservations)
        )

    async def state(self, tenant: str) -> tuple[int, int]:
        """Spent and reserved of the tenant's budget."""
        spend = await self.stub.GetSpend(pb.GetSpendRequest())
        return next((b.spent_micros, b.reserved_micros) for b in spend.budgets if b.budget.tenant == tenant)


def item(tenant: str, cost: int, master: int = 0) -> pb.SpendItem:
    return pb.SpendItem(tenant=tenant, model="master", cost_micros=cost, requests=1, master_cost_micros=master or cost)


@pytest.fixture
async def rig(empty_redis: RedisProcess) -> AsyncIterator[Rig]:
    async with governor(empty_redis) as made:
        yield made


class governor:
    """Runs a Governor in this process."""

    def __init__(self, redis: RedisProcess, seed: Config | None = None) -> None:
        self._redis = redis_client(redis.url, timeout_s=1.0)
        self._seed = seed or Config()

    async def __aenter__(self) -> Rig:
        store = RedisStore(self._redis, shift_ms=lambda: self.rig.shift_ms)
        feed = ConfigFeed(store, self._seed, poll_s=0.05)
        policy = CallPolicy(None, 10.0, 100)
        self._server = grpc.aio.server(interceptors=[MeshInterceptor(policy, RpcMetrics(CollectorRegistry()))])
        rpc.add_GovernorServiceServicer_to_server(GovernorService(feed, store), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._task = asyncio.create_task(feed.run())
        self.rig = Rig(rpc.GovernorServiceStub(self._channel), feed, self._redis)
        return self.rig

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await self._channel.close()
        await self._server.stop(None)
        await self._redis.aclose()


async def reason_of(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = rpc_status.from_call(error.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


async def test_an_empty_store_begins_with_the_environments_values_and_then_wins(empty_redis: RedisProcess) -> None:
    async with governor(empty_redis, Config(force_gpt4o_arbiter=True)) as first:
        config = await first.stub.GetConfig(pb.GetConfigRequest())
        assert config.enabled
        assert config.force_gpt4o_arbiter
        assert [(b.tenant, b.purpose, b.limit_micros) for b in config.budgets] == [("*", common.REFINEMENT, 1_000_000)]
        await first.stub.SetConfig(pb.SetConfigRequest(enabled=False))
    async with governor(empty_redis, Config(force_gpt4o_arbiter=False)) as second:
        config = await second.stub.GetConfig(pb.GetConfigRequest())

    assert config.force_gpt4o_arbiter
    assert not config.enabled


async def test_absent_fields_stay_and_changes_are_audited(rig: Rig) -> None:
    await rig.stub.SetConfig(pb.SetConfigRequest(quality_dial=0.75), metadata=(("x-hivemind-tenant", "ops"),))
    config = await rig.stub.SetConfig(pb.SetConfigRequest(enabled=False))

    assert config.quality_dial == 0.75
    assert [list(c.changes) for c in config.changes] == [["enabled: true -> false"], ["quality_dial: 0.5 -> 0.75"]]
    assert config.changes[1].actor == "ops"


async def test_a_change_that_changes_nothing_keeps_the_etag(rig: Rig) -> None:
    before = await rig.stub.GetConfig(pb.GetConfigRequest())

    assert (await rig.stub.SetConfig(pb.SetConfigRequest(enabled=True))).etag == before.etag


async def test_an_old_etag_is_refused(rig: Rig) -> None:
    etag = (await rig.stub.GetConfig(pb.GetConfigRequest())).etag
    await rig.stub.SetConfig(pb.SetConfigRequest(enabled=False, etag=etag))

    assert await reason_of(rig.stub.SetConfig(pb.SetConfigRequest(enabled=True, etag=etag))) == "ETAG_MISMATCH"


async def test_concurrent_changes_are_all_kept(rig: Rig) -> None:
    await asyncio.gather(*(rig.set_budget(f"t{i}", i) for i in range(12)))

    config = await rig.stub.GetConfig(pb.GetConfigRequest())
    assert {b.tenant for b in config.budgets} == {"*", *(f"t{i}" for i in range(12))}


async def test_an_idempotency_key_has_one_effect_also_at_the_same_time(rig: Rig) -> None:
    request = pb.SetConfigRequest(quality_dial=0.25, idempotency_key="k1")
    answers = await asyncio.gather(*(rig.stub.SetConfig(request) for _ in range(6)))
    await rig.stub.SetConfig(pb.SetConfigRequest(quality_dial=0.9))
    again = await rig.stub.SetConfig(request)

    assert {a.etag for a in [*answers, again]} == {"r1"}
    assert (await rig.stub.GetConfig(pb.GetConfigRequest())).quality_dial == 0.9
    other = pb.SetConfigRequest(quality_dial=0.1, idempotency_key="k1")
    assert await reason_of(rig.stub.SetConfig(other)) == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize(
    "request_",
    [
        pb.SetConfigRequest(quality_dial=7),
        pb.SetConfigRequest(budgets=[pb.Budget(tenant="A", period=common.DAY)]),
        pb.SetConfigRequest(budgets=[pb.Budget(tenant="a", period=common.DAY, limit_micros=-1)]),
        pb.SetConfigRequest(remove_budgets=[pb.Budget(tenant="nobody", period=common.DAY)]),
        pb.SetConfigRequest(rates=[pb.RateLimit(tenant="a", requests_per_minute=-1)]),
        pb.SetConfigRequest(refinement_price_ceiling_micros=-5),
    ],
    ids=str,
)
async def test_nonsense_is_refused(rig: Rig, request_: pb.SetConfigRequest) -> None:
    assert await reason_of(rig.stub.SetConfig(request_)) == "INVALID_FIELD"


async def test_without_a_budget_money_is_unlimited(rig: Rig) -> None:
    assert (await rig.reserve("anyone", 10)).unlimited


async def test_a_grant_leaves_money_to_other_replicas(rig: Rig) -> None:
    await rig.set_budget("t", 8_000)

    grant = await rig.reserve("t", 10, 100_000)

    assert grant.granted_micros == 1_000
    assert await rig.state("t") == (0, 1_000)


async def test_every_budget_that_applies_counts(rig: Rig) -> None:
    await rig.set_budget("t", 1_000)
    await rig.set_budget("*", 600)
    await rig.set_budget("t", 300, common.MONTH)

    assert await reason_of(rig.reserve("t", 301)) == "BUDGET_EXHAUSTED"
    assert (await rig.reserve("t", 300)).granted_micros == 300
    assert await reason_of(rig.reserve("other", 301)) == "BUDGET_EXHAUSTED"


async def test_settling_moves_money_from_reserved_to_spent_once(rig: Rig) -> None:
    await rig.set_budget("t", 10_000)
    grant = await rig.reserve("t", 1_000)

    for _ in range(3):
        await rig.settle("k", item("t", 400), **{f"r_{grant.reservation_id}": (400, False)})

    assert await rig.state("t") == (400, 600)
    await rig.settle("k2", **{f"r_{grant.reservation_id}": (0, True)})
    assert await rig.state("t") == (400, 0)


async def test_a_budget_set_in_mid_period_counts_what_was_spent_before(rig: Rig) -> None:
    await rig.settle("k", item("t", 700))
    await rig.set_budget("t", 1_000)

    assert await rig.state("t") == (700, 0)
    assert await reason_of(rig.reserve("t", 301)) == "BUDGET_EXHAUSTED"


@pytest.mark.parametrize(("on_expiry", "spent"), [(pb.ReserveBudgetRequest.RELEASE, 0), (CHARGE, 500)])
async def test_an_abandoned_reservation_ends(rig: Rig, on_expiry: Any, spent: int) -> None:
    await rig.set_budget("t", 10_000)
    await rig.reserve("t", 500, on_expiry=on_expiry)

    rig.shift_ms += 61_000

    assert await rig.state("t") == (spent, 0)


async def test_a_late_settlement_of_a_charged_reservation_is_not_booked_twice(rig: Rig) -> None:
    await rig.set_budget("t", 10_000)
    grant = await rig.reserve("t", 500, on_expiry=CHARGE)
    rig.shift_ms += 61_000
    assert await rig.state("t") == (500, 0)

    answer = await rig.settle("k", item("t", 300), **{f"r_{grant.reservation_id}": (300, False)})

    assert list(answer.closed_reservations) == [grant.reservation_id]
    assert await rig.state("t") == (500, 0)


async def test_a_settlement_renews_a_reservation(rig: Rig) -> None:
    await rig.set_budget("t", 10_000)
    grant = await rig.reserve("t", 500)
    rig.shift_ms += 50_000
    await rig.settle("k", **{f"r_{grant.reservation_id}": (0, False)})
    rig.shift_ms += 50_000

    assert await rig.state("t") == (0, 500)


async def test_a_new_day_has_a_new_budget_and_a_month_does_not(rig: Rig) -> None:
    await rig.set_budget("day", 1_000)
    await rig.settle("k", item("day", 1_000))
    assert await reason_of(rig.reserve("day", 1)) == "BUDGET_EXHAUSTED"

    rig.shift_ms += DAY_MS

    assert (await rig.reserve("day", 1)).granted_micros >= 1


@pytest.mark.parametrize("days", [0, 1, 30, 59, 60, 366, 1461])
async def test_the_scripts_calendar_is_right(rig: Rig, days: int) -> None:
    from datetime import UTC, datetime, timedelta

    rig.shift_ms = days * DAY_MS
    await rig.set_budget("t", 1, common.MONTH)
    seconds, _ = await rig.redis.time()
    now = datetime.fromtimestamp(seconds, UTC) + timedelta(days=days)

    spend = await rig.stub.GetSpend(pb.GetSpendRequest())

    reset = next(b.reset_time.ToDatetime(UTC) for b in spend.budgets if b.budget.tenant == "t")
    assert reset == (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=1)


async def test_spend_is_summed_by_tenant_model_and_day(rig: Rig) -> None:
    await rig.settle("k1", item("a", 10, master=100), item("b", 20))
    await rig.settle("k2", item("a", 5, master=50))

    spend = await rig.stub.GetSpend(pb.GetSpendRequest(tenant="a"))

    assert [(r.tenant, r.model, r.cost_micros, r.requests) for r in spend.rows] == [("a", "master", 15, 2)]
    assert spend.total_micros == 15
    assert spend.saved_micros == 135


@pytest.mark.parametrize("dates", [("nonsense", ""), ("2026-02-02", "2026-01-01"), ("2020-01-01", "2026-01-01")])
async def test_odd_dates_are_refused(rig: Rig, dates: tuple[str, str]) -> None:
    request = pb.GetSpendRequest(start_date=dates[0], end_date=dates[1])

    assert await reason_of(rig.stub.GetSpend(request)) == "INVALID_FIELD"


async def test_watchers_hear_at_once_and_of_every_change_also_by_another_replica(
    rig: Rig, empty_redis: RedisProcess
) -> None:
    async with governor(empty_redis) as other, asyncio.timeout(10):
        watch = rig.stub.WatchConfig(pb.WatchConfigRequest(watcher="router"))
        first = await watch.read()
        await other.stub.SetConfig(pb.SetConfigRequest(quality_dial=0.1))
        seen = [first]
        while not (seen[-1].config.quality_dial == 0.1 and seen[-1].router_replicas == 1):
            seen.append(await watch.read())
        watch.cancel()

    assert first.config.quality_dial == 0.5
    assert len(seen) <= 4


async def test_a_store_that_is_gone_is_told_quickly_and_comes_back(rig: Rig, empty_redis: RedisProcess) -> None:
    await rig.stub.SetConfig(pb.SetConfigRequest(enabled=False))
    empty_redis.kill()
    async with asyncio.timeout(5):
        assert await reason_of(rig.stub.SetConfig(pb.SetConfigRequest(enabled=True))) == "STORE_UNAVAILABLE"
        assert not (await rig.stub.GetConfig(pb.GetConfigRequest())).enabled  # what was last known

    empty_redis.start()

    assert not (await rig.stub.GetConfig(pb.GetConfigRequest())).enabled
    assert (await rig.stub.SetConfig(pb.SetConfigRequest(enabled=True))).enabled


async def test_a_full_store_says_so(rig: Rig) -> None:
    await rig.stub.GetConfig(pb.GetConfigRequest())
    await rig.redis.config_set("maxmemory", 1)
    try:
        assert await reason_of(rig.settle("k", item("t", 1))) == "STORE_FULL"
    finally:
        await rig.redis.config_set("maxmemory", 0)

    await rig.settle("k", item("t", 1))
    assert (await rig.stub.GetSpend(pb.GetSpendRequest())).total_micros == 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "close", "wait"]), st.integers(1, 400), st.integers(0, 3)),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.integers(0, 2_000))
async def test_spent_and_reserved_never_exceed_the_limit(
    redis_server: RedisProcess, steps: list[tuple[str, int, int]], limit: int
) -> None:
    """Holders that spend no more than they were granted keep the budget, whatever they do and whenever they die."""
    redis_server.client.flushall()
    async with governor(redis_server) as rig:
        await rig.set_budget("t", limit)
        held: dict[str, int] = {}
        for number, (kind, amount, which) in enumerate(steps):
            if kind == "reserve":
                try:
                    grant = await rig.reserve("t", amount, 2 * amount, on_expiry=CHARGE)
                    held[grant.reservation_id] = grant.granted_micros
                except grant_refused:
                    continue
            elif kind == "wait":
                rig.shift_ms += 70_000 if which == 0 else 5_000
                if which == 0:
                    held.clear()
            elif held:
                name = sorted(held)[which % len(held)]
                cost = min(amount, held[name])
                await rig.settle(f"k{number}", item("t", cost), **{f"r_{name}": (cost, kind == "close")})
                held[name] -= cost
                if kind == "close":
                    del held[name]
            spent, reserved = await rig.state("t")
            assert spent + reserved <= limit
            assert reserved == sum(held.values())


grant_refused = grpc.aio.AioRpcError
