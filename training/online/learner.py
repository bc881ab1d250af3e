"""The online learner: takes lessons over, learns, checks, and hands what is better to its Trainer.

One thread, one loop: each turn takes over a batch that is full, and makes one optimizer step or one check.
"""

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from hivemind.servers.trainer.learner_folder import Outcome
from hivemind.servers.trainer.learner_keys import LearnerStatus
from hivemind.training.adapter_files import AdapterMeta
from hivemind.training.online.curriculum import Course, Step, next_step
from hivemind.training.online.examination import Examiner, Reader
from hivemind.training.online.gate import (
    SCALES,
    GateLimits,
    Measured,
    decisive,
    figures,
    harmed,
    is_better,
    is_mastered,
    is_worse,
    jury_sits,
    refusal,
    score,
)
from hivemind.training.online.inbox import START, Inbox, Wishes
from hivemind.training.online.memory import Bounds, Item, Memory, foreseen, is_held_out
from hivemind.training.online.model import LossNotFinite, OnlineModel, Reading, Tempo, Weights, scaled
from hivemind.training.online.open_batch import OpenBatch
from hivemind.training.online.publication import Champion, Outbox
from hivemind.training.online.rounds import Round
from hivemind.training.online.samples import Samples
from hivemind.training.online.settings import OnlineSettings
from hivemind.training.online.starting_point import rank_of
from hivemind.training.online.state import Progress, StateFolder
from hivemind.training.online.tombstones import Tombstones
from hivemind.training.stopping import Stopped, StopSwitch

_IDLE_S: Final = 0.2
_TELL_S: Final = 2.0
_LEDGER_S: Final = 5.0
_VERSIONS: Final = 100
LICENCE: Final = "LicenseRef-platinum AND CC0-1.0"


@dataclass(frozen=True, slots=True)
class Desk:
    """All that the learner works with besides its model."""

    inbox: Inbox
    outbox: Outbox
    state: StateFolder
    tombstones: Tombstones
    stop: StopSwitch


class OnlineLearner:
    """Learns for one role. `champion`: whom the model started as; `clock`: Unix seconds."""

    def __init__(
        self, model: OnlineModel, desk: Desk, settings: OnlineSettings, role: str, champion: Champion,
        *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._model, self._desk, self._settings, self._role, self._clock = model, desk, settings, role, clock
        self._rng = random.Random(settings.learn_seed)
        self._memory = Memory(
            Bounds(settings.learn_memory, settings.learn_held_out, settings.learn_held_out_of,
                   settings.learn_tenant_share)
        )  # fmt: skip
        self._course = Course(
            settings.learn_batch, settings.learn_replay, settings.learn_surprise, settings.learn_passes,
            settings.learn_tenant_share, settings.learn_enough,
        )  # fmt: skip
        self._limits = GateLimits(
            settings.learn_max_questions, settings.learn_max_text, settings.learn_max_tenant, settings.learn_max_kl,
            settings.learn_min_gain, settings.learn_mastered,
        )  # fmt: skip
        self._tempo = Tempo(settings.learn_rate, settings.learn_warm_up, settings.learn_slow)
        self._samples = Samples(
            model, self._rng, max_tokens=settings.learn_max_tokens, drop=settings.learn_word_dropout
        )
        self._examiner = Examiner(model, self._samples.of, desk.stop.check)
        self._open = OpenBatch(desk.inbox, size=settings.learn_batch, wait_s=settings.learn_wait_s)
        self._told_at = self._ledger_at = 0.0
        self._since_check = self._since_save = 0
        self._round = Round(settings.learn_round_s)
        self._wishes = Wishes()
        self._mastered = False
        self._published: Reader | None = None
        self._champion = champion
        self._progress = Progress(cursor=START, run=f"{random.SystemRandom().getrandbits(64):016x}")
        self._resume()

    def run(self) -> None:
        """Until the stop switch is thrown, or the champion is one that this model cannot become (then the Trainer
        starts another process)."""
        with suppress(Stopped):  # a check is given up in its middle; what was learnt before it stays
            self._examiner.champion(list(self._memory.held.values()))
            self._wishes = replace(self._desk.inbox.wishes(Wishes()), paused=False)
            while not self._desk.stop.wanted and self._turn():
                pass
        self.save()
        self._desk.inbox.leave()

    def _turn(self) -> bool:
        """One turn; False: the model has to be built anew."""
        self._wishes = self._desk.inbox.wishes(self._wishes)
        if not self._follow_champion():
            return False
        self._forget()
        self._disown()
        self._hear_answer()
        if self._wishes.paused:
            self._rest("PAUSED")
            return True
        self._take_over()
        course = replace(self._course, mastered=self._mastered)
        step = next_step(self._memory.items.values(), course, self._model.steps, self._rng)
        if self._since_check and (step is None or self._round.is_over):
            self._tell("CHECKING", at_once=True)
            self._check()
        elif step is not None:
            self._tell("LEARNING")
            self._learn(step)
        else:
            self._rest("WAITING")
        return True

    # taking over

    def _take_over(self) -> None:
        """Closes the open batch when it is full, old enough, or when somebody asked for a drain."""
        self._open.fill(self._progress.cursor)
        drained = self._wishes.drains > self._progress.drains
        if self._open.is_due or (drained and self._open):
            self._close_batch()
        elif drained:
            self._progress.drains = self._wishes.drains
            if self._since_check or self._memory.unlearnt:
                self._round.end_now()

    def _close_batch(self) -> None:
        with self._progress.timed():
            now = self._clock()
            self._progress.leave_out("replaced", self._drop(self._open.replaced)[0])
            lessons = self._open.lessons
            trusted = [n for n in lessons if n.checked or n.tenant not in self._wishes.distrusted]
            self._progress.leave_out("distrusted", len(lessons) - len(trusted))
            items = [Item(n, now) for n in trusted if not self._memory.knows(n.id)]
            short = [i for i in items if self._samples.fits(i)]
            self._progress.leave_out("length", len(items) - len(short))
            for item in self._welcome(short):
                self._admit(item)
        self._progress.cursor = self._open.close()
        self._progress.batches += 1
        if self._memory.unlearnt:
            self._progress.unpublished = self._progress.unpublished or now
            self._round.batch_came()
        self.save()
        self._desk.inbox.taken_over(self._progress.cursor)

    def _admit(self, item: Item) -> None:
        """Into the memory; the first of all is held out whatever its id, so that there is something to check by."""
        nothing_held = not self._memory.held and len(self._memory.items) + 1 >= self._settings.learn_batch // 2
        if nothing_held and not is_held_out(item.id, self._settings.learn_held_out_of):
            self._memory.held[item.id] = item
        elif not self._memory.take(item) and item.passes:
            self._progress.learn(item.lesson.sequence)

    def _welcome(self, items: Sequence[Item]) -> list[Item]:
        """Those that are language to the champion. Each is a test of what was published before it is learnt from; what
        that foresees whole counts as learnt once."""
        if not items:
            return []
        readings = self._examiner.champion_reads(items)
        strange = [r.surprise > self._settings.learn_outlier for r in readings]
        self._progress.leave_out("outlier", sum(strange))
        if self._published is None:
            return [i for i, odd in zip(items, strange, strict=True) if not odd]
        mine = self._published.read(items)
        self._testify(items, mine, readings)
        return [i for i, odd in zip(foreseen(items, mine), strange, strict=True) if not odd]

    def _testify(self, items: Sequence[Item], mine: Sequence[Reading], champions: Sequence[Reading]) -> None:
        """Tells the registry how the publication did against the champion, once it is registered."""
        about, champion = self._progress.adapter_id, self._champion.id
        if about in ("", champion) or self._desk.outbox.waits(self._progress.number):
            return
        sits = jury_sits(i.lesson.checked for i in self._memory.held.values())
        self._desk.outbox.record(
            [Outcome(f"before-learning:{about}:{i.id}"[:128], about, champion, score(a, b))
             for i, a, b in zip(items, mine, champions, strict=True) if i.lesson.checked or not sits]
        )  # fmt: skip

    # learning

    def _learn(self, step: Step) -> None:
        items = (*step.lessons, *step.replayed)
        anchors = self._samples.anchors(step.anchors)
        samples = [*(self._samples.rehearsed(i) for i in items), *anchors]
        began, cpu_s = time.monotonic(), self._progress.cpu_seconds
        try:
            with self._progress.timed():
                readings = self._model.learn(samples, [1.0] * len(samples), self._tempo)
        except LossNotFinite as error:
            self._refuse(str(error))
            return
        self._round.stepped(began, self._progress.cpu_seconds - cpu_s)
        self._count(step, began, sum(len(s.ids) for s in samples))
        known = zip(items, readings, strict=False)
        self._memory.update(replace(i, passes=i.passes + 1, surprise=r.surprise, exact=r.exact) for i, r in known)

    def _count(self, step: Step, began: float, tokens: int) -> None:
        progress = self._progress
        self._since_check += 1
        self._since_save += 1
        progress.steps += 1
        progress.tokens += tokens
        progress.step_seconds += time.monotonic() - began
        for item in step.lessons:
            if not item.passes:
                self._progress.learn(item.lesson.sequence)

    # checking

    def _check(self) -> None:
        """Holds the slow weights against champion and last publication; publishes the largest part that passes."""
        before_s = self._progress.cpu_seconds
        with self._progress.timed():
            self._judge()
        self._since_check = 0
        self._round.checked(self._progress.cpu_seconds - before_s, fresh=self._progress.unpublished > 0)
        self.save()

    def _judge(self) -> None:
        if self._desk.outbox.waits(self._progress.number):
            return  # the one before is not registered yet; this can only get better meanwhile
        held = list(self._memory.held.values())
        champion = self._examiner.champion(held)
        before = champion
        if self._published is not None:
            before = self._published.held_out(held)
        why = ""
        for scale in SCALES:
            found = self._examiner.held_out(self._model.slow, scale, held)
            if scale == SCALES[0]:
                self._mastered = is_mastered(found, self._limits)
            part = decisive(found, before, self._limits)
            if not is_better(*part, self._limits):
                why = why or is_worse(*part, self._limits)
                break
            why = is_worse(*part, self._limits)
            if why:
                continue
            found = self._examiner.whole(self._model.slow, scale, found)
            self._progress.evaluation = figures(found, champion, scale)
            why = refusal(found, champion, self._limits)
            if not why:
                self._publish(scale, found, champion)
                return
        if why:
            self._suspect(harmed(*part, self._limits))
            self._refuse(why)

    def _suspect(self, harm: Sequence[str]) -> None:
        """Lessons of others that came before tenants were harmed, twice, are learnt no more."""
        if harm and self._progress.unpublished:
            self._progress.leave_out("harmful", self._memory.strike(self._progress.unpublished, harm))

    def _refuse(self, why: str) -> None:
        """What was learnt since is dropped: the next step starts from the last publication, else from the champion."""
        self._progress.refused += 1
        self._progress.note = f"not published: {why}"
        self._start_from(self._published.weights if self._published is not None else self._model.champion)

    def _start_from(self, weights: Weights, *, again: bool = False) -> None:
        self._model.restart(weights)
        self._mastered = False
        self._memory.unread(again=again)
        self._since_check = 0
        self._since_save += 1

    def _publish(self, scale: float, found: Measured, champion: Measured) -> None:
        progress, model = self._progress, self._model
        progress.number += 1
        pairs = zip(found.jury.held_out, champion.jury.held_out, strict=True)
        outcomes = [Outcome(f"held-out:{mine.id}", "", self._champion.id, score(mine.reading, theirs.reading))
                    for mine, theirs in pairs]  # fmt: skip
        closed = progress.unpublished
        with model.as_of(model.slow):
            self._desk.outbox.publish(
                progress.number, model.model, model.tokenizer, self._meta(scale), run=progress.run, closed=closed,
                outcomes=outcomes,
            )  # fmt: skip
        self._published = self._examiner.reader({n: w.clone() for n, w in scaled(model.slow, scale).items()})
        progress.batch_closed = closed
        progress.unpublished = min((i.closed for i in self._memory.items.values() if not i.passes), default=0.0)
        progress.note = f"publication {progress.number} passed at scale {scale:g}"

    def _meta(self, scale: float) -> AdapterMeta:
        settings, base = self._settings, self._model.base
        return AdapterMeta(
            role=self._role, base_model=base.id, base_revision=base.revision, parent=self._champion.id,
            first_sequence=self._progress.first_sequence, last_sequence=self._progress.last_sequence,
            data_licence=LICENCE, evaluation=self._progress.evaluation, scale=scale,
            hyper_parameters={
                "online": True, "rank": self._model.rank, "learning_rate": settings.learn_rate,
                "steps": self._progress.steps, "slow": settings.learn_slow, "batch": settings.learn_batch,
                "bf16": self._model.bf16,
            },
        )  # fmt: skip

    def _hear_answer(self) -> None:
        """What the Trainer did with the last publication."""
        number = self._progress.number
        answer = self._desk.outbox.answer(number) if number else None
        if answer is None:
            return
        if answer.adapter_id:
            self._progress.published += 1
            self._progress.adapter_id, self._progress.published_at = answer.adapter_id, answer.time
            self._progress.versions = [*self._progress.versions, answer.adapter_id][-_VERSIONS:]
        else:
            self._progress.note = f"the registry refused publication {number}: {answer.error}"
            self._published = None
        self.save()
        self._desk.outbox.clear(number)

    # the champion, and what is forgotten

    def _follow_champion(self) -> bool:
        """Starts anew from a champion that is not of this learner's making; False: its shape is another one."""
        now = self._desk.outbox.champion()
        if now is None or now == self._champion:
            return True
        if rank_of(now.path, self._settings.learn_rank) != self._model.rank:
            return False
        self._champion = now
        self._model.enthrone(now.path)
        self._examiner.new_champion()
        if now.id not in self._progress.versions:  # a job's, an operator's, or one of long ago
            self._published = None
            self._start_from(self._model.champion, again=True)
        self.save()
        return True

    def _forget(self) -> None:
        """Drops what the ledger says is forgotten; if it was learnt, the weights go as well."""
        if time.monotonic() < self._ledger_at:
            return
        self._ledger_at = time.monotonic() + _LEDGER_S
        gone = self._desk.tombstones.fresh()
        if not gone:
            return
        self._desk.inbox.forget(gone)
        self._open.forget(gone)
        self._unlearn(gone, "forgotten")

    def _disown(self) -> None:
        """Drops what distrusted tenants taught without a check; if it was learnt, the weights go as well."""
        if self._wishes.distrusted:
            self._unlearn(self._memory.unchecked_of(self._wishes.distrusted), "distrusted")

    def _unlearn(self, names: Collection[str], reason: str) -> None:
        count, learnt = self._drop(names)
        if count:
            self._progress.leave_out(reason, count)
            if learnt:
                self._published = None
                self._start_from(self._model.champion, again=True)
            self.save()

    def _drop(self, names: Collection[str]) -> tuple[int, bool]:
        """Forgets examples; how many were known, and whether any of them had been learnt."""
        self._samples.forget(names)
        return self._memory.forget(names)

    # state

    def _resume(self) -> None:
        saved = self._desk.state.load()
        if saved is not None:
            self._restore(*saved)
        handed_over = self._desk.outbox.newest()
        if handed_over is not None and handed_over[0] > self._progress.number:  # killed before that was saved
            self._progress.number = handed_over[0]
            self._published = self._examiner.reader(self._model.weights_of(str(handed_over[1])))
            self._since_save += 1

    def _restore(self, record: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self._progress = Progress(**record["progress"])
        self._memory.load(record["memory"])
        self._desk.inbox.taken_over(self._progress.cursor)
        fast, slow, published, optimizer = (_part(tensors, p) for p in ("fast", "slow", "published", "optimizer"))
        same = self._progress.champion == self._champion.id or self._champion.id in self._progress.versions
        if same and self._model.fits(fast):
            self._model.resume(fast, slow, optimizer)
            self._published = self._examiner.reader(published) if published else None
        else:
            self._memory.unread(again=True)
            self._published = None

    def save(self) -> None:
        """Replaces the state on disk by the one at hand."""
        self._progress.champion = self._champion.id
        tensors: dict[str, Any] | None = None
        if self._since_save:
            tensors = {f"fast.{n}": w for n, w in self._model.copy().items()}
            tensors |= {f"slow.{n}": w for n, w in self._model.slow.items()}
            tensors |= {f"published.{n}": w for n, w in (self._published.weights if self._published else {}).items()}
            tensors |= {f"optimizer.{n}": w for n, w in self._model.optimizer_tensors().items()}
        self._desk.state.save({"progress": asdict(self._progress), "memory": self._memory.to_json()}, tensors)
        self._since_save = 0

    def _rest(self, state: str) -> None:
        self._tell(state)
        time.sleep(_IDLE_S)

    def _tell(self, state: str, *, at_once: bool = False) -> None:
        if not at_once and time.monotonic() < self._told_at:
            return
        self._told_at = time.monotonic() + _TELL_S
        told = {n: v for n, v in asdict(self._progress).items() if n in LearnerStatus.__slots__}
        self._desk.inbox.tell(
            LearnerStatus(**told, state=state, unlearnt=self._memory.unlearnt, held_out=len(self._memory.held))
        )


def _part(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    head = f"{prefix}."
    return {name.removeprefix(head): tensor for name, tensor in tensors.items() if name.startswith(head)}
