"""Keeps the cognitive map while its replica leads: reads what is new, and shares the map where it has changed."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.orchestrator.cognitive_map import VERDICT, VOICE, CognitiveMap, LedgerPart, ToldPart, map_of
from hivemind.servers.orchestrator.cycle import Result, Token
from hivemind.servers.orchestrator.domains import HELD_OUT, Champion, Evidence, Tally
from hivemind.servers.orchestrator.ledger import LedgerReader, Place
from hivemind.servers.orchestrator.ports import AdapterInfo, MapFile, Opinion, Registry, Router, Store
from hivemind.servers.orchestrator.rebuilding import Rebuild

_log = structlog.get_logger()

HELD_OUT_NAMES: Final = ("held_out_exact", "candidate_heldout_accuracy")
"""Figures of an adapter's evaluation that are a score in [0,1] on held-out questions; the first one there counts."""
HELD_OUT_COUNT: Final = "held_out"
"""The figure that says how many answers such a score is the mean of, over all domains."""
_PAGES_MAX: Final = 100


class MapKeeper:
    """The map of the leader. `learners`: the aliases whose drafts are evidence. Its state is read anew whenever the
    token is another one: another replica may have led in between."""

    def __init__(
        self, reader: LedgerReader, file: MapFile, store: Store, router: Router, registry: Registry, *,
        learners: Callable[[], Collection[str]], half_life_s: float, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._reader, self._file, self._store = reader, file, store
        self._router, self._registry, self._learners = router, registry, learners
        self._half_life_s, self._now = half_life_s, now
        self._token, self._saved = 0, 0
        self._ledger, self._told = LedgerPart(Tally(half_life_s)), ToldPart(Tally(half_life_s))
        self._rebuild: Rebuild | None = None
        self._scans: dict[str, asyncio.Task[tuple[str, ...]]] = {}
        self.shared = CognitiveMap()

    @property
    def ledger_sequence(self) -> int:
        """Up to where the ledger was read."""
        return self._ledger.place.sequence

    @property
    def refinement_micros(self) -> float | None:
        """What a refinement costs, by the latest examples; None before the first."""
        return self._ledger.refinement_micros

    async def read_ledger(self, token: Token) -> Result:
        """Reads what is new in the ledger; all of it again where examples were forgotten."""
        await self._enter(token())
        before = self._ledger.place
        more = self._rebuild is None
        while more:
            batch = await asyncio.to_thread(self._reader.read, self._ledger.place)
            if batch.forgotten:
                self._begin_rebuild("examples were forgotten")
                break
            self._ledger.count(batch.drafts, self._learners())
            self._ledger.place, more = batch.place, batch.more
        if self._rebuild is not None:
            return await self._rebuilt(self._rebuild)
        return _read_result(before, self._ledger.place)

    async def update(self, token: Token) -> Result:
        """Takes what Routers and registry tell, and shares and stores the map if it is another one."""
        await self._enter(token())
        if self._rebuild is not None:
            return Result("SKIPPED", "the ledger is still being read again")
        missing = [text for text in (await self._hear(), await self._champions()) if text]
        found = map_of(self._ledger, self._told, revision=self.shared.revision + 1, now=self._now())
        note = "; ".join([f"{len(found.skills)} domains", *missing])
        if found.same_as(self.shared) and self._saved == self.shared.revision:
            return Result("SKIPPED", f"nothing new of {note}")
        if not found.same_as(self.shared):
            await self._store.share(found, self._told, token=token())
            self.shared = found
        try:
            await asyncio.to_thread(self._file.save, self.shared, self._ledger, token=token())
        except OSError as error:
            return Result("FAILED", f"the map is shared, but its file cannot be written: {error.strerror}")
        self._saved = self.shared.revision
        return Result("DONE", note)

    def forget_faded(self) -> int:
        """Drops what has faded to nothing; how many sums."""
        return self._ledger.tally.forget_faded() + self._told.tally.forget_faded()

    async def _enter(self, token: int) -> None:
        if token == self._token:
            return
        shared, told = await self._store.shared_map(), await self._store.told()
        ledger = await asyncio.to_thread(self._file.load)
        self.shared, self._told = shared or CognitiveMap(), told or ToldPart(Tally(self._half_life_s))
        self._rebuild, self._saved = None, 0
        if ledger is None:
            self._begin_rebuild("no map file can be used")
        else:
            self._ledger = ledger
        self._token = token

    def _begin_rebuild(self, why: str) -> None:
        self._rebuild = Rebuild(self._reader, why=why, learners=self._learners, half_life_s=self._half_life_s)

    async def _rebuilt(self, rebuild: Rebuild) -> Result:
        await rebuild.go_on()
        self._ledger, self._rebuild = rebuild.part, None
        place = self._ledger.place
        if place.sequence:
            _log.info("map_rebuilt", why=rebuild.why, lines=place.sequence, bad_lines=place.bad_lines)
        return Result("DONE", f"all {place.sequence} lines of the ledger, because {rebuild.why}{_bad(place)}")

    async def _hear(self) -> str:
        """Takes the opinions in; what was missing."""
        try:
            for _ in range(_PAGES_MAX):
                found, place = await self._router.opinions(self._told.place)
                for opinion in found:
                    self._take(opinion)
                if not found:
                    break
                self._told.place = place
        except MeshError as error:
            return f"opinions are missing ({error.reason})"
        return ""

    def _take(self, opinion: Opinion) -> None:
        if not opinion.domain or opinion.alias not in self._learners():
            return
        weight = VOICE if opinion.source == "FEEDBACK" else VERDICT
        piece = Evidence(opinion.domain, opinion.adapter, opinion.score, opinion.when, weight)
        if opinion.source == "FEEDBACK":
            self._told.tally.add_voice(piece, opinion.tenant)
        else:
            self._told.tally.add(piece)

    async def _champions(self) -> str:
        """Takes new champions in; what was missing."""
        known = {c.adapter for c in self._told.champions}
        try:
            roles = await self._registry.roles()
            for adapter in sorted({r.champion for r in roles if r.champion} - known):
                self._told.crowned(await self._champion(await self._registry.adapter(adapter)))
        except MeshError as error:
            return f"champions are missing ({error.reason})"
        self._told.serving = frozenset(r.champion for r in roles) or frozenset({""})
        return ""

    async def _champion(self, adapter: AdapterInfo) -> Champion:
        figures = dict(adapter.evaluation)
        score = next((figures[name] for name in HELD_OUT_NAMES if 0 <= figures.get(name, -1) <= 1), None)
        domains = await self._learnt_from(adapter) if adapter.last_sequence else ()
        answers = figures.get(HELD_OUT_COUNT, 0.0)
        return Champion(
            adapter.id, adapter.created, score, domains, answers / max(1, len(domains)) if answers > 0 else HELD_OUT
        )

    async def _learnt_from(self, adapter: AdapterInfo) -> tuple[str, ...]:
        """Domains of its data. A long ledger takes longer than a step may: the search goes on till the next cycle."""
        if adapter.id not in self._scans:
            search = asyncio.to_thread(self._reader.domains_between, adapter.first_sequence, adapter.last_sequence)
            self._scans[adapter.id] = asyncio.create_task(search)
        found = await asyncio.shield(self._scans[adapter.id])
        del self._scans[adapter.id]
        return found


def _read_result(before: Place, after: Place) -> Result:
    new = after.bad_lines - before.bad_lines
    if new:
        _log.warning("ledger_bad_lines", new=new, all=after.bad_lines)
    lines = after.sequence - before.sequence
    return Result("DONE" if lines else "SKIPPED", f"{lines} new lines of the ledger{_bad(after)}")


def _bad(place: Place) -> str:
    return f"; {place.bad_lines} bad ones so far" if place.bad_lines else ""
