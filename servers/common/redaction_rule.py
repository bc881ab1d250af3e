"""What a rule of the redaction is."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of secret or personal data, and how it is found.

    `needs`: words in small letters of which one at least stands in every text that the pattern matches; they are looked
    for first, since that is cheap. `group` of the pattern is what is taken out; `length` says how many characters from
    its beginning on really are (0: none), all of it where there is no such check.
    """

    kind: str
    pattern: re.Pattern[str]
    needs: tuple[str, ...] = ()
    group: int = 0
    length: Callable[[str], int] = len

    def applies(self, lowered: str) -> bool:
        """Whether a text, given in small letters, may hold what the rule looks for."""
        return not self.needs or any(word in lowered for word in self.needs)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of every place in a text."""
        for match in self.pattern.finditer(text):
            begin, end = match.span(self.group)
            length = self.length(text[begin:end]) if end > begin else 0
            if length:
                yield begin, begin + length
