"""The cognitive map in Neo4j: (:Skill) and (:Adapter)-[:IMPROVES]->(:Skill). Everything of one map in one transaction,
which a newer leader's fencing token refuses."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.ports import SkillMirror
from hivemind.servers.orchestrator.store_redis import stale

if TYPE_CHECKING:
    from neo4j import AsyncManagedTransaction

_log = structlog.get_logger()

CONSTRAINTS: Final = (
    "CREATE CONSTRAINT hivemind_skill IF NOT EXISTS FOR (s:Skill) REQUIRE s.name IS UNIQUE",
    "CREATE CONSTRAINT hivemind_adapter IF NOT EXISTS FOR (a:Adapter) REQUIRE a.id IS UNIQUE",
    "CREATE CONSTRAINT hivemind_fence IF NOT EXISTS FOR (f:HivemindFence) REQUIRE f.name IS UNIQUE",
)
_FENCE: Final = """
MERGE (f:HivemindFence {name: 'cognitive_map'})
SET f.token = CASE WHEN f.token IS NULL OR f.token < $token THEN $token ELSE f.token END
RETURN f.token AS newest
"""
_SKILLS: Final = """
UNWIND $skills AS row
MERGE (s:Skill {name: row.name})
SET s.confidence = row.confidence, s.n = row.n, s.mean = row.mean, s.updated_at = row.updated_at
"""
_IMPROVES: Final = """
UNWIND $improves AS row
MATCH (s:Skill {name: row.skill})
MERGE (a:Adapter {id: row.adapter})
MERGE (a)-[:IMPROVES]->(s)
"""
_GONE: Final = "MATCH (s:Skill) WHERE NOT s.name IN $names DETACH DELETE s"


class Neo4jMirror:
    """Implements ports.SkillMirror with the official driver. `timeout_s`: for one write, connecting included."""

    def __init__(self, url: str, *, user: str, password: str, database: str, timeout_s: float) -> None:
        from neo4j import AsyncGraphDatabase

        self._driver = AsyncGraphDatabase.driver(
            url, auth=(user, password), connection_timeout=timeout_s, connection_acquisition_timeout=timeout_s,
            max_transaction_retry_time=0.0,
        )  # fmt: skip
        self._database, self._timeout_s, self._prepared = database or None, timeout_s, False

    async def write(self, found: CognitiveMap, *, token: int) -> None:
        """See ports.SkillMirror. STORE_UNAVAILABLE says why it could not be written."""
        from neo4j.exceptions import DriverError, Neo4jError

        try:
            async with asyncio.timeout(self._timeout_s):
                await self._write(found, token)
        except TimeoutError as error:
            text = f"Neo4j took longer than {self._timeout_s:g} s"
            raise MeshError("STORE_UNAVAILABLE", text, retry_after_s=1.0) from error
        except (DriverError, Neo4jError, OSError) as error:
            text = f"Neo4j does not take the map ({type(error).__name__}: {error})"
            raise MeshError("STORE_UNAVAILABLE", text, retry_after_s=1.0) from error

    async def close(self) -> None:
        """Ends the connections."""
        await self._driver.close()

    async def _write(self, found: CognitiveMap, token: int) -> None:
        async with self._driver.session(database=self._database) as session:
            if not self._prepared:
                for constraint in CONSTRAINTS:
                    await (await session.run(constraint)).consume()
                self._prepared = True
            await session.execute_write(_write_map, _rows(found), token)


async def _write_map(tx: "AsyncManagedTransaction", rows: Mapping[str, Sequence[Any]], token: int) -> None:
    fence = await (await tx.run(_FENCE, token=token)).single(strict=True)
    if fence["newest"] > token:
        raise stale(token, fence["newest"])
    await (await tx.run(_GONE, names=rows["names"])).consume()
    await (await tx.run(_SKILLS, skills=rows["skills"])).consume()
    await (await tx.run(_IMPROVES, improves=rows["improves"])).consume()


def _rows(found: CognitiveMap) -> dict[str, Sequence[Any]]:
    return {
        "names": [s.name for s in found.skills],
        "skills": [
            {"name": s.name, "confidence": s.confidence, "n": s.n, "mean": s.mean, "updated_at": s.updated}
            for s in found.skills
        ],
        "improves": [{"skill": s.name, "adapter": a} for s in found.skills for a in s.improved_by],
    }


class Mirroring:
    """Tells the database every map while this replica leads; what it could not take it is told when it is back.

    `held`: the fencing token, 0 where this replica does not lead; `found`: the latest map. The map lies in its file in
    any case, so that nothing is lost meanwhile.
    """

    def __init__(
        self, mirror: SkillMirror, *, held: Callable[[], int], found: Callable[[], CognitiveMap | None],
        poll_s: float, retry_s: float,
    ) -> None:  # fmt: skip
        self._mirror, self._held, self._found = mirror, held, found
        self._poll_s, self._retry_s = poll_s, retry_s
        self._written: tuple[int, int] | None = None
        self._lost = False

    async def run(self) -> None:
        """For ever."""
        while True:
            written = await self._look()
            await asyncio.sleep(self._poll_s if written else self._retry_s)

    async def _look(self) -> bool:
        token, found = self._held(), self._found()
        if not token or found is None or not found.revision or self._written == (token, found.revision):
            return True
        try:
            await self._mirror.write(found, token=token)
        except MeshError as error:
            if not self._lost:
                _log.warning("neo4j_lost", why=error.message, fallback="runs/cognitive_map.json")
            self._lost = True
            return False
        if self._lost:
            _log.info("neo4j_back", revision=found.revision)
        self._lost, self._written = False, (token, found.revision)
        return True
