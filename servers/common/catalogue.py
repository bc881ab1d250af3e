"""The model catalogue: `hivemind.toml` and the API keys of the environment, as immutable values.

Errors name file, line, key and what was expected. A catalogue is validated whole before anybody uses it.
"""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

DEFAULT_ENGINE_URL: Final = "http://127.0.0.1:7300/v1"
COURIER: Final = "courier"
MASTER: Final = "master"
EVERY_ALIAS: Final = ("courier", "master", "oracle", "arbiter", "judge")
"""The aliases that the mesh itself knows a use for."""

EXAMPLES_MAX: Final = 4
"""More worked examples confuse a small model more than they help it."""
MODEL_OUTPUT: Final = "LicenseRef-model-output"
"""The licence of an answer where the operator names none: whatever the provider's terms say of its model's output."""
EMBEDDED: Final = "embedded"
AdapterKind = Literal["", "embedded", "lorax", "vllm"]
"""What a model's endpoints are as servers of LoRA adapters; empty: nobody loads adapters there."""

LIST_PRICES: Final[Mapping[str, tuple[float, float, int, int]]] = {
    "gpt-4o": (2.50, 10.00, 128_000, 16_384),
    "deepseek-chat": (0.28, 0.42, 128_000, 8_192),
}
"""Models that an API key alone configures: USD per million prompt and answer tokens, context and answer tokens.

List prices of November 2026; a `[models.ALIAS]` table in hivemind.toml replaces them.
"""

_KEYS: Final = (
    ("OPENAI_API_KEY", "https://api.openai.com/v1", "gpt-4o", ("master", "arbiter")),
    ("DEEPSEEK_API_KEY", "https://api.deepseek.com/v1", "deepseek-chat", ("oracle",)),
)


class CatalogueError(ValueError):
    """The file cannot be used; the text names file, line, key and what was expected."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one call in seconds. `first_token_s` counts from the call to the first event (or to the whole answer's
    headers), `idle_s` between events of a stream, `total_s` over all."""

    connect_s: float = 3.0
    first_token_s: float = 30.0
    idle_s: float = 20.0
    total_s: float = 300.0


@lru_cache(maxsize=1024)
def _host(base_url: str) -> str:
    parts = urlsplit(base_url)
    return parts.hostname + (f":{parts.port}" if parts.port else "") if parts.hostname else base_url


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One OpenAI-compatible server: where it is, what the model is called there, and the key (None: none is sent)."""

    number: int
    base_url: str
    model: str
    api_key: str | None = None

    @property
    def host(self) -> str:
        """Host and port, without credentials."""
        return _host(self.base_url)

    def __repr__(self) -> str:  # a key never stands in a log
        return f"Endpoint({self.number}, {self.base_url!r}, {self.model!r})"


@dataclass(frozen=True, slots=True)
class Model:
    """One alias. Prices are micro-USD per token (the same number as USD per million tokens).

    `licence`: under which its answers may be learnt from, as an SPDX expression.
    """

    alias: str
    endpoints: tuple[Endpoint, ...]
    input_price: float = 0.0
    output_price: float = 0.0
    context_tokens: int = 8192
    max_output_tokens: int = 4096
    timeouts: Timeouts = Timeouts()
    role: str = ""
    adapters: AdapterKind = ""
    auto: bool = False
    tools: bool = True
    images: bool = False
    licence: str = MODEL_OUTPUT

    @property
    def free(self) -> bool:
        """Whether a call costs nothing."""
        return self.input_price == 0 and self.output_price == 0

    def cost_micros(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What a call costs in micro-USD, rounded up."""
        return math.ceil(prompt_tokens * self.input_price + completion_tokens * self.output_price)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator lays down for some requests. Empty or None: nothing is laid down.

    `shadow` names a policy that decides too, whose decision is recorded and not acted on. `examples`: how many platinum
    examples of like questions the courier is shown at most.
    """

    name: str = ""
    dial: float | None = None
    models: frozenset[str] = frozenset()
    strategies: frozenset[str] = frozenset()
    max_cost_micros: int | None = None
    shadow: str = ""
    examples: int = 0


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every alias by name, the policies, the tenants' choices, and words of domains that the operator added."""

    models: Mapping[str, Model]
    tenants_without_training: frozenset[str] = frozenset()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    tenant_policies: Mapping[str, str] = field(default_factory=dict)
    domains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def get(self, alias: str) -> Model | None:
        """The model of an alias, None if there is none with an endpoint."""
        return self.models.get(alias)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
_Price = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class _TimeoutsTable(_Strict):
    connect_s: _Seconds = 3.0
    first_token_s: _Seconds = 30.0
    idle_s: _Seconds = 20.0
    total_s: _Seconds = 300.0


class _EndpointTable(_Strict):
    base_url: str
    model: str
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https URL such as https://api.example.com/v1")
        return value.rstrip("/")


class _ModelTable(_Strict):
    endpoints: Annotated[tuple[_EndpointTable, ...], Field(min_length=1)] | None = None
    input_price: _Price = 0.0
    output_price: _Price = 0.0
    context_tokens: int = Field(default=8192, gt=0)
    max_output_tokens: int = Field(default=4096, gt=0)
    timeouts: _TimeoutsTable = _TimeoutsTable()
    role: str = ""
    adapters: Literal["embedded", "lorax", "vllm"] | None = None
    auto: bool | None = None
    tools: bool = True
    images: bool = False
    licence: Annotated[str, Field(min_length=1, max_length=100)] = MODEL_OUTPUT


class _TenantTable(_Strict):
    training: bool = True
    policy: str = ""


class _PolicyTable(_Strict):
    dial: Annotated[float, Field(ge=0, le=1)] | None = None
    models: tuple[str, ...] = ()
    strategies: tuple[Literal["single", "cascade", "vote", "committee", "debate", "clone_dispatch"], ...] = ()
    max_cost_micros: Annotated[int, Field(ge=0)] | None = None
    shadow: str = ""
    examples: Annotated[int, Field(ge=0, le=EXAMPLES_MAX)] = 0


class _DomainTable(_Strict):
    words: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class _File(_Strict):
    version: Literal[1] = 1
    policies: dict[Annotated[str, Field(pattern=r"^[a-z0-9._-]+$")], _PolicyTable] = {}
    domains: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], _DomainTable] = {}
    models: dict[Annotated[str, Field(pattern=r"^[a-z0-9._-]+$")], _ModelTable] = {}
    tenants: dict[Annotated[str, Field(pattern=r"^[a-z0-9._-]+$")], _TenantTable] = {}

    @model_validator(mode="after")
    def _policies_exist(self) -> Self:
        for kind, name, used in (
            *(("policies", n, p.shadow) for n, p in self.policies.items()),
            *(("tenants", n, t.policy) for n, t in self.tenants.items()),
        ):
            if used and used not in self.policies:
                raise ValueError(f"{kind}.{name} names the policy {used!r}, and there is no [policies.{used}]")
        return self


def load_catalogue(path: Path, environment: Mapping[str, str]) -> Catalogue:
    """Reads the operator's file (an absent one is an empty one) and the keys; raises CatalogueError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{path}: cannot be read: {error}") from error
    return build_catalogue(_parsed(path, text), environment)


def build_catalogue(file: _File, environment: Mapping[str, str]) -> Catalogue:
    """The catalogue of a file that is right in itself."""
    models = {alias: _model(alias, table, environment) for alias, table in file.models.items()}
    for variable, url, name, aliases in _KEYS:
        key = environment.get(variable)
        for alias in aliases if key else ():
            models.setdefault(alias, _by_key(alias, url, name, key))
    models.setdefault(COURIER, _courier(environment))
    return Catalogue(
        models={k: m for k, m in models.items() if m.endpoints},
        tenants_without_training=frozenset(name for name, tenant in file.tenants.items() if not tenant.training),
        policies={
            name: Policy(
                name, t.dial, frozenset(t.models), frozenset(t.strategies), t.max_cost_micros, t.shadow, t.examples
            )
            for name, t in file.policies.items()
        },
        tenant_policies={name: tenant.policy for name, tenant in file.tenants.items() if tenant.policy},
        domains={name: table.words for name, table in file.domains.items()},
    )


def _model(alias: str, table: _ModelTable, environment: Mapping[str, str]) -> Model:
    default = _courier(environment) if alias == COURIER else None
    endpoints = tuple(
        Endpoint(i, e.base_url, e.model, environment.get(e.api_key_env) if e.api_key_env else None)
        for i, e in enumerate(table.endpoints or ())
    )
    return Model(
        alias=alias,
        endpoints=endpoints or (default.endpoints if default else ()),
        input_price=table.input_price,
        output_price=table.output_price,
        context_tokens=table.context_tokens,
        max_output_tokens=table.max_output_tokens,
        timeouts=Timeouts(**table.timeouts.model_dump()),
        role=table.role or ("implementer" if alias == COURIER else ""),
        adapters=table.adapters or (default.adapters if default and not endpoints else ""),
        auto=alias in (COURIER, MASTER) if table.auto is None else table.auto,
        tools=table.tools,
        images=table.images,
        licence=table.licence,
    )


def _courier(environment: Mapping[str, str]) -> Model:
    """The embedded courier, or the OpenAI-compatible URL that HIVEMIND_COURIER names."""
    named = environment.get("HIVEMIND_COURIER", "")
    url = named if named.startswith(("http://", "https://")) else environment.get("HIVEMIND_ENGINE_URL", "")
    endpoint = Endpoint(0, (url or DEFAULT_ENGINE_URL).rstrip("/"), environment.get("HIVEMIND_COURIER_MODEL", COURIER))
    return Model(
        alias=COURIER, endpoints=(endpoint,), context_tokens=2048, max_output_tokens=1024, role="implementer",
        adapters="" if url == named and named else "embedded", auto=True, tools=False,
    )  # fmt: skip


def _by_key(alias: str, url: str, name: str, key: str | None) -> Model:
    input_price, output_price, context, output = LIST_PRICES[name]
    return Model(
        alias=alias, endpoints=(Endpoint(0, url, name, key),), input_price=input_price, output_price=output_price,
        context_tokens=context, max_output_tokens=output, auto=alias == MASTER, images=name == "gpt-4o",
    )  # fmt: skip


def environment() -> Mapping[str, str]:
    """The process's environment, as `load_catalogue` wants it."""
    return dict(os.environ)


def _parsed(path: Path, text: str) -> _File:
    try:
        return _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_problem(text, p) for p in error.errors()[:5])
        raise CatalogueError(f"{path}: {problems}") from error


def _problem(text: str, problem: Any) -> str:
    keys = [str(part) for part in problem["loc"] if part != "[key]"]
    line = _line_of(text, keys)
    where = f"line {line}: " if line else ""
    return f"{where}{'.'.join(keys)}: {problem['msg'].removeprefix('Value error, ')}"


def _line_of(text: str, keys: list[str]) -> int:
    """The line of the longest part of the key that stands in the text; 0 if none does."""
    lines = text.splitlines()
    at = 0
    for depth in range(len(keys), 0, -1):
        header = re.compile(r"\s*\[\[?\s*" + r"\s*\.\s*".join(map(re.escape, keys[:depth])) + r"\s*\]")
        at = next((i for i, line in enumerate(lines, 1) if header.match(line)), 0)
        if at:
            keys = keys[depth:]
            break
    for key in (k for k in keys if not k.isdigit()):
        found = next((i for i, ln in enumerate(lines[at:], at + 1) if re.search(rf"\b{re.escape(key)}\b\s*=", ln)), 0)
        at = found or at
    return at
