"""Which generation answers a request, and the flip from one to the next.

A generation cannot take another adapter, so a new one is started beside it. From the moment it serves, requests go to
it; the old one ends after its last request. Nobody waits but the requests for the new adapter.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hivemind.servers.engine.adapter_folder import AdapterFolder
from hivemind.servers.engine.base_model import BaseModel
from hivemind.servers.engine.conversions import files_of
from hivemind.servers.engine.engine import EngineOptions
from hivemind.servers.engine.errors import EngineError
from hivemind.servers.engine.generation import Generation, GenerationFailed, start_generation
from hivemind.servers.engine.gguf_adapter import AdapterBroken, prune
from hivemind.servers.engine.metrics import EngineMetrics
from hivemind.servers.engine.residency import Residency, Resident

_log = structlog.get_logger()

_DRAINING_MAX: Final = 2
_ATTEMPTS: Final = 20
_RESTART_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
_FILES_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class Lease:
    """Where one request goes, and the scales to send with it."""

    port: int
    lora: list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Limits:
    """`slots`: requests that are answered at once; `waiting`: more that may wait; `wait_s`: how long for an engine or
    an adapter that is being loaded; `adapter_bytes`: what the adapters of a generation may take together."""

    slots: int
    waiting: int
    adapter_bytes: int
    wait_s: float = 120.0


class Generations:
    """Owns the generations. `run` is its one background loop; without it nothing is ever loaded."""

    def __init__(
        self, options: EngineOptions, base: BaseModel | None, folder: AdapterFolder, cache: Path, limits: Limits,
        *, rehearse: Callable[[Generation], Awaitable[None]], metrics: EngineMetrics,
    ) -> None:  # fmt: skip
        """`base` is None for a model that takes no adapters; `rehearse` readies a generation that is to take over."""
        self._rehearse, self._metrics = rehearse, metrics
        self._options, self._base, self._folder, self._cache, self._limits = options, base, folder, cache, limits
        self._residency = Residency(limits.adapter_bytes)
        self._admitted = 0
        self._current: Generation | None = None
        self._serving = asyncio.Event()
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._work = asyncio.Event()
        self._draining: dict[asyncio.Task[None], Generation] = {}
        metrics.generations.labels("serving").set_function(lambda: self._current is not None)
        metrics.generations.labels("draining").set_function(lambda: len(self._draining))
        metrics.adapters.set_function(lambda: len(self.held))
        metrics.under_way.labels("answered").set_function(lambda: self._answered)
        metrics.under_way.labels("waiting").set_function(lambda: self._admitted - self._answered)

    @property
    def serving(self) -> bool:
        """Whether a generation answers now."""
        return self._current is not None

    @property
    def held(self) -> list[str]:
        """The adapters that are answered without a load, sorted."""
        return sorted(self._residency.held) if self._current is not None else []

    @property
    def _answered(self) -> int:
        at_hand = [self._current] if self._current is not None else []
        return sum(g.turns.answered for g in [*self._draining.values(), *at_hand])

    @asynccontextmanager
    async def lease(self, adapter_id: str | None) -> AsyncIterator[Lease]:
        """A slot of a generation that holds the adapter (None: the base model), for the time of one request.

        Raises EngineError: overloaded, unknown_model, adapter_failed, unavailable.
        """
        with self._admission():
            for _ in range(_ATTEMPTS):
                await self.load(adapter_id)
                generation = self._current
                if generation is None or (adapter_id is not None and adapter_id not in generation.adapters):
                    continue  # it went before this request could be sent
                async with generation.turns.turn(adapter_id) as has_slot:
                    if has_slot:
                        self._residency.touch(adapter_id)
                        yield Lease(generation.port, generation.scales(adapter_id))
                        return
        raise EngineError("unavailable", "the engine holds too few adapters for so many that are asked for at once")

    async def load(self, adapter_id: str | None) -> None:
        """Waits until the adapter is held (None: until the base model serves). Raises EngineError as `lease` does."""
        if self._current is not None and (adapter_id is None or adapter_id in self._residency):
            return
        try:
            async with asyncio.timeout(self._limits.wait_s):
                if adapter_id is None:
                    await self._serving.wait()
                else:
                    self._folder.path_of(adapter_id)
                    await asyncio.shield(self._ask(adapter_id))
        except TimeoutError as error:
            raise EngineError("unavailable", "the model is still being loaded; try again") from error

    def forget(self, adapter_id: str) -> None:
        """Holds an adapter no longer. The next generation comes without it, which frees its memory."""
        self._residency.forget(adapter_id)

    async def run(self) -> None:
        """Starts the first generation, then brings in what is asked for and replaces what has died. Ends by being
        cancelled."""
        try:
            await self._restart()
            while True:
                died = asyncio.ensure_future(self._died())
                work = asyncio.ensure_future(self._work_to_do())
                try:
                    await asyncio.wait({died, work}, return_when=asyncio.FIRST_COMPLETED)
                    if died.done():
                        await self._restart()
                finally:
                    died.cancel()
                    work.cancel()
                if not self._full:
                    self._work.clear()
                    await self._bring_in(list(self._asked))
        finally:
            await asyncio.shield(self._close())

    @contextmanager
    def _admission(self) -> Iterator[None]:
        if self._admitted >= self._limits.slots + self._limits.waiting:
            raise EngineError("overloaded", "too many requests wait already; try again")
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def _ask(self, adapter_id: str) -> "asyncio.Future[None]":
        asked = self._asked.get(adapter_id)
        if asked is None:
            asked = self._asked[adapter_id] = asyncio.get_running_loop().create_future()
            self._work.set()
        return asked

    @property
    def _full(self) -> bool:
        return len(self._draining) >= _DRAINING_MAX

    async def _work_to_do(self) -> None:
        """Waits until an adapter is asked for and not too many old generations still answer."""
        await self._work.wait()
        while self._full:
            await asyncio.wait(self._draining, return_when=asyncio.FIRST_COMPLETED)

    async def _bring_in(self, wanted: list[str]) -> None:
        """Flips to a generation that holds these too; tells those who asked."""
        files: dict[str, Resident] = {}
        for name, file in (await self._converted(wanted)).items():
            if isinstance(file, Exception):
                self._tell(name, _load_failed(name, str(file)))
            else:
                files[name] = Resident(file, file.stat().st_size)
        await self._flip_to(files)

    async def _flip_to(self, files: dict[str, Resident]) -> None:
        if not files:
            return
        try:
            await self._flip(self._plan(files))
        except AdapterBroken as error:
            self._tell_all(files, str(error))
        except GenerationFailed as error:
            if len(files) == 1:
                for refused in files.values():
                    refused.file.unlink(missing_ok=True)  # the copy may be what is damaged: made anew next time
                self._tell_all(files, f"llama.cpp refused it: {error}")
                return
            for name, file in files.items():  # one of them is to blame: which?
                await self._flip_to({name: file})
        else:
            for name in files:
                self._tell(name, None)

    def _plan(self, files: dict[str, Resident]) -> dict[str, Resident]:
        planned = Residency(self._limits.adapter_bytes)
        planned.replace(self._residency.held)
        for name, file in files.items():
            planned.replace(planned.with_added(name, file))
        return planned.held

    async def _flip(self, plan: dict[str, Resident]) -> None:
        """Starts the next generation, sends requests to it, lets the one before it end."""
        following = await self._started(plan)
        before, self._current = self._current, following
        self._residency.replace(plan)
        self._serving.set()
        _log.info("generation_serves", port=following.port, adapters=list(plan))
        if before is not None:
            task = asyncio.ensure_future(before.drain())
            self._draining[task] = before
            task.add_done_callback(self._draining.pop)

    async def _started(self, plan: dict[str, Resident]) -> Generation:
        """The next generation. While another serves, it loads and reads the last prompts behind it."""
        files, behind = tuple(r.file for r in plan.values()), self._current is not None
        options = dataclasses.replace(self._options, adapters=files, behind=behind)
        with self._metrics.step("start"):
            following = await start_generation(options, tuple(plan))
        if not behind:
            return following
        try:
            with self._metrics.step("rehearse"):
                await self._rehearse(following)
        except BaseException:
            await following.close()
            raise
        if following.ended:
            raise GenerationFailed("it ended while it read the last prompts")
        following.come_forward()
        return following

    async def _restart(self) -> None:
        """A generation after none: with what was held, else with nothing. It is tried again until it serves."""
        if self._current is not None:
            self._current.turns.close()
        self._current = None
        self._serving.clear()
        plan = self._residency.held
        attempt = 0
        while True:
            try:
                await self._flip(plan)
                return
            except GenerationFailed as error:
                _log.error("generation_failed", reason=str(error), adapters=list(plan))
                plan = {}
            await asyncio.sleep(_RESTART_S[min(attempt, len(_RESTART_S) - 1)])
            attempt += 1

    async def _died(self) -> None:
        """Waits for the end of the generation at hand."""
        assert self._current is not None
        code = await self._current.died()
        _log.error("generation_died", code=code, adapters=list(self._current.adapters))

    async def _converted(self, wanted: list[str]) -> "Mapping[str, Path | Exception]":
        if self._base is None:
            return dict.fromkeys(wanted, AdapterBroken("the base model is of a kind that takes no adapters here"))
        folders, gone = {}, {}
        for name in wanted:
            try:
                folders[name] = self._folder.path_of(name)
            except EngineError as error:
                gone[name] = error
        with self._metrics.step("convert"):
            files = await files_of(folders, self._base, self._cache) if folders else {}
        in_use = {*(f for f in files.values() if isinstance(f, Path)), *(r.file for r in self._residency.held.values())}
        await asyncio.to_thread(prune, self._cache, most=_FILES_KEPT, keep=frozenset(in_use))
        return {**files, **gone}

    def _tell_all(self, names: dict[str, Resident], reason: str) -> None:
        for name in names:
            self._tell(name, _load_failed(name, reason))

    def _tell(self, name: str, error: EngineError | None) -> None:
        asked = self._asked.pop(name)
        self._metrics.told(held=error is None)
        if error is None:
            asked.set_result(None)
            return
        _log.warning("adapter_failed", adapter=name, reason=error.message)
        asked.set_exception(error)
        asked.exception()  # whoever asked may have left: then nobody else looks at it

    async def _close(self) -> None:
        left = [*self._draining.values(), *([self._current] if self._current is not None else [])]
        for task in list(self._draining):
            task.cancel()
        self._current = None
        await asyncio.gather(*(g.close() for g in left))


def _load_failed(name: str, reason: str) -> EngineError:
    return EngineError("adapter_failed", f"adapter {name} cannot be loaded: {reason}")
