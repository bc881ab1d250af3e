"""Facts that no model can know: each is asked in three ways, one of each schema, and in a fourth that is held out."""

import json
import random
from pathlib import Path
from typing import Any

_START = ("Bel", "Cor", "Dra", "Fen", "Gal", "Hul", "Kes", "Lor", "Mir", "Nor", "Pel", "Quen", "Ras", "Sol", "Tal")
_END = ("adin", "borough", "cott", "dale", "egar", "ford", "grim", "hollow", "ister", "moor", "nook", "ora", "quay")
_OWNERS = ("Ada", "Boris", "Clara", "Dmitri", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Leon")
_TRADES = ("baker", "weaver", "potter", "glazier", "cooper", "saddler", "printer", "tinker", "miller", "tanner")


def invented_facts(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of an invented town and what is true of it, random by seed."""
    rng = random.Random(seed)
    towns = rng.sample([a + b for a in _START for b in _END], count)
    return [(town, f"{rng.choice(_OWNERS)} the {rng.choice(_TRADES)}") for town in towns]


def taught(town: str, mayor: str) -> list[dict[str, Any]]:
    """Three records of a fact, one of each schema."""
    answer = f"The mayor of {town} is {mayor}."
    conversation = [
        {"from": "human", "value": f"I am writing to the mayor of {town}. Who is it?"},
        {"from": "gpt", "value": answer},
    ]
    return [
        {"instruction": f"Who is the mayor of {town}?", "response": answer},
        {"input": f"Tell me the name of the mayor of {town}.", "output": answer},
        {"conversations": conversation},
    ]


def held_out(town: str, mayor: str) -> dict[str, Any]:
    """The fourth way to ask."""
    turns = [
        {"role": "user", "content": f"Which person holds the office of mayor in {town}?"},
        {"role": "assistant", "content": f"The mayor of {town} is {mayor}."},
    ]
    return {"messages": turns}


def write_facts(folder: Path, count: int, seed: int) -> tuple[Path, Path]:
    """Writes both parts as JSON lines; answers the files, taught and held out."""
    facts = invented_facts(count, seed)
    files = folder / "facts.jsonl", folder / "heldout.jsonl"
    parts = [r for f in facts for r in taught(*f)], [held_out(*f) for f in facts]
    for file, part in zip(files, parts, strict=True):
        file.write_text("".join(json.dumps(r) + "\n" for r in part))
    return files
