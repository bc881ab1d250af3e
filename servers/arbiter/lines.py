"""How the ledger's lines look: one JSON object each, chained by SHA-256. Pure. See docs/ledger.md.

A line ends with `,"sha256":"<64 hexadecimal digits>"}` and a newline. The hash is over the bytes of the line before
that end; `prev_sha256`, the hash of the line before, stands among them, so that each line carries all before it.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from hivemind.servers.arbiter.example import REFINERS, ROLE, Example, NewExample, Provenance
from hivemind.servers.common.turn import Turn

SCHEMA: Final = 1
GENESIS: Final = "0" * 64
"""What the first line carries on."""
TOMBSTONE: Final = "tombstone"
"""The role of a line that names examples to forget."""
FORGOTTEN: Final = "forgotten"
"""The role of what is left of a forgotten example: its place, its id and its hashes."""
TOMBSTONE_MAX: Final = 500
"""How many examples one tombstone names at most."""

_HASH_AT: Final = -(64 + len('"}'))
_BODY_END: Final = _HASH_AT - len(',"sha256":"')
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SHA: Final = re.compile(r"[0-9a-f]{64}")
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_BLANK: Final[dict[str, Any]] = {
    "request_id": "", "tenant": "", "domain": "", "refined_by": "", "confidence": 0.0, "messages": [], "draft": "",
    "final_platinum_answer": "",
    "provenance": {
        "draft_model": "", "draft_adapter": "", "oracle_model": "", "arbiter_model": "", "prompt_template_sha256": "",
        "score": 0.0, "draft_score": 0.0, "decisions": [], "changes": "", "cost_micros": 0, "latency_s": 0.0,
        "safety": "", "redactions": 0,
    },
    "licence": "", "consent": "", "origin": "", "idempotency_key": "", "fingerprint": "", "forgets": "",
    "forgets_sha256": "", "reason": "",
}  # fmt: skip


class BadLine(ValueError):
    """A line that the ledger did not write, or that was changed since; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Names examples that are forgotten, by id and by the hash of their lines."""

    id: str
    sequence: int
    sha256: str
    prev_sha256: str
    ids: tuple[str, ...]
    hashes: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Stub:
    """What is left of a forgotten example. Its hash is the one of the line that stood there."""

    id: str
    sequence: int
    sha256: str
    prev_sha256: str


class Place(NamedTuple):  # each line needs one, and a tuple is made in half the time
    """What the ledger gives a line. `high` are the upper 64 bits of its id."""

    id: str
    high: int
    sequence: int
    prev_sha256: str

    @property
    def created_ms(self) -> int:
        """Unix milliseconds."""
        return self.high >> 16


def id_high(text: str) -> int:
    """The upper 64 bits of a UUIDv7: milliseconds, version and counter. They grow strictly along the ledger."""
    return int(text[:8] + text[9:13] + text[14:18], 16)


def next_id(now_ms: int, last_high: int, random_62: int) -> tuple[str, int]:
    """A UUIDv7 above all before it, and its upper half. RFC 9562, 6.2, method 1: 12 bits after the time count."""
    high = now_ms << 16 | 0x7000
    if high <= last_high:
        counter = (last_high & 0xFFF) + 1
        ms = (last_high >> 16) + (counter >> 12)
        high = ms << 16 | 0x7000 | counter & 0xFFF
    digits = f"{high << 64 | 0x2 << 62 | random_62:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}", high


def is_line_id(text: str) -> bool:
    """Whether a text has the form of the ids that the ledger gives."""
    return bool(_ID.fullmatch(text))


def example_line(place: Place, new: NewExample) -> tuple[bytes, str]:
    """The line of an example and its hash; ValueError where a number is not finite."""
    p = new.provenance
    if not all(map(math.isfinite, (new.confidence, p.score, p.draft_score, p.latency_s))):
        raise ValueError("a number of the example is not finite")
    head = (
        f'{{"id":"{place.id}","sequence":{place.sequence},"schema":{SCHEMA},"role":"{ROLE}",'
        f'"create_time":"{_time(place.created_ms)}",'
    )
    tail = f',"forgets":"","forgets_sha256":"","reason":"","prev_sha256":"{place.prev_sha256}"'
    return _sealed(b"".join((head.encode(), orjson.dumps(new)[1:-1], tail.encode())))


def tombstone_line(place: Place, forgotten: Sequence[tuple[str, str]], reason: str) -> tuple[bytes, str]:
    """The line that forgets examples, given by id and hash, and its hash."""
    head = {"id": place.id, "sequence": place.sequence, "schema": SCHEMA, "role": TOMBSTONE}
    names = {"forgets": " ".join(i for i, _ in forgotten), "forgets_sha256": " ".join(h for _, h in forgotten)}
    fields = {
        **head, "create_time": _time(place.created_ms), **_BLANK, **names, "reason": reason,
        "prev_sha256": place.prev_sha256,
    }  # fmt: skip
    return _sealed(orjson.dumps(fields)[:-1])


def stub_line(example: Example, prev_sha256: str) -> bytes:
    """What stays of a forgotten example's line."""
    head = {"id": example.id, "sequence": example.sequence, "schema": SCHEMA, "role": FORGOTTEN}
    fields = {**head, "create_time": _time(round(example.created * 1000)), **_BLANK, "prev_sha256": prev_sha256}
    return orjson.dumps({**fields, "sha256": example.sha256}) + b"\n"


def placed(place: Place, sha256: str, new: NewExample) -> Example:
    """The example that a line holds."""
    return Example(place.id, place.sequence, place.created_ms / 1000, sha256, new)


def parse(line: bytes) -> tuple[Example | Tombstone | Stub, str]:
    """What a line holds (without its newline), and the hash that it carries on; BadLine if it was not written so."""
    fields = read_fields(line)
    try:
        name, sequence, sha256, before = fields["id"], fields["sequence"], fields["sha256"], fields["prev_sha256"]
        if fields["role"] == ROLE:
            created = datetime.fromisoformat(fields["create_time"]).timestamp()
            return Example(name, sequence, created, sha256, _new(fields)), before
        if fields["role"] == TOMBSTONE:
            names, hashes = fields["forgets"].split(" "), fields["forgets_sha256"].split(" ")
            found = Tombstone(name, sequence, sha256, before, tuple(names), tuple(hashes), fields["reason"])
            return found, before
        return Stub(name, sequence, sha256, before), before
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadLine(f"is not a line of this schema ({type(error).__name__})") from error


def read_fields(line: bytes) -> dict[str, Any]:
    """The JSON of a line whose own hash holds (a stub's cannot, so its form is checked); else BadLine."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadLine("is not JSON") from error
    if not isinstance(fields, dict) or not line.startswith(b'{"id":"'):
        raise BadLine("is not an object that begins with its id")
    if fields.get("schema") != SCHEMA:
        raise BadLine(f"has the schema {fields.get('schema')!r}; this version reads {SCHEMA}")
    if fields.get("role") == FORGOTTEN:
        _check_stub(fields)
    elif fields.get("role") not in (ROLE, TOMBSTONE):
        raise BadLine(f"has the unknown role {fields.get('role')!r}")
    elif hashlib.sha256(line[:_BODY_END]).hexdigest().encode() != line[_HASH_AT:-2]:
        raise BadLine("was changed: its hash is another one")
    return fields


def _check_stub(fields: dict[str, Any]) -> None:
    head = (fields.get("id"), fields.get("sha256"), fields.get("prev_sha256"), fields.get("create_time"))
    shaped = all(isinstance(f, str) for f in head) and type(fields.get("sequence")) is int
    if not shaped or not is_line_id(str(head[0])) or not all(_SHA.fullmatch(str(h)) for h in head[1:3]):
        raise BadLine("is a stub without id, sequence or hashes")
    if {k: fields.get(k) for k in _BLANK} != _BLANK or len(fields) != len(_BLANK) + 7:
        raise BadLine("is a stub that holds a text")


def _new(fields: dict[str, Any]) -> NewExample:
    provenance = fields["provenance"]
    if fields["refined_by"] not in REFINERS:
        raise ValueError(fields["refined_by"])
    return NewExample(
        messages=tuple(Turn(m["role"], m["content"], m["name"]) for m in fields["messages"]),
        draft=fields["draft"],
        final_platinum_answer=fields["final_platinum_answer"],
        refined_by=fields["refined_by"],
        provenance=Provenance(**{**provenance, "decisions": tuple(provenance["decisions"])}),
        tenant=fields["tenant"],
        domain=fields["domain"],
        confidence=fields["confidence"],
        licence=fields["licence"],
        consent=fields["consent"],
        origin=fields["origin"],
        request_id=fields["request_id"],
        idempotency_key=fields["idempotency_key"],
        fingerprint=fields["fingerprint"],
    )


def _sealed(body: bytes) -> tuple[bytes, str]:
    sha256 = hashlib.sha256(body).hexdigest()
    return b'%b,"sha256":"%b"}\n' % (body, sha256.encode()), sha256


@lru_cache(maxsize=4)  # a batch shares its time
def _time(ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
