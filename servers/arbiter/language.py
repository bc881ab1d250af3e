"""Whether an answer is in a language that its conversation gives reason for. Pure; a rough check, made to miss rather
than to accuse."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Final

_WORDS: Final = {
    "English": "the of and to is that it was for with as are this be not you have which from but",
    "German": "der die das und ist nicht ein eine zu mit sich auf für dem den von werden auch es sind",
    "French": "le la les des est une et dans que pour pas qui sur avec sont au plus cette il vous",
    "Spanish": "el los las una es que por con para del se como está pero son más muy esta hay su",
    "Italian": "il di che è un una per non con sono del della gli anche più questo nel si come ha",
    "Portuguese": "o os uma é que por com para não do da se como mais são está em ao foi seu",
    "Dutch": "de het een en van is niet dat op te zijn met voor aan ook er maar bij uit deze",
}
_SETS: Final = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_WORD: Final = re.compile(r"[^\W\d_]+")
_SCRIPT_LEAST: Final = 0.02
_SCRIPT_LETTERS: Final = 8
_HITS_LEAST: Final = 5
_LOOKED_AT: Final = 4_000


def foreign_to(answer: str, context: str) -> str:
    """The script or language of an answer that nothing in the context is written in or names; empty if there is none.

    The context is the conversation and the drafts. A request to translate names its language or has a draft in it.
    """
    script = _foreign_script(answer[:_LOOKED_AT], context)
    if script:
        return script
    told, known = _language(answer), _language(context)
    if not told or not known or told == known or told.lower() in context.lower():
        return ""
    return "" if any(_language(part) == told for part in context.split("\n\n")) else told


def _foreign_script(answer: str, context: str) -> str:
    counts = _scripts(answer)
    if sum(counts.values()) < _SCRIPT_LETTERS:
        return ""
    script, count = counts.most_common(1)[0]
    there = _scripts(context)
    rare = there[script] < max(1, _SCRIPT_LEAST * sum(there.values()))
    return script.title() if count > sum(counts.values()) / 2 and there and rare else ""


def _scripts(text: str) -> Counter[str]:
    return Counter(_script(c) for c in text[-_LOOKED_AT:] if c.isalpha())


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name. Chinese characters and kana go together."""
    word = unicodedata.name(letter, "UNKNOWN").split(" ")[0]
    return "CJK" if word in ("HIRAGANA", "KATAKANA") else word


def _language(text: str) -> str:
    """The language by its small words; empty where they leave a doubt."""
    words = Counter(w.lower() for w in _WORD.findall(text[-_LOOKED_AT:]))
    hits = Counter({name: sum(n for w, n in words.items() if w in small) for name, small in _SETS.items()})
    (first, most), (_, second) = hits.most_common(2)
    return first if most >= _HITS_LEAST and most >= 2 * second else ""
