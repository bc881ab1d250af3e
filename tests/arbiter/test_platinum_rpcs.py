"""ListPlatinum, GetPlatinum, GetPlatinumStats and ForgetPlatinum over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hivemind.v1 import arbiter_pb2 as pb
from tests.arbiter.examples import example
from tests.arbiter.rig import Rig, arbiter, reason_of
from tests.support.redis_process import RedisProcess


@pytest.fixture
async def rig(tmp_path: Path, empty_redis: RedisProcess) -> AsyncIterator[Rig]:
    async with arbiter(tmp_path, empty_redis) as made:
        yield made


async def store(rig: Rig, count: int, **fields: Any) -> None:
    await asyncio.gather(*(rig.platinum.ledger.append(example(i, **fields)) for i in range(count)))


async def page(rig: Rig, *, header: str = "", **fields: Any) -> pb.ListPlatinumResponse:
    metadata = (("x-hivemind-tenant", header),) if header else None
    return await rig.stub.ListPlatinum(pb.ListPlatinumRequest(**fields), metadata=metadata)


def sequences(found: pb.ListPlatinumResponse) -> list[int]:
    return [e.sequence for e in found.examples]


async def test_pages_go_from_the_newest_on_and_stay_while_examples_arrive(rig: Rig) -> None:
    await store(rig, 10)
    first = await page(rig, page_size=4)
    await store(rig, 5)
    second = await page(rig, page_size=4, page_token=first.next_page_token)
    third = await page(rig, page_size=4, page_token=second.next_page_token)

    assert sequences(first) + sequences(second) + sequences(third) == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert third.next_page_token == ""


async def test_a_page_that_ends_with_the_last_example_has_no_token(rig: Rig) -> None:
    await store(rig, 4)

    assert (await page(rig, page_size=4)).next_page_token == ""
    assert (await page(rig, page_size=3)).next_page_token != ""


async def test_the_default_page_holds_50_and_the_largest_500(rig: Rig) -> None:
    await store(rig, 510)

    assert len((await page(rig)).examples) == 50
    assert len((await page(rig, page_size=10_000)).examples) == 500


async def test_examples_are_found_by_tenant_and_domain(rig: Rig) -> None:
    await store(rig, 2, tenant="a", domain="law")
    await store(rig, 2, tenant="b", domain="law")
    await store(rig, 2, tenant="a", domain="code")

    assert sequences(await page(rig, tenant="a")) == [6, 5, 2, 1]
    assert sequences(await page(rig, domain="law")) == [4, 3, 2, 1]
    assert sequences(await page(rig, tenant="a", domain="law")) == [2, 1]
    assert sequences(await page(rig, tenant="nobody")) == []


async def test_a_caller_that_names_itself_sees_and_forgets_its_own_only(rig: Rig) -> None:
    await store(rig, 1, tenant="a")
    await store(rig, 1, tenant="b")
    other = (await page(rig, tenant="b")).examples[0].id
    header = (("x-hivemind-tenant", "a"),)

    assert sequences(await page(rig, header="a", tenant="b")) == [1]
    assert await reason_of(rig.stub.GetPlatinum(pb.GetPlatinumRequest(id=other), metadata=header)) == (
        "NOT_FOUND_RESOURCE"
    )
    request = pb.ForgetPlatinumRequest(id=other)
    assert await reason_of(rig.stub.ForgetPlatinum(request, metadata=header)) == "NOT_FOUND_RESOURCE"
    assert sequences(await page(rig, tenant="b")) == [2]


@pytest.mark.parametrize("fields", [{"page_size": -1}, {"page_token": "x"}, {"page_token": "-1"}])
async def test_a_wrong_page_is_refused(rig: Rig, fields: dict[str, Any]) -> None:
    assert await reason_of(page(rig, **fields)) == "INVALID_FIELD"


async def test_one_example_is_got_by_its_id(rig: Rig) -> None:
    stored = await rig.platinum.ledger.append(example(1))

    assert (await rig.stub.GetPlatinum(pb.GetPlatinumRequest(id=stored.id))).sha256 == stored.sha256
    for name in ("01a20fae-74dc-7007-b92b-be166d337674", "no id"):
        assert await reason_of(rig.stub.GetPlatinum(pb.GetPlatinumRequest(id=name))) == "NOT_FOUND_RESOURCE"


async def test_stats_count_what_can_be_learnt_from_and_what_was_forgotten(rig: Rig, tmp_path: Path) -> None:
    await store(rig, 3, tenant="a", domain="law")
    await store(rig, 2, tenant="b", domain="code", refined_by="HUMAN")
    await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(request_id="request-2", reason="asked"))

    found = await rig.stub.GetPlatinumStats(pb.GetPlatinumStatsRequest())

    assert (found.examples, found.forgotten, found.last_sequence) == (4, 1, 6)
    assert dict(found.by_refined_by) == {"ORACLE": 2, "HUMAN": 2}
    assert dict(found.by_domain) == {"law": 2, "code": 2}
    assert dict(found.by_tenant) == {"a": 2, "b": 2}
    assert found.cost_micros == 480
    assert (found.queued, found.dropped) == (7, 3)
    assert found.size_bytes == (tmp_path / "training_metadata.jsonl").stat().st_size


async def test_what_is_forgotten_vanishes_at_once(rig: Rig) -> None:
    await store(rig, 3, tenant="a")
    await store(rig, 2, tenant="b")
    before = await page(rig, tenant="a")

    answer = await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(tenant="a", rotate=True, reason="left"))

    assert list(answer.ids) == [e.id for e in reversed(before.examples)]
    assert sequences(await page(rig)) == [5, 4]
    assert await reason_of(rig.stub.GetPlatinum(pb.GetPlatinumRequest(id=answer.ids[0]))) == "NOT_FOUND_RESOURCE"
    for again in (pb.ForgetPlatinumRequest(tenant="a"), pb.ForgetPlatinumRequest(id=answer.ids[0], rotate=True)):
        assert list((await rig.stub.ForgetPlatinum(again)).ids) == []


async def test_forgetting_what_never_was_is_not_found(rig: Rig) -> None:
    request = pb.ForgetPlatinumRequest(id="01a20fae-74dc-7007-b92b-be166d337674")

    assert await reason_of(rig.stub.ForgetPlatinum(request)) == "NOT_FOUND_RESOURCE"


async def test_a_page_of_large_examples_is_as_short_as_a_message_allows(rig: Rig) -> None:
    await store(rig, 8, draft="x" * 1_000_000)

    first = await page(rig, page_size=8)
    second = await page(rig, page_size=8, page_token=first.next_page_token)

    assert sequences(first) + sequences(second) == [8, 7, 6, 5, 4, 3][: len(first.examples) + len(second.examples)]
    assert len(first.examples) == 3


@pytest.mark.parametrize("fields", [{}, {"tenant": "a", "id": "x"}, {"tenant": "a", "request_id": "r"}])
async def test_forgetting_needs_exactly_one_name(rig: Rig, fields: dict[str, str]) -> None:
    assert await reason_of(rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(**fields))) == "INVALID_FIELD"
