"""One turn of the loop: its steps in order, each with a time limit and an outcome. Pure orchestration."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Protocol

import structlog

from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()

Outcome = Literal["DONE", "SKIPPED", "FAILED", "OUT_OF_BUDGET"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("DONE", "SKIPPED", "FAILED", "OUT_OF_BUDGET")
STEPS: Final = ("platinum", "map", "refine", "online", "train", "challengers", "housekeeping")
"""The steps of a cycle, in order."""

Token = Callable[[], int]
"""The leader's fencing token at this moment; raises STALE_FENCING_TOKEN where it no longer leads."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended: `note` says in one sentence what it did, or why it did nothing."""

    outcome: Outcome
    note: str
    cost_micros: int = 0


class Step(Protocol):
    """One step. `run` asks for the token anew before each write."""

    @property
    def name(self) -> str:
        """One of STEPS."""

    async def run(self, token: Token) -> Result:
        """Does it; MeshError where it fails."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that has ended."""

    name: str
    outcome: Outcome
    note: str
    duration_s: float
    cost_micros: int = 0


@dataclass(slots=True)
class Cycle:
    """A cycle, as far as it is. `started`: Unix seconds; `token`: the fencing token it acted under."""

    id: str
    started: float
    leader: str
    token: int
    requested: bool = False
    duration_s: float = 0.0
    steps: list[StepRecord] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For orjson."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Cycle":
        """The cycle of what orjson made of one."""
        return cls(**{**data, "steps": [StepRecord(**s) for s in data["steps"]]})


class CycleRun:
    """Runs the steps of one cycle, and can be asked how far it is. `limit_s`: the most time a step of a name may take;
    `clock`: seconds for durations."""

    def __init__(
        self, cycle: Cycle, steps: Sequence[Step], *, limit_s: Callable[[str], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.cycle, self.step = cycle, ""
        self._steps, self._limit_s, self._clock = steps, limit_s, clock
        self._began = clock()

    async def run(self, token: Token, wanted: Collection[str]) -> None:
        """Runs the wanted steps (none named: all). A step that fails does not stop the others; STALE_FENCING_TOKEN
        does."""
        for step in self._steps:
            if wanted and step.name not in wanted:
                continue
            token()
            self.step = step.name
            began = self._clock()
            result = await self._limited(step, token)
            self._ended(step.name, result, began)
        self.step = ""

    def interrupted(self, why: str) -> None:
        """Notes that the step under way was cancelled."""
        if self.step:
            self._ended(self.step, Result("SKIPPED", why), self._clock())
            self.step = ""

    def _ended(self, name: str, result: Result, began: float) -> None:
        now = self._clock()
        self.cycle.steps.append(StepRecord(name, result.outcome, result.note, now - began, result.cost_micros))
        self.cycle.duration_s = now - self._began

    async def _limited(self, step: Step, token: Token) -> Result:
        limit_s = self._limit_s(step.name)
        try:
            async with asyncio.timeout(limit_s):
                return await step.run(token)
        except TimeoutError:
            return Result("OUT_OF_BUDGET", f"its {limit_s:g} s were used up")
        except MeshError as error:
            if error.reason == "STALE_FENCING_TOKEN":
                raise
            return Result("FAILED", str(error))
        except OSError as error:
            return Result("FAILED", f"the disk: {error.strerror or error}")
        except Exception as error:
            _log.exception("step_failed", step=step.name)
            return Result("FAILED", f"unexpected: {type(error).__name__}")
