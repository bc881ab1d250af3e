"""LoRAX's request and answer, and llama.cpp's of /completion, turned into each other. Pure.

The shapes are those of LoRAX 0.12 (https://github.com/predibase/lorax, docs/reference/rest_api.md). What llama.cpp
cannot do is refused and never passed over.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hivemind.servers.engine.engine import MAX_TOKENS
from hivemind.servers.engine.errors import EngineError

_FINISH: Final = {"limit": "length", "eos": "eos_token", "word": "stop_sequence"}
_FIELDS: Final = ["content", "completion_probabilities", "stop_type", "tokens_predicted", "tokens_evaluated", "timings"]

_Positive = Annotated[int, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, lt=1)]


class _ResponseFormat(BaseModel):
    type: Literal["json_object"]
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="ignore")

    adapter_id: str | None = None
    adapter_source: Literal["local"] | None = None
    do_sample: bool = False
    max_new_tokens: _Positive | None = None
    ignore_eos_token: bool = False
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    return_full_text: bool | None = False
    stop: list[str] = []
    seed: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: _Positive | None = None
    top_p: _Share | None = None
    typical_p: _Share | None = None
    details: bool = False
    return_k_alternatives: Annotated[int, Field(gt=0, le=100)] | None = None
    response_format: _ResponseFormat | None = None
    merged_adapters: None = None
    best_of: Literal[1] | None = None
    truncate: None = None
    watermark: Literal[False] = False
    decoder_input_details: Literal[False] = False

    @field_validator("merged_adapters", "truncate", mode="before")
    @classmethod
    def _not_here(cls, value: object) -> object:
        if value is not None:
            raise ValueError("is not supported by this server")
        return value


class _Request(BaseModel):
    inputs: Annotated[str, Field(min_length=1)]
    parameters: _Parameters = _Parameters()
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("parameters", {}) is None:
            return {k: v for k, v in value.items() if k != "parameters"}
        return value


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request to /generate. `body` is what llama.cpp's /completion is sent, without `stream` and `lora`."""

    adapter_id: str | None
    stream: bool
    body: dict[str, Any]
    details: bool
    seed: int | None
    prefix: str
    alternatives: bool


def read_generate_request(raw: bytes) -> GenerateRequest:
    """Reads a body of /generate; EngineError validation names the field that is wrong."""
    try:
        request = _Request.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EngineError("validation", f"`{where}`: {first['msg'].removeprefix('Value error, ')}") from error
    asked = request.parameters
    return GenerateRequest(
        adapter_id=asked.adapter_id or None,
        stream=request.stream,
        body=_body(request.inputs, asked),
        details=asked.details,
        seed=asked.seed,
        prefix=request.inputs if asked.return_full_text else "",
        alternatives=asked.return_k_alternatives is not None,
    )


def _body(prompt: str, asked: _Parameters) -> dict[str, Any]:
    sampling = asked.do_sample or any(
        v is not None for v in (asked.temperature, asked.top_k, asked.top_p, asked.typical_p)
    )
    temperature = 1.0 if asked.temperature is None else asked.temperature
    wanted = {
        "temperature": temperature if sampling else 0.0,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "typical_p": asked.typical_p,
        "seed": asked.seed,
        "repeat_penalty": asked.repetition_penalty,
        "json_schema": (asked.response_format.json_schema or {}) if asked.response_format else None,
    }
    return {
        "prompt": prompt,
        "n_predict": asked.max_new_tokens or MAX_TOKENS,
        "n_probs": asked.return_k_alternatives or 1,
        "ignore_eos": asked.ignore_eos_token,
        "stop": asked.stop,
        "response_fields": _FIELDS,
        **{key: value for key, value in wanted.items() if value is not None},
    }


def whole_answer(request: GenerateRequest, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of /generate, from llama.cpp's."""
    told: dict[str, Any] = {"generated_text": request.prefix + answer["content"]}
    if request.details:
        tokens = [_token(request, t) for t in answer.get("completion_probabilities", [])]
        told["details"] = {**_details(request, answer), "prefill": [], "tokens": tokens}
    return told


@dataclass(slots=True)
class GenerateStream:
    """Turns llama.cpp's events into those of /generate_stream.

    LoRAX's last event carries the last token and the whole text; llama.cpp tells the end apart, so each token waits for
    the next event.
    """

    request: GenerateRequest
    whole: bool = False
    _text: str = ""
    _waiting: dict[str, Any] | None = field(default=None)

    def take(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The event to send for one of llama.cpp's, None if there is none yet."""
        if "stop_type" in event:
            return self._last(event)
        ready = self._waiting
        self._text += event["content"]
        tokens = event.get("completion_probabilities", [])
        if tokens:
            # a character of several tokens comes with the last of them
            self._waiting = _token(self.request, tokens[-1]) | {"text": event["content"]}
        return {"token": ready, "generated_text": None, "details": None} if ready and tokens else None

    def check_whole(self) -> None:
        """Raises EngineError if no last event was made: the answer broke off."""
        if not self.whole:
            raise EngineError("generation", "the model broke off in the middle of its answer")

    def _last(self, event: dict[str, Any]) -> dict[str, Any]:
        if self._waiting is None:
            raise EngineError("generation", "the model wrote nothing")
        self.whole = True
        text = self.request.prefix + self._text
        details = _details(self.request, event) if self.request.details else None
        return {"token": self._waiting, "generated_text": text, "details": details}


def _token(request: GenerateRequest, token: dict[str, Any]) -> dict[str, Any]:
    told = {
        "id": token["id"],
        "text": token["token"],
        "logprob": token["logprob"],
        "special": not token["bytes"],  # llama.cpp writes no text for the end of an answer
    }
    if request.alternatives:
        told["alternative_tokens"] = [
            {"id": other["id"], "text": other["token"], "logprob": other["logprob"]} for other in token["top_logprobs"]
        ]
    return told


def _details(request: GenerateRequest, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "finish_reason": _FINISH.get(answer["stop_type"], "length"),
        "prompt_tokens": answer["tokens_evaluated"],
        "generated_tokens": answer["tokens_predicted"],
        "seed": request.seed,
    }
