"""Clients of a mesh under measurement: traffic for `auto`, and an exam that asks the courier alone."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from bench.facts import Fact, held_out, taught
from bench.figures import Answer, is_exact

AT_ONCE: Final = 8
"""Requests under way; more than an exam has at once: the slots of the small model are few."""
EXAM_AT_ONCE: Final = 4
EXAMINER: Final = "examiner"
"""The tenant of the exam, which refuses that its requests are learnt from."""
TENANTS: Final = ("north", "south", "east", "west")
_MAX_TOKENS: Final = 32


@dataclass(slots=True)
class Traffic:
    """Asks about facts at a steady rate until it is ended; keeps all answers. `rng` draws facts, ways and tenants."""

    base_url: str
    facts: Sequence[Fact]
    rng: random.Random
    rate: float
    clock: Callable[[], float] = time.monotonic
    answers: list[Answer] = field(default_factory=list)
    failed: int = 0
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, *, count: int | None = None) -> None:
        """So many requests, or for ever. At rate 0 each connection asks as soon as it was answered."""
        began, sent = self.clock(), 0
        gate = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(base_url=self.base_url, timeout=60) as client, asyncio.TaskGroup() as group:
            while count is None or sent < count:
                await gate.acquire()
                if self.rate:
                    await asyncio.sleep(max(0.0, began + sent / self.rate - self.clock()))
                sent += 1
                fact = self.rng.choice(self.facts)
                question, tenant = self.rng.choice(taught(fact)), self.rng.choice(TENANTS)
                group.create_task(self._one(client, gate, fact, question, tenant))

    async def until(self, count: int) -> None:
        """Waits until so many answers have come."""
        while len(self.answers) < count:
            self._came.clear()
            await self._came.wait()

    async def _one(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, fact: Fact, question: str, tenant: str
    ) -> None:
        try:
            told = await ask(client, "auto", question, tenant)
        except httpx.HTTPError:
            self.failed += 1
        else:
            about = told["hivemind"]
            text = str(told["choices"][0]["message"]["content"] or "")
            self.answers.append(
                Answer(self.clock(), fact, text, about["chosen_model"], about["adapter"], int(about["cost_micros"]))
            )
            self._came.set()
        finally:
            gate.release()


async def examined(base_url: str, facts: Sequence[Fact], *, ways: int | None = None) -> float:
    """The share of held-out questions that the courier answers to the letter; `ways`: how many a fact, None: all."""
    gate = asyncio.Semaphore(EXAM_AT_ONCE)

    async def one(client: httpx.AsyncClient, fact: Fact, question: str) -> bool:
        async with gate:
            told = await ask(client, "courier", question, EXAMINER)
            return is_exact(str(told["choices"][0]["message"]["content"] or ""), fact)

    async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:
        found = await asyncio.gather(*(one(client, f, q) for f in facts for q in held_out(f)[:ways]))
    return sum(found) / len(found)


async def ask(client: httpx.AsyncClient, model: str, question: str, tenant: str) -> dict[str, Any]:
    """One question over the OpenAI surface; httpx.HTTPError where it is not answered."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0}
    answer = await client.post("/v1/chat/completions", json=body, headers={"x-hivemind-tenant": tenant})
    answer.raise_for_status()
    told: dict[str, Any] = answer.json()
    return told
