"""What the gate looks at: a prompt's form, its domain, and where its words lie. Models rely on the names."""

import math
import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hivemind.servers.router.gate.taxonomy import BUILTIN, OPTION, Taxonomy
from hivemind.servers.router.gate.wordpiece import FIRST_WORD, Floats, PieceTable

_COMPUTE: Final = (
    r"\b(?:how (?:many|much)|calculate|compute|what is the value|find the|evaluate|simplify|solve|total)\b"
)
_COUNTED: Final = {
    "negation": r"\b(?:not|except|never|incorrect|least|false)\b",
    "task_compute": _COMPUTE,
    "numbered_claims": r"\b(?:statement|scenario|case) (?:1|i)\b",
    "blanks": r"_{2,}",
    "persons": r"\b(?:he|she|his|her|man|woman|him)\b",
    "law_words": r"\b(?:plaintiff|defendant|court|statute|contract|crime|constitution\w*|liab\w+)\b",
    "code_words": r"\b(?:def |function|python|code|algorithm|program|assert)\b",
    "medical_words": r"\b(?:patient|symptom\w*|disease|clinical|cell\w*|protein\w*|gene\w*|drug)\b",
    "moral_words": r"\b(?:moral\w*|ethic\w*|wrong|argu\w+|philosoph\w*)\b",
    "money_words": r"\b(?:price|market|cost|demand|supply|firm|tax|income|bank|\$\s?\d)\b",
    "asks_fact": r"\b(?:who|when|where|which|what year|name)\b",
    "asks_reason": r"\b(?:why|explain|because|therefore|imply|implies|conclude|best describes)\b",
    "passage": r"\b(?:according to|passage|following (?:passage|text|excerpt)|source)\b",
    "years": r"\b(?:17|18|19|20)\d\d\b",
    "formula": r"\$|\\[a-z]+|[=^∑∫√≤≥]",
    "conditions": r"\b(?:if|suppose|assume|let|given)\b",
    "combined_options": r"\b(?:all of the above|none of the above|both|neither|i and ii|i only|ii only)\b",
    "quantities": r"\b(?:percent|%|ratio|probability|average|mean|equation|integer|number)\b",
    "task_write": r"\b(?:write|generate|create|compose|using the (?:words|following)|sentence)\b",
    "judging": r"\b(?:following|true|correct)\b",
    "physics_words": r"\b(?:energy|force|mass|velocity|electron|charge|atom\w*|reaction|acid|temperature)\b",
    "reasoning": r"\b(?:step by step|reason\w*|puzzle|clue\w*)\b",
    "question_mark_form": r"^\s*(?:q|question)\s*:",
}
_PATTERNS: Final = {name: re.compile(text) for name, text in _COUNTED.items()}
_FORM: Final = (
    "log_length", "log_question", "log_sentences", "log_sentence_length", "has_options", "options", "log_option_length",
    "option_spread", "option_likeness", "option_echo", "numeric_options", "one_word_options", "digit_share",
    "log_digits", "upper_share", "has_question_mark", "lines", "word_length", "distinct_words", "mean_rarity",
    "high_rarity", "continued_pieces", "log_rare_pieces", "non_ascii", "commas", "names", "brackets", "ends_asking",
)  # fmt: skip
_WORDS: Final = re.compile(r"[A-Za-z']+")
_TERMS: Final = re.compile(r"\w+")
_SENTENCE_END: Final = re.compile(r"[.!?](?:\s|$)")
_RARE: Final = 15_000


class Features:
    """Turns prompts into vectors; `names` says what stands where."""

    def __init__(self, table: PieceTable) -> None:
        self._table, self._taxonomy = table, Taxonomy()
        vectors = tuple(f"meaning_{i}" for i in range(table.vectors.shape[1]))
        self.names: Final = (*_FORM, *_COUNTED, *vectors, *(f"domain_{d}" for d in BUILTIN))

    def of(self, prompt: str) -> tuple[Floats, str]:
        """The vector of a prompt, shape (len(names),), and its domain in the built-in taxonomy."""
        pieces = self._table.pieces(prompt)
        first = OPTION.search(prompt)
        question = prompt[: first.start()] if first else prompt
        lower = question.lower()
        domain = self._taxonomy.classify(prompt)
        values = [
            *self._form(prompt, question, pieces),
            *(min(3, len(found.findall(lower))) / 3 for found in _PATTERNS.values()),
        ]
        here = [float(d == domain) for d in BUILTIN]
        return np.concatenate([np.array(values), self._table.embed(pieces), here]).astype(np.float32), domain

    def _form(self, prompt: str, question: str, pieces: NDArray[np.int64]) -> list[float]:
        options = [m.group(2) for m in OPTION.finditer(prompt)]
        words = _WORDS.findall(question)
        size, asked, count = max(len(prompt), 1), max(len(question), 1), max(len(words), 1)
        sentences = max(1, len(_SENTENCE_END.findall(question)))
        digits = sum(c.isdigit() for c in question)
        terms = _WORDS.findall(prompt)
        return [
            math.log1p(size), math.log1p(len(question)), math.log1p(sentences), math.log1p(len(question) / sentences),
            *_of_options(options, {w.lower() for w in words}),
            digits / asked, math.log1p(digits), sum(c.isupper() for c in question) / asked, float("?" in question),
            prompt.count("\n") / 10, sum(map(len, words)) / count, len({t.lower() for t in terms}) / max(1, len(terms)),
            *self._rarity(pieces), sum(not c.isascii() for c in prompt) / size, question.count(",") / count,
            sum(w[:1].isupper() for w in words[1:]) / count, (question.count("(") + question.count("{")) / count,
            float(question.rstrip().endswith("?")),
        ]  # fmt: skip

    def _rarity(self, pieces: NDArray[np.int64]) -> tuple[float, float, float, float]:
        ranks = np.maximum(pieces - FIRST_WORD, 0) if len(pieces) else np.zeros(1)
        logs = np.log1p(ranks)
        continued = float(self._table.continues[pieces].mean()) if len(pieces) else 0.0
        rare = math.log1p(int((ranks > _RARE).sum()))
        return float(logs.mean()) / 10, float(np.quantile(logs, 0.9)) / 10, continued, rare


def _of_options(options: list[str], asked: set[str]) -> list[float]:
    """has_options to one_word_options; `asked` are the words of the question."""
    if not options:
        return [0.0] * 8
    lengths = [len(o) for o in options]
    sets = [set(_TERMS.findall(o.lower())) for o in options]
    pairs = [len(a & b) / max(1, len(a | b)) for i, a in enumerate(sets) for b in sets[:i]]
    numeric = sum(len(o) < 30 and any(c.isdigit() for c in o) for o in options)
    return [
        1.0, len(options) / 5, math.log1p(sum(lengths) / len(options)),
        math.log1p(max(lengths)) - math.log1p(min(lengths)), sum(pairs) / max(1, len(pairs)),
        sum(len(s & asked) / max(1, len(s)) for s in sets) / len(sets), numeric / len(options),
        sum(len(o.split()) == 1 for o in options) / len(options),
    ]  # fmt: skip
