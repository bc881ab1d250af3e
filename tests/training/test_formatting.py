import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.training.formatting import (
    BAD_ORDER,
    NO_ANSWER,
    NO_QUESTION,
    NO_SCHEMA,
    NOT_TEXT,
    NOT_UNICODE,
    UNKNOWN_ROLE,
    Refused,
    _format_sample,
    read_turns,
)


class Brackets:
    """A chat template: [role:content] for each turn, and `[assistant:` where an answer begins."""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        text = "".join(f"[{m['role']}:{m['content']}]" for m in conversation)
        return text + "[assistant:" if add_generation_prompt else text


class Forgetful(Brackets):
    """A template that cuts all answers but the last one short."""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        last = len(conversation) - 1
        kept = [
            {"role": m["role"], "content": "..." if m["role"] == "assistant" and i != last else m["content"]}
            for i, m in enumerate(conversation)
        ]
        return super().apply_chat_template(kept, tokenize=tokenize, add_generation_prompt=add_generation_prompt)


SHAREGPT = [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"},
            {"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}]  # fmt: skip
OPENAI = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"input": "q", "output": "a"}, "[user:q][assistant:a]"),
        ({"instruction": "q", "response": "a"}, "[user:q][assistant:a]"),
        ({"instruction": "q", "input": "x", "output": "a"}, "[user:q\n\nx][assistant:a]"),
        ({"instruction": "q", "input": "", "output": "a"}, "[user:q][assistant:a]"),
        ({"system_prompt": "s", "question": "q", "answer": "a"}, "[system:s][user:q][assistant:a]"),
        ({"conversations": SHAREGPT}, "[user:q1][assistant:a1][user:q2][assistant:a2]"),
        ({"messages": OPENAI}, "[system:s][user:q][assistant:a]"),
        ({"conversations": OPENAI[1:], "system": "t"}, "[system:t][user:q][assistant:a]"),
        ({"messages": [*OPENAI, {"role": "user", "content": "more"}]}, "[system:s][user:q][assistant:a]"),
    ],
)
def test_each_schema_becomes_one_text(record: dict[str, Any], text: str) -> None:
    assert _format_sample(record, Brackets()).text == text


def test_every_answer_of_a_conversation_is_learnt_and_nothing_else() -> None:
    sample = _format_sample({"conversations": SHAREGPT}, Brackets())
    assert [sample.text[a:b] for a, b in sample.answers] == ["a1]", "a2]"]
    assert (sample.prompt, sample.completion) == ("[user:q1][assistant:a1][user:q2][assistant:", "a2]")


def test_a_turn_of_weight_0_is_read_and_not_learnt() -> None:
    turns = [SHAREGPT[0], {**SHAREGPT[1], "weight": 0}, *SHAREGPT[2:]]
    sample = _format_sample({"conversations": turns}, Brackets())
    assert [sample.text[a:b] for a, b in sample.answers] == ["a2]"]


def test_of_a_template_that_rewrites_earlier_turns_only_the_last_answer_is_learnt() -> None:
    sample = _format_sample({"conversations": SHAREGPT}, Forgetful())
    assert [sample.text[a:b] for a, b in sample.answers] == ["a2]"]


def test_tools_and_their_calls_are_told_in_words() -> None:
    call = {"function": {"name": "sum", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "It is 1."},
    ]
    read = read_turns({"messages": turns, "tools": [{"name": "sum"}]})
    assert [t.role for t in read] == ["system", "user", "assistant", "tool", "assistant"]
    assert '{"name": "sum"}' in read[0].content
    assert read[2].content == '<tool_call>\n{"name": "sum", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, NO_SCHEMA),
        ({"text": "only text"}, NO_SCHEMA),
        ({"messages": []}, NO_SCHEMA),
        ({"instruction": "q"}, NO_SCHEMA),
        ({"instruction": 7, "output": "a"}, NOT_TEXT),
        ({"messages": "hello"}, NOT_TEXT),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, NOT_TEXT),
        ({"instruction": "q", "output": " "}, NO_ANSWER),
        ({"messages": OPENAI[:2]}, NO_ANSWER),
        ({"input": "", "output": "a"}, NO_QUESTION),
        ({"messages": [{"role": "wizard", "content": "x"}]}, UNKNOWN_ROLE),
        ({"conversations": SHAREGPT[1:]}, BAD_ORDER),
        ({"messages": [OPENAI[1], OPENAI[1], OPENAI[2]]}, BAD_ORDER),
        ({"input": "\ud800", "output": "a"}, NOT_UNICODE),
    ],
)
def test_a_record_that_fits_no_schema_is_refused_with_the_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=f"^{reason}$"):
        read_turns(record)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "name"]), inner, max_size=2),
    max_leaves=5,
)
_FIELDS = ("messages", "conversations", "instruction", "input", "output", "response", "system", "tools", "from",
           "value", "role", "content", "tool_calls", "weight")  # fmt: skip
_RECORD = st.dictionaries(
    st.sampled_from(_FIELDS),
    _JSON | st.lists(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=3), max_size=4),
    max_size=4,
)


@given(_RECORD)
def test_any_json_object_is_read_or_refused_and_never_crashes(record: dict[str, Any]) -> None:
    try:
        sample = _format_sample(record, Brackets())
    except Refused:
        return
    assert sample.answers
    assert json.dumps(sample.text)


def test_the_couriers_own_template_gives_answers_that_end_with_its_end_of_turn(tokenizer: Any) -> None:
    sample = _format_sample({"conversations": SHAREGPT}, tokenizer)
    assert [sample.text[a:b] for a, b in sample.answers] == ["a1<|im_end|>", "a2<|im_end|>"]
