"""Finds and changes top-level members of a JSON object in its raw bytes, so that every other byte stays as it was.

The bytes must have been checked by a JSON parser before: the scanner trusts them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import orjson

_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],]', re.DOTALL)
_SPACE: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Member:
    """A top-level member: where it begins (at its key's quote), where its value begins and ends."""

    key: str
    start: int
    value_start: int
    end: int


def top_level(body: bytes) -> list[Member]:
    """The members of the object in `body`, in order, duplicates included."""
    members: list[Member] = []
    depth = 0
    key: str | None = None
    key_start = value_start = -1
    for match in _TOKEN.finditer(body):
        token = body[match.start()]
        if token == 0x22:  # a string
            if depth == 1 and key is None:
                key, key_start = orjson.loads(match.group()), match.start()
                value_start = _skip_space(body, body.index(b":", match.end()) + 1)
        elif token in b"{[":
            depth += 1
        elif token == 0x2C:  # a comma
            if depth == 1 and key is not None:
                members.append(Member(key, key_start, value_start, _rstrip(body, match.start())))
                key = None
        else:
            depth -= 1
            if depth == 0 and key is not None:
                members.append(Member(key, key_start, value_start, _rstrip(body, match.start())))
    return members


@dataclass(frozen=True, slots=True)
class BodyTemplate:
    """A request body with one hole, where the name of the model goes."""

    before: bytes
    after: bytes

    def fill(self, model: str) -> bytes:
        """The body for an endpoint that calls the model so."""
        return b"%b%b%b" % (self.before, orjson.dumps(model), self.after)


def make_template(
    body: bytes, members: list[Member], *, replace: Mapping[str, bytes], add: Mapping[str, bytes], cut: frozenset[str]
) -> BodyTemplate:
    """The template of `body`: values of `replace` exchanged, members of `add` put at the end, those of `cut` taken out,
    and the hole at the value of `model` (put first if there is none)."""
    pieces: list[bytes] = []
    hole = -1
    position = 0
    kept = [m for m in members if m.key not in cut]
    for i, member in enumerate(members):
        if member.key == "model":
            pieces.append(body[position : member.value_start])
            hole = len(pieces)
            position = member.end
        elif member.key in cut:
            start, end = _cut_range(body, members, i)
            pieces.append(body[position : max(start, position)])
            position = max(end, position)
        elif member.key in replace:
            pieces += [body[position : member.value_start], replace[member.key]]
            position = member.end
    close = body.rindex(b"}")
    pieces.append(body[position:close])
    extra = b",".join(orjson.dumps(k) + b":" + v for k, v in add.items())
    if extra:
        pieces += [b"," if kept else b"", extra]
    pieces.append(body[close:])
    if hole < 0:
        opening = body.index(b"{") + 1
        pieces[0] = pieces[0][opening:]
        lead = body[:opening] + b'"model":'
        comma = b"," if kept or extra else b""
        return BodyTemplate(lead, comma + b"".join(pieces))
    return BodyTemplate(b"".join(pieces[:hole]), b"".join(pieces[hole:]))


def append_member(body: bytes, key: str, value: bytes) -> bytes:
    """The object in `body` with one more member before its last brace."""
    close = body.rindex(b"}")
    comma = b"" if _rstrip(body, close) and body[_rstrip(body, close) - 1] == 0x7B else b","
    return b'%b%b"%b":%b%b' % (body[:close], comma, key.encode(), value, body[close:])


def _cut_range(body: bytes, members: list[Member], index: int) -> tuple[int, int]:
    """What to take out with a member: it and the comma after it, or before it if it is the last."""
    member = members[index]
    if index + 1 < len(members):
        return member.start, members[index + 1].start
    if index > 0:
        return members[index - 1].end, member.end
    return member.start, member.end


def _skip_space(body: bytes, position: int) -> int:
    while body[position] in _SPACE:
        position += 1
    return position


def _rstrip(body: bytes, position: int) -> int:
    while position > 0 and body[position - 1] in _SPACE:
        position -= 1
    return position
