"""Server-sent events of a chat completion: splitting them out of a byte stream, knowing whether the answer is whole.

The bytes of every event are kept as they came. See the HTML standard, section 9.2, for the format.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

_END_OF_EVENT: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
MAX_EVENT_BYTES: Final = 1 << 20
TEXT_BYTES_KEPT: Final = 1 << 18
DONE: Final = b"[DONE]"


class BrokenStream(Exception):
    """The stream cannot be passed on as a whole answer; the text says why."""


class EventSplitter:
    """Cuts a byte stream into events; holds at most one unfinished event of 1 MiB."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events that are whole now, each with its closing blank line. Raises BrokenStream if one is too big."""
        data = self._rest + chunk if self._rest else chunk
        start = 0
        for match in _END_OF_EVENT.finditer(data):
            yield data[start : match.end()]
            start = match.end()
        self._rest = data[start:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BrokenStream(f"an event of the model server is larger than {MAX_EVENT_BYTES} bytes")

    @property
    def rest(self) -> bytes:
        """What came after the last whole event."""
        return self._rest


@dataclass(slots=True)
class ChatStream:
    """What is known of a streamed chat completion so far."""

    done: bool = False
    model: str = ""
    completion_id: str = ""
    created: int = 0
    usage: dict[str, Any] | None = None
    text_bytes: int = 0
    finish_reason: str = ""
    texts: list[str] = field(default_factory=list)
    """What the first choice said, piece by piece; whole only up to TEXT_BYTES_KEPT."""
    _open: set[int] = field(default_factory=set)
    _finished: set[int] = field(default_factory=set)

    def take(self, event: bytes) -> dict[str, Any] | None:
        """Reads one event and answers its JSON object, None for `[DONE]`, comments and other events without data.

        Raises BrokenStream for JSON that cannot be read and for an error in band.
        """
        payload = _data_of(event)
        if not payload:
            return None
        if payload == DONE:
            self.done = True
            return None
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise BrokenStream("the model server sent an event that is not JSON") from error
        if not isinstance(chunk, dict):
            raise BrokenStream("the model server sent an event that is not a JSON object")
        if chunk.get("error"):
            raise BrokenStream(f"the model server reported an error in mid-stream: {error_text(chunk)}")
        self._note(chunk)
        return chunk

    @property
    def whole(self) -> bool:
        """Whether the answer is complete: `[DONE]` came, and every choice that began has a finish_reason."""
        return self.done and bool(self._finished) and self._open <= self._finished

    def why_broken(self) -> str:
        """One sentence for a stream that ended and is not whole."""
        if not self.done:
            return "the model server ended the stream early, without [DONE]"
        return "the model server ended the stream without a finish_reason"

    def _note(self, chunk: dict[str, Any]) -> None:
        if not self.model:
            self.model = text_of(chunk.get("model"))
            self.completion_id = text_of(chunk.get("id"))
            created = chunk.get("created")
            self.created = created if isinstance(created, int) else 0
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._note_choice(choice)

    def _note_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        index = index if isinstance(index, int) else 0
        self._open.add(index)
        delta = choice.get("delta")
        content = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(content, str):
            if index == 0 and self.text_bytes < TEXT_BYTES_KEPT:
                self.texts.append(content)
            self.text_bytes += len(content)
        elif isinstance(delta, dict) and delta.get("tool_calls"):
            self.text_bytes += len(str(delta["tool_calls"])) // 2
        reason = choice.get("finish_reason")
        if reason:
            self._finished.add(index)
            self.finish_reason = str(reason)


def delta_text(chunk: dict[str, Any]) -> str:
    """The text that a chunk adds to the first choice."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    delta = choices[0].get("delta")
    return text_of(delta.get("content")) if isinstance(delta, dict) else ""


def first_text(answer: Mapping[str, Any]) -> str:
    """The text of the first choice of a whole answer."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    return text_of(message.get("content")) if isinstance(message, dict) else ""


def is_usage_only(chunk: dict[str, Any]) -> bool:
    """Whether a chunk is the one that `stream_options.include_usage` adds."""
    return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


def error_text(body: dict[str, Any]) -> str:
    """The message of an error body in OpenAI's shape, at most 200 characters."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:200]


def text_of(value: object) -> str:
    """The value if it is a text, else an empty one."""
    return value if isinstance(value, str) else ""


def _data_of(event: bytes) -> bytes:
    if event.startswith(b"data:") and b"\n" not in event[:-2].rstrip(b"\r\n"):
        return event[5:].strip()
    lines = event.splitlines()
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
