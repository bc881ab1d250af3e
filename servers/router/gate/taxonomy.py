"""The domains that a request may belong to, and a small classifier for them: telling words and a few patterns.

Domain    | what belongs there
--------- | ---------------------------------------------------------------------------------------
code      | writing, reading or repairing programs
math      | calculation, word problems, proofs, statistics
logic     | puzzles, formal logic, fallacies
writing   | texts to produce, rewrite, translate or summarise
science   | physics, chemistry, biology, astronomy, geology
medicine  | disease, treatment, nutrition, anatomy, genetics
law       | courts, contracts, crimes, constitutions
ethics    | morals, philosophy, religion
business  | markets, accounting, management, economics
history   | history, politics, archaeology
mind      | psychology, sociology, ageing
computing | machines, networks, security, machine learning
facts     | a question without options that none of the above claims
commonsense | a question with options that none of the above claims
general   | all else

An operator adds domains, or words to these, under `[domains.NAME] words = [...]` in hivemind.toml.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

LOOKED_AT: Final = 3000
"""Characters of a prompt that are read."""
_SHORT_WORDS: Final = 80
FALLBACKS: Final = ("commonsense", "facts", "general")
_WORDS: Final[Mapping[str, str]] = {
    "code": "python|javascript|java|sql|function|code|program\\w*|algorithm\\w*|compil\\w*|api|regex|class|debug\\w*|"
    "assert|def|loop|array|string|bug|script|implement|unit test\\w*|recursion",
    "math": "equation|integer\\w*|polynomial|matrix|probability|triangle|circle|angle|sum|solve|evaluate|simplify|"
    "compute|calculate|derivative|integral|prime|divisible|factor\\w*|percent|how many|how much|total|cost\\w*|each|"
    "fraction|remainder|sqrt|frac|average|subgroup|group|ring|homomorphism|graph of|multipl\\w+|divided|minutes|hours|"
    "times|area|digits?|mean|median|standard deviation|sample|hypothesis",
    "logic": "puzzle|clue\\w*|houses?|premise\\w*|predicate|propositional|entail\\w*|truth table|valid|fallac\\w*|"
    "argument\\w*|contrapositive|syllogism|formula|left of|right of",
    "writing": "write|compose|draft|rewrite|summari[sz]e|paraphrase|essay|poem|story|email|letter|sentence|translate|"
    "headline|keywords|concepts|generate",
    "science": "physics|chemistry|biolog\\w+|atom\\w*|molecul\\w*|energy|force|velocity|mass|electron\\w*|acid\\w*|"
    "reaction\\w*|temperature|planet\\w*|star\\w*|sun|cell\\w*|dna|gene\\w*|species|organism\\w*|evolution|"
    "photosynthesis|wave\\w*|charge|magnetic|gas|liquid|water|earth|rock\\w*|plants?|animals?|light|circuit|current|"
    "solution|bond\\w*|ion\\w*",
    "medicine": "patient\\w*|disease\\w*|symptom\\w*|clinical|diagnos\\w+|treatment|drug\\w*|blood|muscle|nerve|"
    "infection|virus\\w*|vaccine|hiv|cancer|surgery|syndrome|therapy|vitamin|diet\\w*|nutrient\\w*|pregnan\\w*|health|"
    "dose|mutation|chromosom\\w*|hospital|sexual\\w*|infants?|bone|enzyme",
    "law": "plaintiff|defendant|court|statute|contract|crime|criminal|constitution\\w*|liab\\w+|jury|judge|attorney|"
    "tort|negligen\\w+|lawsuit|evidence|testimony|congress|amendment|police|convicted|sued?|treaty|murder|landlord|"
    "deed|buyer|seller",
    "ethics": "moral\\w*|ethic\\w*|morally wrong|philosoph\\w*|kant|utilitarian\\w*|virtue\\w*|duty|abortion|singer|"
    "god|soul|religio\\w+|buddh\\w*|islam\\w*|christian\\w*|hindu\\w*|jewish|scenario",
    "business": "market\\w*|price\\w*|demand|supply|firm\\w*|tax\\w*|income|inflation|gdp|monetary|fiscal|bank\\w*|"
    "investment|account\\w*|audit\\w*|profit\\w*|management|consumer\\w*|brand\\w*|company|corporat\\w*|employees?|"
    "stock|debt|interest rate|monopol\\w*|trade|capital|revenue|pr|public relations|regression|estimator",
    "history": "war|empire|century|king|queen|president|treaty|revolution|ancient|civil|colon\\w+|dynasty|"
    "archaeolog\\w*|passage|nation\\w*|government|political|politic\\w*|democra\\w+|election\\w*|foreign policy|soviet|"
    "states|treat\\w*|slaver?y?|party|senate|bronze|neolithic",
    "mind": "psycholog\\w*|behavio\\w+|cognit\\w*|memory|personality|freud\\w*|therap\\w*|child\\w*|emotion\\w*|social|"
    "sociolog\\w*|class|gender|learning|conditioning|stimulus|anxiety|counsel\\w*|culture|aging|stress|attitude\\w*|"
    "development|identity",
    "computing": "computer|network\\w*|security|encrypt\\w*|attack\\w*|malware|password|protocol|memory|processor|cpu|"
    "operating system|machine learning|neural|classifier|training|bits?|bytes?|cache|database|internet|tcp|packet|"
    "gradient|kernel",
}
BUILTIN: Final = tuple(sorted((*_WORDS, *FALLBACKS)))
OPTION: Final = re.compile(r"^\(?([A-J])[.):]\s*(.*)$", re.MULTILINE)
_OPTIONS: Final = re.compile(r"^\(?[A-J][.):]\s", re.MULTILINE)
_PROGRAM: Final = re.compile(
    r"\bdef \w+\(|```|\bassert \w+|\b(?:write|implement|create)\b.{0,40}\b(?:function|program|code|script|query)\b",
    re.I,
)
_FORMULA: Final = re.compile(r"\\(?:frac|sqrt|cdot|begin)|\$[^$]{1,200}\$")
_NUMBER: Final = re.compile(r"\d+")
_ASKS: Final = re.compile(
    r"^\s*(?:q:|question:)?\s*(?:who|what|when|where|which|whose|whom|how|in which|in what|name|is|are|was|were|did|"
    r"does|do|can)\b",
    re.I,
)


class Taxonomy:
    """Classifies prompts. `extra`: words by domain that an operator adds, taken literally, case ignored."""

    def __init__(self, extra: Mapping[str, Sequence[str]] | None = None) -> None:
        words = dict(_WORDS)
        for name, more in (extra or {}).items():
            own = "|".join(re.escape(w) for w in more)
            words[name] = f"{words[name]}|{own}" if name in words else own
        self._patterns = {name: re.compile(rf"\b(?:{text})\b") for name, text in words.items() if text}
        self.domains = tuple(sorted({*words, *FALLBACKS}))

    def classify(self, prompt: str) -> str:
        """The domain with the most different telling words: two are needed, one where the question has options."""
        text = prompt[:LOOKED_AT]
        lower = text.lower()
        options = _OPTIONS.search(text) is not None
        votes = {name: len(set(found.findall(lower))) for name, found in self._patterns.items()}
        votes["code"] += 4 * (_PROGRAM.search(text) is not None)
        votes["math"] += 3 * (_FORMULA.search(text) is not None)
        votes["math"] += not options and len(_NUMBER.findall(text)) >= 2
        best = max(votes, key=lambda name: votes[name])
        if votes[best] >= 2 or (votes[best] == 1 and options):
            return best
        if options:
            return "commonsense"
        if _ASKS.search(text) or text.rstrip().endswith("?"):
            return "facts"
        return "writing" if len(text.split()) < _SHORT_WORDS else "general"
