"""Changes to the raw bytes of a JSON object: what is asked for and nothing else."""

import json
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.router.json_splice import append_member, make_template, top_level

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=6)
STYLES = st.sampled_from(
    [{"separators": (",", ":")}, {"indent": 2}, {"separators": (" , ", " : ")}, {"ensure_ascii": False}]
)


def body_of(data: dict[str, Any], style: dict[str, Any]) -> bytes:
    return json.dumps(data, **style).encode("utf-8", "surrogatepass")


@given(OBJECTS, STYLES)
def test_top_level_finds_every_member_with_its_value(data: dict[str, Any], style: dict[str, Any]) -> None:
    body = body_of(data, style)

    members = top_level(body)

    assert [m.key for m in members] == list(data)
    assert [json.loads(body[m.value_start : m.end]) for m in members] == list(data.values())


@given(OBJECTS, STYLES, st.text(max_size=5), st.booleans(), st.booleans())
def test_a_template_changes_what_it_should_and_nothing_else(
    data: dict[str, Any], style: dict[str, Any], model: str, has_model: bool, cut: bool
) -> None:
    data = {k: v for k, v in data.items() if k not in ("model", "hivemind", "cap")}
    if has_model:
        data = {"model": "auto", **data}
    if cut:
        data = {**data, "hivemind": {"a": [1, "}"]}}
    body = body_of(data, style)

    template = make_template(body, top_level(body), replace={}, add={"cap": b"5"}, cut=frozenset({"hivemind"}))
    filled = json.loads(template.fill(model))

    expected = {k: v for k, v in data.items() if k != "hivemind"} | {"model": model, "cap": 5}
    assert filled == expected
    assert [k for k in filled if k in data] == [k for k in data if k != "hivemind"]


@given(OBJECTS, STYLES)
def test_append_member_keeps_every_byte_before_it(data: dict[str, Any], style: dict[str, Any]) -> None:
    data.pop("hivemind", None)
    body = body_of(data, style)

    longer = append_member(body, "hivemind", b'{"x":1}')

    assert longer.startswith(body.rstrip()[:-1])
    assert json.loads(longer) == data | {"hivemind": {"x": 1}}


def test_a_replaced_value_keeps_its_place() -> None:
    body = b'{"a": 1, "stream_options": {} , "model": "auto"}'

    template = make_template(body, top_level(body), replace={"stream_options": b"9"}, add={}, cut=frozenset())

    assert template.fill("m") == b'{"a": 1, "stream_options": 9 , "model": "m"}'


def test_duplicates_are_reported_as_they_stand() -> None:
    body = b'{"model":"a","model":"b"}'

    assert [m.key for m in top_level(body)] == ["model", "model"]
    assert len(orjson.loads(body)) == 1
