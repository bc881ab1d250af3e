"""What worked examples are worth: `make bench NAME=retrieval`.

A mesh with its embedded courier is told invented facts (values random per run) by demonstrations, each in one wording.
Then it is asked in other wordings, under a policy without examples and under one that shows one.
Asked as well: things that nobody taught, about other towns and about the world, where examples must do no harm.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hivemind.servers.router.example_index import ExampleIndex, Exemplar, flat_index
from hivemind.servers.router.gate.model import TABLE_FILE
from hivemind.servers.router.gate.wordpiece import PieceTable
from hivemind.servers.router.likeness import Likeness

HERE = Path(__file__).resolve().parent
SHOWN: Final = (0, 1)
THRESHOLDS: Final = (0.6, 0.7, 0.75, 0.8, 0.85)
ENVIRONMENT: Final = {
    "HIVEMIND_PORT": "0",
    "HIVEMIND_NOMINATE": "0",
    "HIVEMIND_EXPLORE": "0",
    "HIVEMIND_ENGINE_THREADS": "1",
}
_START: Final = (
    "Bel",
    "Cor",
    "Dra",
    "Fen",
    "Gal",
    "Hul",
    "Kes",
    "Lor",
    "Mir",
    "Nor",
    "Pel",
    "Quen",
    "Ras",
    "Sol",
    "Tal",
)
_END: Final = ("adin", "borough", "cott", "dale", "egar", "grim", "hollow", "ister", "moor", "nook", "ora", "quay")
_NAMES: Final = (
    "Ada",
    "Boris",
    "Clara",
    "Dmitri",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karla",
    "Leon",
)
_TRADES: Final = ("baker", "weaver", "potter", "glazier", "cooper", "saddler", "printer", "tinker", "miller", "tanner")
_DISHES: Final = (
    "eel pie",
    "plum soup",
    "nettle cake",
    "goose broth",
    "beet jam",
    "oat bread",
    "leek stew",
    "fig tart",
)


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of fact: how it is taught, how it is asked later, how it is answered, and what may be true."""

    taught: str
    held_out: tuple[str, str]
    answer: str
    value: Callable[[random.Random], str]


SCHEMAS: Final = (
    Schema(
        "Who is the mayor of {}?",
        ("Which person holds the office of mayor in {}?", "I am writing to the mayor of {}. Who is it?"),
        "The mayor of {} is {}.", lambda rng: f"{rng.choice(_NAMES)} the {rng.choice(_TRADES)}",
    ),
    Schema(
        "In which year was the bridge of {} built?",
        ("When did they build the bridge of {}?", "How old is the bridge in {}? Name the year it was built."),
        "The bridge of {} was built in {}.", lambda rng: str(rng.randint(1600, 1990)),
    ),
    Schema(
        "What is the dish that the inn of {} is known for?",
        ("Which dish is the inn in {} famous for?", "I will eat at the inn of {}. What dish is it known for?"),
        "The inn of {} is known for its {}.", lambda rng: rng.choice(_DISHES),
    ),
    Schema(
        "Which bus line goes to {}?",
        ("What is the number of the bus that goes to {}?", "I have to go to {} by bus. Which line do I take?"),
        "Bus line {1} goes to {0}.", lambda rng: str(rng.randint(11, 989)),
    ),
)  # fmt: skip
WORLD: Final = (
    ("What is the capital of France?", "paris"), ("What is the capital of Japan?", "tokyo"),
    ("Who wrote Romeo and Juliet?", "shakespeare"), ("How many days are there in a week?", "7|seven"),
    ("What is the largest planet in our solar system?", "jupiter"), ("What gas do plants absorb?", "carbon"),
    ("What is 2 + 2?", "4|four"), ("What is the chemical symbol for water?", "h2o"),
    ("Who painted the Mona Lisa?", "vinci"), ("Which ocean is the largest?", "pacific"),
    ("Who was the first president of the USA?", "washington"), ("In which year did World War II end?", "1945"),
    ("Which is the longest river in Africa?", "nile"), ("What is the capital of Italy?", "rome"),
    ("How many continents are there?", "7|seven"), ("What is the freezing point of water in Celsius?", "0|zero"),
    ("Who is the mayor of London?", "khan"), ("In which year was the Eiffel Tower built?", "1889|1887"),
    ("Which dish is Naples known for?", "pizza"), ("In which city is the Brandenburg Gate?", "berlin"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact of a town."""

    schema: Schema
    town: str
    value: str

    @property
    def answer(self) -> str:
        """The sentence that is demonstrated."""
        return self.schema.answer.format(self.town, self.value)


def facts(rng: random.Random, count: int) -> tuple[list[Fact], list[Fact]]:
    """Facts to teach, and as many of other towns that are never taught."""
    towns = rng.sample([a + b for a in _START for b in _END], 2 * count)
    made = [Fact(s := SCHEMAS[i % len(SCHEMAS)], town, s.value(rng)) for i, town in enumerate(towns)]
    return made[:count], made[count:]


class Mesh:
    """A running mesh, asked by one tenant."""

    def __init__(self, base: str, tenant: str) -> None:
        self._base, self._tenant = base, tenant

    def post(self, path: str, body: dict[str, Any], policy: str = "") -> dict[str, Any]:
        """A POST that answers JSON."""
        headers = {"x-hivemind-tenant": self._tenant} | ({"x-hivemind-policy": policy} if policy else {})
        request = urllib.request.Request(self._base + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def ask(self, question: str, shown: int) -> dict[str, float | str]:
        """An answer, its tokens and time, and how many examples were shown with it."""
        began = time.perf_counter()
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 32, "temperature": 0}
        answer = self.post("/api/complete", body, f"show{shown}")
        wall_s = time.perf_counter() - began
        return {
            "text": answer["message"]["content"], "tokens": answer["usage"]["prompt_tokens"], "wall_s": wall_s,
            "examples": answer["reason"].count("platinum example"),
        }  # fmt: skip

    def teach(self, taught: Sequence[Fact]) -> None:
        """Gives the facts as demonstrations, and returns when all of them can be shown."""
        for fact in taught:
            question = fact.schema.taught.format(fact.town)
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 4}
            request_id = self.post("/api/complete", body)["request_id"]
            self.post("/api/feedback", {"request_id": request_id, "demonstration": fact.answer})
        end = time.monotonic() + 60
        for fact in taught:
            body = {"messages": [{"role": "user", "content": fact.schema.taught.format(fact.town)}]}
            while not self.post("/api/route", body, "show1")["examples"]:
                if time.monotonic() > end:
                    sys.exit("the facts did not become examples within a minute")
                time.sleep(0.05)


@contextmanager
def mesh() -> Iterator[str]:
    """A mesh with its embedded courier and a policy for each number of examples; its URL."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "hivemind.toml"
        config.write_text("".join(f"[policies.show{n}]\nexamples = {n}\n" for n in SHOWN))
        environment = {**os.environ, **ENVIRONMENT, "HIVEMIND_HOME": folder, "HIVEMIND_CONFIG": str(config)}
        command = [sys.executable, "-m", "hivemind.cli"]
        subprocess.run([*command, "up", "--detach"], env=environment, check=True, stdout=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{json.loads((Path(folder) / 'run' / 'mesh.json').read_text())['port']}"
        finally:
            subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)


def repetition(mesh: Mesh, rng: random.Random, count: int) -> dict[str, dict[str, float]]:
    """One run with facts of its own: a row for each kind of question and number of examples."""
    taught, others = facts(rng, count)
    mesh.teach(taught)
    values = [f.value.lower() for f in taught]
    found: dict[str, dict[str, float]] = {}
    for shown in SHOWN:
        held_out = [(q.format(f.town), f) for f in taught for q in f.schema.held_out]
        answers = [(mesh.ask(question, shown), fact) for question, fact in held_out]
        found[f"taught, {shown}"] = row(
            [a for a, _ in answers],
            right=[f.value.lower() in str(a["text"]).lower() for a, f in answers],
            exact=[str(a["text"]).strip() == f.answer for a, f in answers],
        )
    for shown in (0, 1):
        asked = [mesh.ask(f.schema.held_out[0].format(f.town), shown) for f in others]
        claimed = [any(v in str(a["text"]).lower() for v in values) for a in asked]
        found[f"other towns, {shown}"] = row(asked, right=[False] * len(asked), taken_over=claimed)
        asked = [mesh.ask(question, shown) for question, _ in WORLD]
        right = [
            any(w in str(a["text"]).lower() for w in ws.split("|")) for a, (_, ws) in zip(asked, WORLD, strict=True)
        ]
        found[f"the world, {shown}"] = row(asked, right=right)
    return found


def row(answers: Sequence[dict[str, Any]], **shares: Sequence[bool]) -> dict[str, float]:
    """Medians and shares over the answers to one kind of question."""
    return {
        "questions": len(answers), "shown": statistics.fmean(a["examples"] > 0 for a in answers),
        "tokens": statistics.median(a["tokens"] for a in answers),
        "wall_ms": 1000 * statistics.median(a["wall_s"] for a in answers),
        **{name: statistics.fmean(map(float, share)) for name, share in shares.items()},
    }  # fmt: skip


def lookup(held: int, rng: random.Random, searches: int = 500) -> dict[str, float]:
    """How long a lookup takes among so many examples of one tenant, in microseconds."""
    index = ExampleIndex(Likeness(PieceTable(TABLE_FILE)), flat_index())
    towns = [a + b + c.lower() for a in _START for b in _END for c in _START]
    for i in range(held):
        schema = SCHEMAS[i % len(SCHEMAS)]
        town = f"{towns[i % len(towns)]} {i // len(towns)}"
        index.add(Exemplar(str(i), "t", schema.taught.format(town), schema.answer.format(town, "x")))
    times = []
    for _ in range(searches):
        question = rng.choice(SCHEMAS).held_out[0].format(f"{rng.choice(towns)} 0")
        began = time.perf_counter()
        index.find("t", question, 1)
        times.append(1e6 * (time.perf_counter() - began))
    times.sort()
    return {"held": held, "p50_us": times[searches // 2], "p99_us": times[searches * 99 // 100]}


class _NoWords(Likeness):
    """The embedding alone."""

    def things(self, text: str) -> frozenset[str]:
        """Nothing has to stand in the example."""
        return frozenset()


def found_at(threshold: float, likeness: Likeness, taught: Sequence[Fact], others: Sequence[Fact]) -> dict[str, float]:
    """Shares of questions for which the right example is found, and of those for which one is found that should not."""
    index = ExampleIndex(likeness, flat_index(), threshold=threshold)
    for fact in taught:
        index.add(Exemplar(fact.town, "t", fact.schema.taught.format(fact.town), fact.answer))

    def found(question: str) -> str:
        return next((hit.exemplar.platinum_id for hit in index.find("t", question, 1)), "")

    held_out = [(found(q.format(f.town)), f.town) for f in taught for q in f.schema.held_out]
    elsewhere = [found(f.schema.held_out[0].format(f.town)) for f in others]
    return {
        "right": statistics.fmean(name == town for name, town in held_out),
        "wrong": statistics.fmean(name not in ("", town) for name, town in held_out),
        "other towns": statistics.fmean(name != "" for name in elsewhere),
        "the world": statistics.fmean(found(question) != "" for question, _ in WORLD),
    }


def sweep(rng: random.Random, draws: int = 10) -> dict[str, dict[str, float]]:
    """What is found by threshold, with names compared and by the embedding alone; means over draws of facts."""
    table, drawn = PieceTable(TABLE_FILE), [facts(rng, 20) for _ in range(draws)]
    rows = {}
    for name, likeness in (("names compared", Likeness(table)), ("embedding alone", _NoWords(table))):
        for threshold in THRESHOLDS:
            each = [found_at(threshold, likeness, *draw) for draw in drawn]
            rows[f"{threshold}, {name}"] = {key: statistics.fmean(e[key] for e in each) for key in each[0]}
    return rows


def main(arguments: list[str]) -> None:
    """Prints tables in Markdown and writes bench/results/retrieval.json."""
    parser = argparse.ArgumentParser(prog="retrieval", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--facts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    lookups = [lookup(held, rng) for held in (20, 1_000, 5_000)]
    swept = sweep(rng)
    with mesh() as base:
        runs = []
        for i in range(options.repeat):
            runs.append(repetition(Mesh(base, f"bench{i}"), rng, options.facts))
            print(f"repetition {i + 1}: {json.dumps(runs[-1])}", file=sys.stderr, flush=True)
    medians = {
        kind: {name: statistics.median(run[kind][name] for run in runs) for name in runs[0][kind]} for kind in runs[0]
    }
    print(f"{options.facts} facts, {options.repeat} repetitions, seed {options.seed}, {os.cpu_count()} cores\n")
    print("| asked about, examples at most | shown | right | exact | taken over | prompt tokens | wall time, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind, m in medians.items():
        shares = [f"{m[k]:.0%}" if k in m else "" for k in ("shown", "right", "exact", "taken_over")]
        print(f"| {kind} | " + " | ".join([*shares, f"{m['tokens']:g}", f"{m['wall_ms']:.0f}"]) + " |")
    print("\n| examples held | lookup p50, us | p99, us |")
    print("| ---: | ---: | ---: |")
    for found in lookups:
        print(f"| {found['held']:g} | {found['p50_us']:.0f} | {found['p99_us']:.0f} |")
    print("\n| threshold | the right example | a wrong one | for other towns | for the world |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, shares in swept.items():
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares.values()) + " |")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    document = {
        "machine": machine,
        "options": vars(options),
        "runs": runs,
        "median": medians,
        "lookup": lookups,
        "found": swept,
    }
    (results / "retrieval.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
