"""Checks that hold for every message: required fields, no NUL, no NaN, no unknown enum number.

They run on the message, never on the path, since a query parameter can override a path variable.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from hivemind.servers.common.errors import MeshError, Violation

_MAX_VIOLATIONS = 20


def check_message(message: Message) -> None:
    """Raises MISSING_FIELD or INVALID_FIELD with every violation found, the first 20 at most."""
    missing: list[Violation] = []
    invalid: list[Violation] = []
    for violation, is_missing in _violations(message, ""):
        (missing if is_missing else invalid).append(violation)
        if len(missing) + len(invalid) >= _MAX_VIOLATIONS:
            break
    if missing or invalid:
        found = tuple(missing + invalid)
        text = "; ".join(f"{v.field}: {v.description}" for v in found)
        raise MeshError("MISSING_FIELD" if missing else "INVALID_FIELD", text, violations=found)


@cache
def _required(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    required = field_behavior_pb2.FieldBehavior.REQUIRED
    behavior = field_behavior_pb2.field_behavior
    return tuple(f for f in descriptor.fields if required in f.GetOptions().Extensions[behavior])


def _violations(message: Message, prefix: str) -> Iterator[tuple[Violation, bool]]:
    present = dict(message.ListFields())
    for field in _required(message.DESCRIPTOR):
        if field not in present:
            yield Violation(prefix + field.name, "is required"), True
    for field, value in present.items():
        yield from _field_violations(field, value, prefix + field.name)


def _field_violations(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[Violation, bool]]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return  # maps of the contract stand in answers only
    items = list(enumerate(value)) if field.is_repeated else [(-1, value)]
    for index, item in items:
        here = path if index < 0 else f"{path}[{index}]"
        if isinstance(item, Message):
            yield from _violations(item, here + ".")
        else:
            description = _scalar_problem(field, item)
            if description:
                yield Violation(here, description), False


def _scalar_problem(field: FieldDescriptor, value: object) -> str:
    if isinstance(value, str) and "\x00" in value:
        return "must not contain the character NUL"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if field.enum_type is not None and value not in field.enum_type.values_by_number:
        return f"{value} is not a value of {field.enum_type.name}"
    return ""
