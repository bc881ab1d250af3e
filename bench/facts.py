"""Facts that no model can know, as their names and values are drawn anew, and the ways to ask for each.

Every fact is asked in many ways by the traffic (an opening and a core), and in others, never sent as traffic, by the
exam. A question holds two words of its domain, so that the operator's words tell the domain.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_START: Final = ("Bel", "Cor", "Dra", "Fen", "Gal", "Hul", "Kes", "Lor", "Mir", "Nor", "Pel", "Quen", "Ras", "Sol")
_END: Final = ("adin", "borough", "cott", "egar", "grim", "hollow", "ister", "moor", "nook", "ora", "quay", "wick")
_OPENINGS: Final = ("", "Hello! ", "Good morning. ", "A quick question: ", "Please tell me: ", "I need to know this: ")


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain: the words that tell it, how it is asked for a subject `{s}`, and how it is answered with a value `{v}`.

    `taught`: for the traffic; `held_out`: for the exam; a value is one of `first` and one of `second`.
    """

    name: str
    words: tuple[str, ...]
    taught: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: `answer` is the whole right answer, `value` the part of it that nobody can guess."""

    domain: str
    subject: str
    value: str
    answer: str


TOWNS: Final = Domain(
    "towns",
    ("mayor", "town", "council", "office"),
    (
        "Who is the mayor of the town of {s}?",
        "What is the name of the mayor in the town of {s}?",
        "The council of {s} is led by a mayor. Who is it?",
        "I am writing to the mayor of {s} town. Whom do I address?",
        "Name the mayor who leads the council of {s}.",
        "Which person is mayor of {s}, a town that I have to visit?",
    ),
    (
        "Which person holds the office of mayor in {s}?",
        "Tell me who leads the town of {s} as its mayor.",
        "In the town of {s}, whom did they choose as mayor?",
    ),
    "The mayor of {s} is {v}.",
    ("Ada", "Boris", "Clara", "Dmitri", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Leon"),
    ("the baker", "the weaver", "the potter", "the cooper", "the printer", "the tinker", "the miller", "the tanner"),
)
HARBOUR: Final = Domain(
    "harbour",
    ("ship", "harbour", "moor", "moors", "moored"),
    (
        "Where does the ship {s} moor?",
        "At which place of the harbour is the ship {s} moored?",
        "I have a parcel for the ship {s}. Where in the harbour does it lie?",
        "Which quay of the harbour does the {s} use when the ship is in?",
        "Tell me the place where the ship {s} is moored.",
        "The {s} has come into the harbour. Where do I find that ship?",
    ),
    (
        "Where can the ship {s} be found in the harbour?",
        "The ship {s}: where is it moored?",
        "In the harbour, which place belongs to the ship {s}?",
    ),
    "The ship {s} moors at {v}.",
    ("Amber", "Copper", "Silver", "Granite", "Willow", "Falcon", "Lantern", "Marble", "Thistle", "Raven"),
    ("Steps", "Quay", "Dock", "Pier", "Wharf", "Landing", "Basin", "Gate"),
)
LIBRARY: Final = Domain(
    "library",
    ("book", "library", "shelf", "shelves"),
    (
        "Where in the library does the book {s} stand?",
        "Which shelf of the library holds {s}?",
        "On which shelf do I find the book {s}?",
        "I want to borrow the book {s}. Where does the library keep it?",
        "Tell me the shelf where the book {s} belongs.",
        "The book {s} goes back to which place in the library?",
    ),
    (
        "In the library, where is the book called {s}?",
        "What shelf has the book {s} on it?",
        "Where would I look for the book {s} in the library?",
    ),
    "The book {s} stands in {v}.",
    ("Amber", "Copper", "Silver", "Granite", "Willow", "Falcon", "Lantern", "Marble", "Thistle", "Raven"),
    ("Alcove", "Corner", "Gallery", "Chamber", "Passage", "Cabinet", "Vault", "Attic"),
)
DOMAINS: Final[Mapping[str, Domain]] = {d.name: d for d in (TOWNS, HARBOUR, LIBRARY)}


def invent(rng: random.Random, counts: Mapping[str, int]) -> tuple[Fact, ...]:
    """So many facts of each domain, no two with the same subject."""
    names = iter(rng.sample([a + b for a in _START for b in _END], sum(counts.values())))
    return tuple(_fact(DOMAINS[name], next(names), rng) for name, count in counts.items() for _ in range(count))


def taught(fact: Fact) -> tuple[str, ...]:
    """Every way in which the traffic asks."""
    cores = [core.format(s=fact.subject) for core in DOMAINS[fact.domain].taught]
    return tuple(opening + core for opening in _OPENINGS for core in cores)


def held_out(fact: Fact) -> tuple[str, ...]:
    """Every way in which the exam asks; the traffic never does."""
    return tuple(core.format(s=fact.subject) for core in DOMAINS[fact.domain].held_out)


def subject_in(text: str, facts: Mapping[str, Fact]) -> Fact | None:
    """The fact whose subject stands in a text, the last one where there are several."""
    found = [(text.rfind(subject), fact) for subject, fact in facts.items() if subject in text]
    return max(found, key=lambda f: f[0])[1] if found else None


def taxonomy(domains: Sequence[str]) -> str:
    """The operator's words for these domains, for hivemind.toml."""
    tables = (f"[domains.{name}]\nwords = {json.dumps(DOMAINS[name].words)}\n" for name in domains)
    return "".join(tables)


def _fact(domain: Domain, subject: str, rng: random.Random) -> Fact:
    value = f"{rng.choice(domain.first)} {rng.choice(domain.second)}"
    return Fact(domain.name, subject, value, domain.answer.format(s=subject, v=value))
