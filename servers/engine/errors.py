"""What the engine tells a client when it cannot answer, and how that looks in HTTP."""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal[
    "validation",
    "too_large",
    "unknown_path",
    "unknown_model",
    "adapter_failed",
    "overloaded",
    "unavailable",
    "generation",
    "timeout",
]

STATUS: Final[dict[Kind, int]] = {
    "validation": 400,
    "too_large": 413,
    "unknown_path": 404,
    "unknown_model": 404,
    "adapter_failed": 424,
    "overloaded": 429,
    "unavailable": 503,
    "generation": 502,
    "timeout": 504,
}


@dataclass(eq=False)
class EngineError(Exception):
    """A request that gets no answer. `message` is fit for a client."""

    kind: Kind
    message: str

    def __post_init__(self) -> None:
        super().__init__(self.message)
