"""Takes secrets and personal data out of texts before they are stored, queued or learnt from.

What is found is replaced by its kind, as in `[EMAIL]`. The same value gets the same placeholder, another one of its
kind the next number (`[EMAIL_2]`), so that a text stays readable, and a model that learns from it learns the relation.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from hivemind.servers.common.credentials import secret_rules
from hivemind.servers.common.personal_data import personal_data_rules
from hivemind.servers.common.redaction_rule import Rule

_PLACEHOLDER: Final = re.compile(r"\[([A-Z][A-Z_]*[A-Z])(?:_(\d{1,6}))?\]")


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text without what was found in it; `count` places were replaced."""

    text: str
    count: int


def redact(text: str) -> Redacted:
    """The text without secrets and personal data. Redacting it again changes nothing."""
    (redacted,), count = redact_all((text,))
    return Redacted(redacted, count)


def has_placeholder(text: str) -> bool:
    """Whether something may have been taken out of a text."""
    return _PLACEHOLDER.search(text) is not None


def redact_all(texts: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Texts that belong together, as the turns of a conversation, redacted under one numbering; and how many places."""
    rules = [_rules_for(text) for text in texts]
    if not any(rules):
        return tuple(texts), 0
    names = _Names()
    for text in texts:
        names.keep_off(text)
    done = [_redacted(text, r, names) if r else Redacted(text, 0) for text, r in zip(texts, rules, strict=True)]
    return tuple(d.text for d in done), sum(d.count for d in done)


@dataclass(slots=True)
class _Names:
    """Placeholders given so far, by value, and the highest number of each kind."""

    given: dict[tuple[str, str], str] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)

    def keep_off(self, text: str) -> None:
        """Has numbering begin after the placeholders that stand in a text already."""
        for kind, number in _PLACEHOLDER.findall(text):
            self.highest[kind] = max(self.highest.get(kind, 0), int(number or 1))

    def of(self, kind: str, value: str) -> str:
        """The placeholder of a value."""
        name = self.given.get((kind, value))
        if name is None:
            number = self.highest[kind] = self.highest.get(kind, 0) + 1
            name = self.given[(kind, value)] = f"[{kind}]" if number == 1 else f"[{kind}_{number}]"
        return name


@dataclass(frozen=True, slots=True)
class _Find:
    begin: int
    end: int
    kind: str


def _rules_for(text: str) -> tuple[Rule, ...]:
    data = text.encode(errors="replace")
    return (*personal_data_rules(data), *secret_rules(data))


def _redacted(text: str, rules: Sequence[Rule], names: _Names) -> Redacted:
    """Looks again until nothing is found: what was taken out may have hidden the border of something else."""
    count = 0
    while finds := _merged(sorted(_finds(text, rules), key=lambda f: (f.begin, -f.end))):
        parts: list[str] = []
        at = 0
        for find in finds:
            parts += (text[at : find.begin], names.of(find.kind, text[find.begin : find.end]))
            at = find.end
        text = "".join((*parts, text[at:]))
        count += len(finds)
    return Redacted(text, count)


def _finds(text: str, rules: Sequence[Rule]) -> Iterator[_Find]:
    lowered = text.lower()
    for rule in rules:
        for begin, end in rule.spans(text, lowered):
            if not _PLACEHOLDER.fullmatch(text, begin, end):
                yield _Find(begin, end, rule.kind)


def _merged(finds: Sequence[_Find]) -> list[_Find]:
    """Overlapping finds as one, under the kind of the longest."""
    merged: list[_Find] = []
    for find in finds:
        last = merged[-1] if merged else None
        if last is None or find.begin >= last.end:
            merged.append(find)
        elif find.end > last.end:
            longest = max(last, find, key=lambda f: f.end - f.begin)
            merged[-1] = _Find(last.begin, find.end, longest.kind)
    return merged
