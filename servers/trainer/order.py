"""What a caller asks of a job, and whether it can be granted. Pure."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hivemind.servers.common.context import is_id
from hivemind.servers.common.errors import MeshError, Violation

DEFAULT_ROLE: Final = "implementer"
DEFAULT_BASE: Final = "courier"
DEFAULT_MIXTURE: Final = "default"
GPU: Final = "gpu"
CPU: Final = "cpu"
BACKENDS: Final = ("", "unsloth", "cpu")
MAX_PATHS: Final = 100
MAX_DURATION_S: Final = 90 * 86400.0
MAX_MICROS: Final = 10**15
MAX_SEED: Final = (1 << 32) - 1

_RANGES: Final = {"max_steps": (1, 1_000_000), "batch_size": (1, 4096), "max_seq_length": (64, 131_072)}


@dataclass(frozen=True, slots=True)
class DataSelection:
    """Which data a job learns from: files or folders inside the state folder, the ledger, a mixture by name."""

    paths: tuple[str, ...] = ()
    platinum: bool = False
    mixture: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a job trains; None and an empty back end: as the job's program chooses."""

    max_steps: int | None = None
    learning_rate: float | None = None
    rank: int | None = None
    max_seq_length: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    seed: int | None = None
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """A wish for a job. `data` None: platinum and the default mixture. Limits of 0: none."""

    role: str = ""
    data: DataSelection | None = None
    recipe: Recipe = Recipe()
    base_model: str = ""
    max_duration_s: float = 0.0
    max_cost_micros: int = 0
    fencing_token: int = 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Order":
        """The order of what orjson made of one."""
        chosen = data["data"]
        selection = None if chosen is None else DataSelection(**{**chosen, "paths": tuple(chosen["paths"])})
        return cls(**{**data, "data": selection, "recipe": Recipe(**data["recipe"])})


@dataclass(frozen=True, slots=True)
class Lane:
    """Where jobs run one after the other, or a few at a time: `gpu` or `cpu`; the price is in micro-USD."""

    name: str
    capacity: int
    price_per_hour_micros: int = field(default=0)


def completed(order: Order) -> Order:
    """The order with its defaults in it."""
    return replace(
        order,
        role=order.role or DEFAULT_ROLE,
        base_model=order.base_model or DEFAULT_BASE,
        data=order.data or DataSelection(platinum=True, mixture=DEFAULT_MIXTURE),
    )


def lane_of(order: Order, lanes: Collection[str]) -> str:
    """The lane that a job runs in on a machine with these: its back end's, else the GPU's where there is one."""
    if order.recipe.backend:
        return GPU if order.recipe.backend == "unsloth" else CPU
    return GPU if GPU in lanes else CPU


def check_order(order: Order, lanes: Collection[str]) -> None:
    """Raises INVALID_FIELD with every field that is wrong, NO_TRAINING_DATA where no data is named."""
    found = [*_order_violations(order), *_recipe_violations(order.recipe, lanes), *_data_violations(order.data)]
    if found:
        text = "; ".join(f"{v.field}: {v.description}" for v in found)
        raise MeshError("INVALID_FIELD", text, violations=tuple(found))
    if order.data == DataSelection():
        problem = "names neither paths, nor platinum, nor a mixture; leave it out for platinum and the default mixture"
        raise MeshError("NO_TRAINING_DATA", f"data: {problem}", violations=(Violation("data", problem),))


def _order_violations(order: Order) -> Iterator[Violation]:
    if not is_id(order.role) or len(order.role) > 64:
        yield Violation("role", "must match [a-z0-9._-]+ and have at most 64 characters")
    if not is_id(order.base_model) or len(order.base_model) > 64:
        yield Violation("base_model", "must be a base model's id of the catalogue")
    if not 0 <= order.max_duration_s <= MAX_DURATION_S:
        yield Violation("max_duration", f"must be from 0 to {MAX_DURATION_S:g} seconds")
    if not 0 <= order.max_cost_micros <= MAX_MICROS:
        yield Violation("max_cost_micros", f"must be from 0 to {MAX_MICROS}")
    if order.fencing_token < 0:
        yield Violation("fencing_token", "must not be negative")


def _recipe_violations(recipe: Recipe, lanes: Collection[str]) -> Iterator[Violation]:
    for name, (low, high) in _RANGES.items():
        value = getattr(recipe, name)
        if value is not None and not low <= value <= high:
            yield Violation(f"recipe.{name}", f"{value} is not from {low} to {high}")
    if recipe.rank is not None and not (8 <= recipe.rank <= 256 and recipe.rank % 8 == 0):
        yield Violation(
            "recipe.rank", f"{recipe.rank} is not a multiple of 8 from 8 to 256, as adapter servers ask for"
        )
    if recipe.learning_rate is not None and not 0 < recipe.learning_rate <= 0.01:
        yield Violation("recipe.learning_rate", f"{recipe.learning_rate:g} is not above 0 and at most 0.01")
    if recipe.epochs is not None and not 0 < recipe.epochs <= 1000:
        yield Violation("recipe.epochs", f"{recipe.epochs:g} is not above 0 and at most 1000")
    if recipe.seed is not None and not 0 <= recipe.seed <= MAX_SEED:
        yield Violation("recipe.seed", f"{recipe.seed} is not from 0 to {MAX_SEED}")
    if recipe.backend not in BACKENDS:
        yield Violation("recipe.backend", "must be unsloth or cpu, or empty for what the machine can run")
    elif recipe.backend == "unsloth" and GPU not in lanes:
        yield Violation(
            "recipe.backend", "unsloth needs a CUDA GPU and this Trainer has none; take cpu or leave it out"
        )


def _data_violations(data: DataSelection | None) -> Iterator[Violation]:
    if data is not None and len(data.paths) > MAX_PATHS:
        yield Violation("data.paths", f"names more than {MAX_PATHS} files or folders; name a folder of them")
    if data is not None and data.mixture and not is_id(data.mixture):
        yield Violation("data.mixture", "must match [a-z0-9._-]+")
