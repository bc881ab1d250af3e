"""The loop under measurement: a mesh, a master that stands for a paid API, traffic, and how far the loop is.

Everything that is shown happens in the mesh by itself: requests for `auto`, refinement, learning, judging, promotion,
routing. What is set here is what an operator sets: prices, consent, budgets, a policy for tenants, and a pace for
minutes instead of days.
"""

import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx

from bench.clients import EXAMINER, TENANTS, Traffic, examined
from bench.facts import Fact, taxonomy
from bench.figures import Figures, figures_of
from bench.mesh import Mesh, running_mesh

HERE: Final = Path(__file__).resolve().parent
ROLE: Final = "implementer"
PRICES: Final = {"master": (2.5, 10.0), "arbiter": (2.5, 10.0), "oracle": (0.28, 0.42), "judge": (0.28, 0.42)}
"""USD per million tokens of prompt and answer, as large and middling models cost."""
COURIER_PRICE: Final = (0.02, 0.06)
"""What an hour of a small machine comes to."""
PACE: Final = {
    "HIVEMIND_AUTOPROMOTE": ROLE,
    "HIVEMIND_AUTOPROMOTE_COOLDOWN_S": "45",
    "HIVEMIND_AUTOPROMOTE_MAX_PER_DAY": "1000",
    "HIVEMIND_CYCLE_EVERY_S": "5",
    "HIVEMIND_EXPLORE": "0.05",
    "HIVEMIND_NOMINATE": "0.1",
    "HIVEMIND_QUEUE_SEEN_S": "120",
    "HIVEMIND_REFINE_PER_CYCLE": "3",
    "HIVEMIND_REFINEMENTS_PER_MINUTE": "600",
    "HIVEMIND_ENGINE_THREADS": "1",
    "HIVEMIND_LEARN_SHADOW": "true",
    "HIVEMIND_RAMP_OUTCOMES": "0",
    "HIVEMIND_TRAIN_EVERY_EXAMPLES": "0",
}
"""A loop for minutes; the second core is left to learning."""
WINDOW: Final = 60
DONE_SHARE: Final = 0.9
"""The courier's share, its right answers and those to held-out questions, from which on the loop has closed."""
_REFINEMENT: Final = {"tenant": "*", "period": "DAY", "purpose": "REFINEMENT", "limit_micros": 100_000_000}


@dataclass(frozen=True, slots=True)
class Moment:
    """How far the loop is. `at`: seconds since learning began; `held_out`: the last exam; `learner`: GetLearner."""

    at: float
    figures: Figures
    held_out: float
    champion: str
    adapters: int
    platinum: int
    confidence: Mapping[str, float]
    learner: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. Times in seconds; `rate`: requests a second; `baseline`, `final`: requests with learning off, and
    after it has ended; `window`: the latest answers that a figure of the moment is made of."""

    facts: Sequence[Fact]
    seed: int
    rate: float = 1.5
    baseline: int = 200
    learning_s: float = 600.0
    look_s: float = 5.0
    final: int = 90
    window: int = WINDOW


@dataclass(slots=True)
class Loop:
    """One closed loop from its start to its end; `moments` grow while it learns."""

    plan: Plan
    mesh: Mesh
    master: "subprocess.Popen[str]"
    master_port: int
    began: float = 0.0
    moments: list[Moment] = field(default_factory=list)
    published: dict[str, float] = field(default_factory=dict)
    """Adapters in the order in which they came, with the seconds from the close of their batch to their answer."""

    @property
    def base_url(self) -> str:
        """Envoy's address."""
        return str(self.mesh.client.base_url)

    def exam(self, *, ways: int | None = None) -> float:
        """Held-out accuracy of the courier alone."""
        return asyncio.run(examined(self.base_url, self.plan.facts, ways=ways))

    def traffic(self, *, rate: float, seed: int) -> Traffic:
        """Traffic of its own for this loop."""
        return Traffic(self.base_url, self.plan.facts, random.Random(seed), rate)

    def without_learning(self) -> Figures:
        """The same traffic while refinement is off and the learner paused."""
        self._learning(on=False)
        traffic = self.traffic(rate=0.0, seed=self.plan.seed)
        asyncio.run(traffic.run(count=self.plan.baseline))
        self._learning(on=True)
        return figures_of(traffic.answers)

    def learn(self, show: Callable[[Moment], None], enough: "Callable[[Moment], bool] | None" = None) -> Figures:
        """Traffic with the loop running, until it is enough or the time is up; then the figures of `final` requests.

        `enough`: by default, the courier has taken over and knows the held-out questions.
        """
        return asyncio.run(self._learn(show, enough or has_closed))

    def stop_master(self) -> None:
        """The paid API is gone."""
        self.master.terminate()
        self.master.wait(10)

    @contextmanager
    def master_again(self) -> Iterator[None]:
        """The paid API is back where it was, for a while."""
        with scripted_master(self.mesh.home, self.plan.facts, self.master_port):
            yield

    def refinement_usd(self) -> float:
        """What the mesh has spent on learning: Oracle, Arbiter and Judge."""
        rows = self.mesh.get("/api/spend")["rows"]
        return sum(int(r["cost_micros"]) for r in rows if r["purpose"] == "REFINEMENT") / 1e6

    def learner(self) -> dict[str, Any]:
        """What the online learner says of itself."""
        return self.mesh.get("/api/learner", role=ROLE)

    async def _learn(self, show: Callable[[Moment], None], enough: Callable[[Moment], bool]) -> Figures:
        self.began = time.monotonic()
        traffic = self.traffic(rate=self.plan.rate, seed=self.plan.seed + 1)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(traffic.run()), group.create_task(self._follow_adapters())]
            while time.monotonic() - self.began < self.plan.learning_s:
                await asyncio.sleep(self.plan.look_s)
                self.moments.append(await self._moment(traffic))
                show(self.moments[-1])
                if enough(self.moments[-1]):
                    break
            before = len(traffic.answers)
            await traffic.until(before + self.plan.final)
            for task in running:
                task.cancel()
        return figures_of(traffic.answers[before:])

    async def _moment(self, traffic: Traffic) -> Moment:
        state = (await asyncio.to_thread(self.mesh.get, "/api/adapters/state", role=ROLE))["roles"][0]
        champion = str(state["champion"])
        before = self.moments[-1] if self.moments else None
        held_out = before.held_out if before is not None else 0.0
        if champion and (before is None or champion != before.champion):
            held_out = await examined(self.base_url, self.plan.facts, ways=1)
        known = await asyncio.to_thread(self.mesh.get, "/api/cognitive-map")
        domains = {f.domain for f in self.plan.facts}
        return Moment(
            time.monotonic() - self.began, figures_of(traffic.answers[-self.plan.window:]), held_out, champion,
            len(state["adapters"]), int(known["ledger_sequence"]),
            {s["name"]: s["confidence"] for s in known["skills"] if s["name"] in domains},
            await asyncio.to_thread(self.learner),
        )  # fmt: skip

    async def _follow_adapters(self) -> None:
        """Asks each published adapter by its name until it answers, and notes how long that took. One that answers to
        no new batch has no such time."""
        async with httpx.AsyncClient(base_url=self.base_url, timeout=60) as client:
            while True:
                told = await client.get("/api/learner", params={"role": ROLE})
                learner = told.json() if told.status_code == 200 else {}
                adapter = str(learner.get("adapter_id", ""))
                closed = str(learner.get("batch_close_time") or "")
                if closed and adapter not in self.published and await _answers(client, adapter):
                    self.published[adapter] = time.time() - _unix(closed)
                await asyncio.sleep(0.5)

    def _learning(self, *, on: bool) -> None:
        self.mesh.post("/api/config/governor", {"enabled": on})
        verb = "resume" if on else "pause"
        self.mesh.post(f"/api/learner:{verb}", {"role": ROLE})


@contextmanager
def closed_loop(plan: Plan, settings: Mapping[str, str] | None = None) -> Iterator[Loop]:
    """A mesh, a master and their loop in a folder of their own; all ended and removed afterwards, by SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="hivemind-loop-") as folder:
        home = Path(folder)
        with scripted_master(home, plan.facts) as (master, port):
            config = catalogue(port, sorted({f.domain for f in plan.facts}))
            with running_mesh(home, config, PACE | dict(settings or {})) as mesh:
                mesh.post("/api/config/governor", {"budgets": [_REFINEMENT]})
                yield Loop(plan, mesh, master, port)


@contextmanager
def scripted_master(home: Path, facts: Sequence[Fact], port: int = 0) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """The scripted master as a process, and its port (0: any free one is taken)."""
    file = home / "facts.json"
    file.write_text(json.dumps([asdict(f) for f in facts]))
    command = [sys.executable, str(HERE / "scripted_master.py"), str(file), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.terminate()


def catalogue(port: int, domains: Sequence[str]) -> str:
    """The operator's hivemind.toml: who answers at what price, whose requests may be learnt from, the domains.

    The tenants of the traffic want quality first (dial 0.9) and a single call, so without learning master answers.
    """
    text = "version = 1\n"
    for alias, prices in PRICES.items():
        text += f'[models.{alias}]\nendpoints = [{{ base_url = "http://127.0.0.1:{port}/v1", model = "{alias}" }}]\n'
        text += f"context_tokens = 128000\ninput_price = {prices[0]}\noutput_price = {prices[1]}\n"
    text += "[models.courier]\ncontext_tokens = 2048\nmax_output_tokens = 1024\ntools = false\n"
    text += f"input_price = {COURIER_PRICE[0]}\noutput_price = {COURIER_PRICE[1]}\n"
    text += '[policies.careful]\ndial = 0.9\nstrategies = ["single"]\n'
    text += "".join(f'[tenants.{name}]\npolicy = "careful"\n' for name in TENANTS)
    return text + f"[tenants.{EXAMINER}]\ntraining = false\n" + taxonomy(domains)


def has_closed(moment: Moment) -> bool:
    """Whether the courier has taken over, with right answers, and knew most held-out questions in the last exam."""
    figures = moment.figures
    return min(figures.courier_share, figures.accuracy, moment.held_out) >= DONE_SHARE


async def _answers(client: httpx.AsyncClient, adapter: str) -> bool:
    """Whether every healthy replica holds an adapter and one answers with it."""
    state = (await client.get("/api/adapters/state", params={"role": ROLE})).json()["roles"][0]
    replicas = [r for r in state["replicas"] if r["healthy"]]
    if not replicas or not all(adapter in r["adapters"] for r in replicas):
        return False
    body = {"model": f"courier:{adapter}", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
    answer = await client.post("/v1/chat/completions", json=body, headers={"x-hivemind-tenant": EXAMINER})
    return answer.status_code == 200 and answer.headers.get("x-hivemind-adapter") == adapter


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
