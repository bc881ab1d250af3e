"""When an answer is good enough to be learnt from, as far as that can be seen without asking a model. Pure."""

import re
from dataclasses import dataclass
from typing import Final

from hivemind.servers.arbiter.language import foreign_to
from hivemind.servers.arbiter.verdict import Verdict

_REFUSAL: Final = re.compile(
    r"\s*(?:(?:i['’]?m|i am|we['’]?re|we are) (?:very |so |really )?(?:sorry|afraid)\b"
    r"|(?:sorry|unfortunately|apologies),? (?:but )?i\b"
    r"|i (?:can['’]?t|can ?not|am (?:unable|not able)|won['’]?t|must (?:decline|refuse)|apologi[sz]e)\b"
    r"|as an ai\b)"
    r"[^\n]{0,160}",
    re.IGNORECASE,
)
_HELP: Final = re.compile(
    r"\b(?:assist|help|comply|fulfil|provide|answer|continue|discuss|do that|that request|this request|with that)",
    re.IGNORECASE,
)
_ROOM_CHARS: Final = 4_000
_TIMES_AS_LONG: Final = 8


@dataclass(frozen=True, slots=True)
class Rule:
    """What a verdict is measured by: the least score, in [0,1]."""

    least_score: float = 0.7

    def objection(self, verdict: Verdict, *, draft: str, conversation: str, boundary: str) -> str:
        """Why the answer is not acceptable, as the end of a sentence; empty if nothing speaks against it."""
        if verdict.score < self.least_score:
            return f"its score {verdict.score:.2f} is under {self.least_score:.2f}"
        if verdict.safety.strip().lower().startswith("unsafe"):
            return "it is called unsafe"
        if boundary in verdict.answer:
            return "it repeats the marks around the data"
        if is_refusal(verdict.answer):
            return "it is a refusal"
        if len(verdict.answer) > _ROOM_CHARS + _TIMES_AS_LONG * len(draft):
            return f"it is {len(verdict.answer)} characters long where the draft has {len(draft)}"
        language = foreign_to(verdict.answer, f"{conversation}\n\n{draft}")
        return f"it is in {language}, and the conversation is not" if language else ""


def is_refusal(answer: str) -> bool:
    """Whether an answer begins as those do that refuse."""
    begin = _REFUSAL.match(answer)
    return begin is not None and _HELP.search(begin.group()) is not None
