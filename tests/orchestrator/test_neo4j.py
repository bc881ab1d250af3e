"""The map in a real Bolt database, by the official driver: FAULTS 36."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.orchestrator.__main__ import configured_mirror
from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.domains import Skill
from hivemind.servers.orchestrator.neo4j_mirror import Mirroring, Neo4jMirror
from hivemind.servers.orchestrator.settings import OrchestratorSettings
from tests.orchestrator.ledgers import opened, store
from tests.support.arbiter_rig import eventually
from tests.support.bolt_server import DATABASE, PASSWORD, BoltServer, bolt_server
from tests.support.orchestrators import orchestrator
from tests.support.redis_process import RedisProcess
from tests.support.waiting import until

SKILLS = """
MATCH (s:Skill) RETURN s.name AS name, s.confidence AS confidence, s.n AS n, s.updated_at AS updated_at ORDER BY name
"""
IMPROVES = """
MATCH (a:Adapter)-[r:IMPROVES]->(s:Skill) RETURN a.id AS adapter, s.name AS skill, count(r) AS edges ORDER BY skill
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoltServer]:
    with bolt_server(tmp_path_factory.mktemp("bolt")) as running:
        yield running


@pytest.fixture
def empty(server: BoltServer) -> BoltServer:
    server.rows("MATCH (n) DETACH DELETE n")
    return server


@asynccontextmanager
async def mirror(server: BoltServer, **fields: Any) -> AsyncIterator[Neo4jMirror]:
    given = {"user": "root", "password": PASSWORD, "database": DATABASE, "timeout_s": 5.0, **fields}
    made = Neo4jMirror(server.url, **given)
    try:
        yield made
    finally:
        await made.close()


def a_map(revision: int = 1, **confidence: float) -> CognitiveMap:
    skills = tuple(Skill(name, 10.0, 0.7, c, 5.0, ("implementer-v000001",)) for name, c in confidence.items())
    return CognitiveMap(revision, 5.0, skills=skills)


async def test_skills_are_written_once_each_and_queried_back_by_cypher(empty: BoltServer) -> None:
    async with mirror(empty) as neo4j:
        await neo4j.write(a_map(math=0.3, law=0.6), token=1)
        await neo4j.write(a_map(math=0.4, law=0.6), token=1)

    assert empty.rows(SKILLS) == [
        {"name": "law", "confidence": 0.6, "n": 10.0, "updated_at": 5.0},
        {"name": "math", "confidence": 0.4, "n": 10.0, "updated_at": 5.0},
    ]
    assert empty.rows(IMPROVES) == [
        {"adapter": "implementer-v000001", "skill": "law", "edges": 1},
        {"adapter": "implementer-v000001", "skill": "math", "edges": 1},
    ]


async def test_a_domain_that_left_the_map_leaves_the_database(empty: BoltServer) -> None:
    async with mirror(empty) as neo4j:
        await neo4j.write(a_map(math=0.3, law=0.6), token=1)
        await neo4j.write(a_map(law=0.6), token=1)

    assert [row["name"] for row in empty.rows(SKILLS)] == ["law"]


async def test_a_former_leader_is_refused_and_changes_nothing(empty: BoltServer) -> None:
    async with mirror(empty) as neo4j:
        await neo4j.write(a_map(math=0.3), token=7)

        with pytest.raises(MeshError) as refused:
            await neo4j.write(a_map(math=0.9), token=6)

    assert refused.value.reason == "STALE_FENCING_TOKEN"
    assert [row["confidence"] for row in empty.rows(SKILLS)] == [0.3]


async def test_a_wrong_password_is_said(empty: BoltServer) -> None:
    async with mirror(empty, password="wrong-password") as neo4j:
        with pytest.raises(MeshError) as refused:
            await neo4j.write(a_map(math=0.3), token=1)

    assert refused.value.reason == "STORE_UNAVAILABLE"
    assert "AuthError" in refused.value.message or "Unauthorized" in refused.value.message
    assert "wrong-password" not in refused.value.message


async def test_a_slow_database_is_not_waited_for(empty: BoltServer) -> None:
    async with mirror(empty, timeout_s=0.5) as neo4j:
        await neo4j.write(a_map(math=0.3), token=1)
        empty.pause()
        try:
            began = asyncio.get_running_loop().time()
            with pytest.raises(MeshError) as refused:
                await neo4j.write(a_map(math=0.4), token=1)
            assert asyncio.get_running_loop().time() - began < 2.0
        finally:
            empty.send(signal.SIGCONT)
        assert refused.value.reason == "STORE_UNAVAILABLE"

        async def written() -> bool:
            try:
                await neo4j.write(a_map(math=0.5), token=1)
            except MeshError:
                return False
            return True

        await eventually(written)


async def test_a_database_that_fails_is_told_of_once_and_catches_up(empty: BoltServer) -> None:
    shown = [a_map(1, math=0.3)]
    async with mirror(empty, timeout_s=1.0) as neo4j:
        mirroring = Mirroring(neo4j, held=lambda: 1, found=lambda: shown[0], poll_s=0.02, retry_s=0.1)
        structlog.reset_defaults()
        with capture_logs() as logs:
            task = asyncio.create_task(mirroring.run())
            try:
                await eventually(lambda: asyncio.to_thread(lambda: bool(empty.rows(SKILLS))))
                empty.kill()
                shown[0] = a_map(2, math=0.8, law=0.1)
                await eventually(lambda: [e for e in logs if e["event"] == "neo4j_lost"])
                await asyncio.sleep(0.5)
                await asyncio.to_thread(empty.start)
                await eventually(lambda: [e for e in logs if e["event"] == "neo4j_back"], within_s=20)
            finally:
                await end_tasks(task)

    assert [e["event"] for e in logs] == ["neo4j_lost", "neo4j_back"]
    assert logs[0]["fallback"] == "runs/cognitive_map.json"
    assert [(row["name"], row["confidence"]) for row in empty.rows(SKILLS)] == [("law", 0.1), ("math", 0.8)]


def test_without_its_driver_the_map_goes_on_in_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neo4j", None)
    structlog.reset_defaults()

    with capture_logs() as logs:
        assert configured_mirror(OrchestratorSettings(neo4j_url="bolt://127.0.0.1:7687")) is None

    assert logs[0]["event"] == "neo4j_driver_missing"
    assert "hivemind[neo4j]" in logs[0]["cure"]


def test_an_orchestrator_writes_file_and_database_and_goes_on_without_the_latter(
    empty: BoltServer, empty_redis: RedisProcess, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    files = opened(home / "datasets")
    store(files, "math", 0.25)
    settings = {
        "HIVEMIND_NEO4J_URL": empty.url, "HIVEMIND_NEO4J_USER": "root", "HIVEMIND_NEO4J_PASSWORD": PASSWORD,
        "HIVEMIND_NEO4J_DATABASE": DATABASE, "HIVEMIND_NEO4J_TIMEOUT_S": "2", "HIVEMIND_NEO4J_RETRY_S": "0.2",
    }  # fmt: skip
    with orchestrator(empty_redis, home, **settings) as running:
        until(lambda: [r["name"] for r in empty.rows(SKILLS)] == ["math"], within_s=20, what="the skill is there")

        empty.kill()
        store(files, "law", 0.75)
        file = home / "runs" / "cognitive_map.json"
        until(lambda: b'"name":"law"' in file.read_bytes(), what="the file goes on")
        until(lambda: "neo4j_lost" in running.log.read_text(), what="one clear line")
        empty.start()

        until(lambda: [r["name"] for r in empty.rows(SKILLS)] == ["law", "math"], within_s=20, what="it caught up")
        assert running.log.read_text().count("neo4j_lost") == 1
        assert PASSWORD not in running.log.read_text()
