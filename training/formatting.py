"""Turns records of known schemas into one chat-templated text. A record that fits none is refused with the reason.

| schema | fields |
| --- | --- |
| OpenAI | `messages` (or `conversations`): turns of `role` and `content`, with `tool_calls` |
| ShareGPT | `conversations` (or `messages`): turns of `from` and `value` |
| pairs | the pairs of PAIRS, such as `instruction` (+ `input`) and `output` |

A `system` or `system_prompt` beside a pair or a conversation without a system turn is its system turn; `tools` are told
of there. A turn with `weight` 0 is read but not learnt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

Record = Mapping[str, Any]

PAIRS: Final = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
"""Question and answer by field name; the first pair that a record has is taken."""
_ROLES: Final = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool",
}  # fmt: skip

NO_SCHEMA: Final = "fits no known schema"
NOT_TEXT: Final = "a field is not text"
NO_ANSWER: Final = "has no answer"
NO_QUESTION: Final = "has no question"
UNKNOWN_ROLE: Final = "a turn has an unknown role"
BAD_ORDER: Final = "turns are out of order"
NOT_UNICODE: Final = "holds text that is not Unicode"


class Refused(ValueError):
    """A record that is not learnt from; the text is one of the reasons of this module."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn; `learn`: whether an answer's tokens count in the loss."""

    role: str
    content: str
    learn: bool = True


@dataclass(frozen=True, slots=True)
class Formatted:
    """A sample as the model sees it. `answers`: the stretches of `text` to learn, in characters, in order."""

    text: str
    answers: tuple[tuple[int, int], ...]

    @property
    def prompt(self) -> str:
        """What comes before the last answer."""
        return self.text[: self.answers[-1][0]]

    @property
    def completion(self) -> str:
        """The last answer with what ends it."""
        return self.text[slice(*self.answers[-1])]


class ChatTemplate(Protocol):
    """What a tokenizer of transformers can do with turns."""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """The text of turns."""


def _format_sample(record: Record, template: ChatTemplate) -> Formatted:
    """One text of a record by the model's chat template; Refused with the reason for a record that fits no schema."""
    return format_turns(read_turns(record), template)


def read_turns(record: Record) -> tuple[Turn, ...]:
    """The turns of a record, ending with an answer. Refused for what cannot be read as a conversation."""
    turns = _conversation(record) or _pair(record)
    if not turns:
        raise Refused(NO_SCHEMA)
    turns = _with_system(turns, record)
    _check_order(turns)
    while turns and turns[-1].role != "assistant":
        turns = turns[:-1]
    if not any(t.role == "assistant" and t.learn for t in turns):
        raise Refused(NO_ANSWER)
    try:
        "".join(t.content for t in turns).encode()
    except UnicodeEncodeError as error:
        raise Refused(NOT_UNICODE) from error
    return turns


def format_turns(turns: Sequence[Turn], template: ChatTemplate) -> Formatted:
    """The text of turns and where its answers are.

    An answer begins where the template would begin to generate and ends where the next turn begins, if the text up to
    there is a prefix of the whole. Of a template that rewrites earlier turns only the last answer is learnt.
    """
    text = _render(turns, template, ask=False)
    answers = []
    for i, turn in enumerate(turns):
        if turn.role != "assistant" or not turn.learn:
            continue
        before = _render(turns[:i], template, ask=True)
        through = _render(turns[: i + 1], template, ask=False)
        if text.startswith(before) and text.startswith(through):
            answers.append((len(before), len(through.rstrip("\n"))))  # what ends the turn is learnt, not the line's end
    if not answers:
        raise Refused("the chat template does not show where its answers begin")
    return Formatted(text, tuple(answers))


def _render(turns: Sequence[Turn], template: ChatTemplate, *, ask: bool) -> str:
    messages = [{"role": t.role, "content": t.content} for t in turns]
    return str(template.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))


def _conversation(record: Record) -> tuple[Turn, ...]:
    items = next((record[k] for k in ("messages", "conversations") if record.get(k)), None)
    if items is None:
        return ()
    if not isinstance(items, list) or not all(isinstance(i, Mapping) for i in items):
        raise Refused(NOT_TEXT)
    return tuple(_turn(i) for i in items)


def _turn(item: Mapping[str, Any]) -> Turn:
    name = item.get("role", item.get("from"))
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Refused(UNKNOWN_ROLE)
    content = _text_of(item["content"] if "content" in item else item.get("value"))
    calls = item.get("tool_calls")
    if isinstance(calls, list):
        content = "\n".join([content, *map(_call, calls)]).strip()
    weight = item.get("weight")
    return Turn(role, content, learn=not (isinstance(weight, int | float) and weight == 0))


def _text_of(content: object) -> str:
    """A text, the texts of OpenAI's content parts, or nothing. Refused for pictures and other things."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "".join(p["text"] for p in content)
    raise Refused(NOT_TEXT)


def _call(call: object) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refused(NOT_TEXT)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise Refused(NOT_TEXT) from error
    body = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _pair(record: Record) -> tuple[Turn, ...]:
    for question, answer in PAIRS:
        if question in record and answer in record:
            asked, said = _required(record, question), _required(record, answer)
            more = record.get("input") if question == "instruction" else None
            if more is not None and not isinstance(more, str):
                raise Refused(NOT_TEXT)
            return Turn("user", f"{asked}\n\n{more}" if more and more.strip() else asked), Turn("assistant", said)
    return ()


def _required(record: Record, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise Refused(NOT_TEXT)
    return value


def _with_system(turns: tuple[Turn, ...], record: Record) -> tuple[Turn, ...]:
    system = record.get("system") or record.get("system_prompt") or ""
    if not isinstance(system, str):
        raise Refused(NOT_TEXT)
    if turns[0].role == "system":
        system, turns = turns[0].content or system, turns[1:]
    tools = record.get("tools")
    if (isinstance(tools, str) and tools.strip()) or (isinstance(tools, list) and tools):
        listed = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        system = f"{system}\n\nTools:\n{listed}".strip()
    return (Turn("system", system), *turns) if system.strip() else turns


def _check_order(turns: Sequence[Turn]) -> None:
    """A question, then answers and questions in turn; tools answer an answer, which may be followed by an answer."""
    before = ""
    for turn in turns:
        allowed = {
            "": ("system", "user"), "system": ("user",), "user": ("assistant",),
            "assistant": ("user", "tool"), "tool": ("tool", "assistant"),
        }  # fmt: skip
        if turn.role not in allowed[before]:
            raise Refused(BAD_ORDER)
        if turn.role == "user" and not turn.content.strip():
            raise Refused(NO_QUESTION)
        if turn.role == "assistant" and not turn.content.strip():
            raise Refused(NO_ANSWER)
        before = turn.role
