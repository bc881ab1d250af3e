"""What a rule of the redaction is."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_REACH: Final = 400
"""How far behind one of its words a match is looked for, where a rule looks near its words only."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of secret or personal data, and how it is found.

    `needs`: words in small letters of which one at least stands in every text that the pattern matches; they are looked
    for first, since that is cheap. `before`: a match begins at most so many characters before one of them, so that only
    their neighbourhood is looked at; None: anywhere. `group` of the pattern is what is taken out; `length` says how
    many characters from its beginning on really are (0: none), all of it where there is no such check.
    """

    kind: str
    pattern: re.Pattern[str]
    needs: tuple[str, ...] = ()
    group: int = 0
    length: Callable[[str], int] = len
    before: int | None = None

    def spans(self, text: str, lowered: str) -> Iterator[tuple[int, int]]:
        """Begin and end of every place in a text, which is given in small letters too; some may come twice."""
        for match in self._matches(text, lowered):
            begin, end = match.span(self.group)
            length = self.length(text[begin:end]) if end > begin else 0
            if length:
                yield begin, begin + length

    def _matches(self, text: str, lowered: str) -> Iterator[re.Match[str]]:
        if self.needs and not any(word in lowered for word in self.needs):
            return iter(())
        if self.before is None or len(lowered) != len(text):  # a few letters are longer when they are small
            return self.pattern.finditer(text)
        return self._near(text, lowered, self.before)

    def _near(self, text: str, lowered: str, before: int) -> Iterator[re.Match[str]]:
        for word in self.needs:
            at = lowered.find(word)
            while at >= 0:
                found = (
                    self.pattern.search(text, max(0, at - before), at + _REACH)
                    if before
                    else self.pattern.match(text, at)
                )
                if found is not None:
                    yield found
                at = lowered.find(word, at + 1)
