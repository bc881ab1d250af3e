"""Keeps the online learner of a role, one process over all Trainers by a lease, and stands between it and the registry:
who is champion, what is published, what was seen."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.looking import keep_looking
from hivemind.servers.trainer.learner import Learners, Seen
from hivemind.servers.trainer.learner_folder import LearnerFolder, Outcome, Publication
from hivemind.servers.trainer.learner_process import LearnerProcess
from hivemind.servers.trainer.learner_trials import over
from hivemind.servers.trainer.metrics import LearnerMetrics
from hivemind.servers.trainer.ports import Champion

_log = structlog.get_logger()

UNUSABLE: Final = 5
_LONGEST_RETRY_S: Final = 60.0
_LET_GO_S: Final = 2.0


class Registry(Protocol):
    """The AdapterRegistry. PEER_UNAVAILABLE where it does not answer; any other error is its refusal."""

    async def champion(self, role: str) -> Champion | None:
        """The champion of a role, None for the base model."""

    async def challengers(self, role: str) -> Collection[str]:
        """The adapters that challenge a role, in the background or with traffic."""

    async def publish(self, publication: Publication, path: str, *, shadow: bool) -> str:
        """Registers an adapter and lets it challenge, or only answer in the background, with one effect however often
        it is called; answers its id."""

    async def retire(self, role: str, adapter_id: str) -> None:
        """Ends the challenge of an adapter."""

    async def record(self, role: str, outcomes: Sequence[Outcome]) -> None:
        """Records outcomes; those that are known count once."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a learner is kept. Times in seconds. `lease_s`: how long a Trainer that does not renew has it; `trial_s`: how
    long a version challenges though newer ones come; `shadow`: versions only answer in the background."""

    poll_s: float
    lease_s: float
    retry_s: float
    champion_s: float
    trial_s: float
    shadow: bool


@dataclass(frozen=True, slots=True)
class Household:
    """All that a keeper needs from outside."""

    learners: Learners
    registry: Registry
    folder: LearnerFolder
    process: LearnerProcess
    metrics: LearnerMetrics


class LearnerKeeper:
    """`owner` names this Trainer; `missing`: why no learner can run here, in one sentence, empty: it can."""

    def __init__(
        self, house: Household, terms: Terms, *, owner: str, adapters: str, missing: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._house, self._terms, self._owner, self._adapters = house, terms, owner, adapters
        self._missing, self._clock, self._role = missing, clock, house.folder.role
        self._champion_at = self._start_at = 0.0
        self._retry_s = terms.retry_s
        self._distrusted: set[str] = set()
        self._note = ""
        self._ending = False

    async def run(self) -> None:
        """For ever; outlives an absent store and an absent registry."""
        try:
            await keep_looking(self._look_past_the_disk, every_s=self._terms.poll_s)
        finally:
            await asyncio.shield(self.end())

    async def end(self) -> None:
        """Ends the process and lets others have the learner."""
        self._ending = True
        await self._house.process.end()
        try:
            async with asyncio.timeout(_LET_GO_S):
                await self._house.learners.let_go(self._role, self._owner)
        except (MeshError, TimeoutError) as error:
            _log.info("learner_lease_not_released", why=str(error), note="it runs out by itself")

    async def _look_past_the_disk(self) -> None:
        try:
            await self._look()
        except OSError as error:
            _log.warning("learner_folder_failed", role=self._role, why=str(error))

    async def _look(self) -> None:
        if self._ending:
            return
        if self._missing:
            await self._say(self._missing)
            return
        if not await self._house.learners.hold(self._role, self._owner, self._terms.lease_s):
            await self._house.process.end()
            return
        await self._look_at_the_office()
        await self._watch(await self._house.learners.seen(self._role))
        await self._publish()
        await self._record()

    async def _look_at_the_office(self) -> None:
        """Before the process starts, and again and again: who is champion, and so, whose trial is over."""
        if time.monotonic() < self._champion_at:
            return
        found = await self._house.registry.champion(self._role)
        name, folder = (found.id, f"{self._adapters}/{found.path}") if found is not None else ("", "")
        await asyncio.to_thread(self._house.folder.say_champion, name, folder)
        await self._end_trials(name)
        self._champion_at = time.monotonic() + self._terms.champion_s

    async def _watch(self, seen: Seen) -> None:
        """Starts the process with the first example, and again, later each time, when it ended."""
        process = self._house.process
        self._house.metrics.show(self._role, seen)
        for tenant in set(seen.distrusted) - self._distrusted:
            _log.warning("tenant_distrusted", role=self._role, tenant=tenant, note="checked answers contradict it")
        self._distrusted = set(seen.distrusted)
        if process.lives:
            if seen.live:
                self._retry_s = self._terms.retry_s
                await self._say("")
            return
        if process.exit_code is not None:
            await self._ended(process.exit_code)
            return
        at_work = seen.status.unlearnt or seen.status.state in ("LEARNING", "CHECKING")
        if not (seen.inbox or at_work):
            await self._house.learners.rest(self._role)
        elif time.monotonic() >= self._start_at:
            await self._say("the learner starts: it loads the base model")
            await process.start()
            _log.info("learner_started", role=self._role)

    async def _ended(self, code: int) -> None:
        await self._house.learners.gone(self._role)
        words = await asyncio.to_thread(self._house.process.last_words)
        wait_s = 0.0 if code == 0 else self._retry_s
        if code:
            _log.warning("learner_ended", role=self._role, code=code, words=words, again_in_s=wait_s)
            await self._say(f"the learner ended (exit code {code}): {words}")
            self._retry_s = _LONGEST_RETRY_S if code == UNUSABLE else min(_LONGEST_RETRY_S, 2 * self._retry_s)
        self._start_at = time.monotonic() + wait_s
        await self._house.process.end()

    async def _publish(self) -> None:
        folder = self._house.folder
        for publication in await asyncio.to_thread(folder.publications):
            try:
                adapter_id = await self._house.registry.publish(
                    publication, folder.adapter_of(publication), shadow=self._terms.shadow
                )
            except MeshError as error:
                if error.reason == "PEER_UNAVAILABLE":
                    raise
                _log.warning("publication_refused", role=self._role, name=publication.name, why=error.message)
                await asyncio.to_thread(folder.answer, publication, "", self._clock(), error.message)
                continue
            await self._recorded(publication.outcomes_of(adapter_id))
            await self._house.learners.published(self._role, adapter_id, self._clock())
            await asyncio.to_thread(folder.answer, publication, adapter_id, self._clock())
            _log.info("adapter_published", role=self._role, adapter=adapter_id)
            if publication.closed:
                self._house.metrics.published(self._role, self._clock() - publication.closed)

    async def _end_trials(self, champion: str) -> None:
        """Ends challenges, so that they do not pile up, and forgets what challenges no more by itself."""
        versions = await self._house.learners.versions(self._role)
        if not versions:
            return
        challengers = await self._house.registry.challengers(self._role)
        for old in over(versions, champion, challengers, now=self._clock(), trial_s=self._terms.trial_s):
            if old in challengers:
                await self._retire(old)
            await self._house.learners.forget(self._role, old)

    async def _retire(self, adapter_id: str) -> None:
        try:
            await self._house.registry.retire(self._role, adapter_id)
        except MeshError as error:
            if error.reason == "PEER_UNAVAILABLE":
                raise
            _log.info("version_stays", adapter=adapter_id, why=error.message)

    async def _record(self) -> None:
        for path, outcomes in await asyncio.to_thread(self._house.folder.evidence):
            await self._recorded(outcomes)
            await asyncio.to_thread(path.unlink, True)

    async def _recorded(self, outcomes: Sequence[Outcome]) -> None:
        try:
            await self._house.registry.record(self._role, outcomes)
        except MeshError as error:
            if error.reason == "PEER_UNAVAILABLE":
                raise
            _log.warning("evidence_refused", role=self._role, why=error.message)

    async def _say(self, note: str) -> None:
        if note != self._note:
            await self._house.learners.note(self._role, note)
            self._note = note
