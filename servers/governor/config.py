"""The configuration of the mesh at run time: its shape, what is allowed, and how a change is merged into it. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, TypeVar

from hivemind.servers.common.context import is_id
from hivemind.servers.common.errors import MeshError, Violation

EVERYONE: Final = "*"
PERIODS: Final = ("DAY", "MONTH")
PURPOSES: Final = ("SERVING", "REFINEMENT")
CHANGES_KEPT: Final = 20
MAX_MICROS: Final = 10**15
MAX_RATE: Final = 10**7

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a tenant (`*`: all together) may spend in a period, in micro-USD."""

    tenant: str
    period: str
    limit_micros: int
    purpose: str = "SERVING"

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is a budget of."""
        return self.tenant, self.period, self.purpose


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests a tenant (`*`: each without a rate of its own) may send in a minute, and at once."""

    tenant: str
    requests_per_minute: int
    burst: int = 0

    @property
    def key(self) -> str:
        """Whose rate it is."""
        return self.tenant


@dataclass(frozen=True, slots=True)
class Change:
    """One change, for the audit. `time` in Unix seconds."""

    time: float
    changes: tuple[str, ...]
    actor: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration. `revision` grows by one with each change; `updated` in Unix seconds."""

    enabled: bool = True
    enable_oracle_refinement: bool = True
    force_gpt4o_arbiter: bool = False
    quality_dial: float = 0.5
    budgets: tuple[Budget, ...] = (Budget(EVERYONE, "DAY", 1_000_000, "REFINEMENT"),)
    rates: tuple[Rate, ...] = ()
    budget_fail_open: bool = False
    refinement_price_ceiling_micros: int = 50_000
    revision: int = 0
    updated: float = 0.0
    history: tuple[Change, ...] = field(default=())

    @property
    def etag(self) -> str:
        """Names this state."""
        return f"r{self.revision}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Config":
        """The configuration of what orjson made of one."""
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in data.items() if k in known}
        values["budgets"] = tuple(Budget(**b) for b in values.get("budgets", ()))
        values["rates"] = tuple(Rate(**r) for r in values.get("rates", ()))
        values["history"] = tuple(Change(**{**c, "changes": tuple(c["changes"])}) for c in values.get("history", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Patch:
    """A wish to change. None and empty: as it is."""

    enabled: bool | None = None
    enable_oracle_refinement: bool | None = None
    force_gpt4o_arbiter: bool | None = None
    quality_dial: float | None = None
    budget_fail_open: bool | None = None
    refinement_price_ceiling_micros: int | None = None
    budgets: tuple[Budget, ...] = ()
    rates: tuple[Rate, ...] = ()
    remove_budgets: tuple[Budget, ...] = ()
    remove_rates: tuple[str, ...] = ()


_SIMPLE: Final = (
    "enabled", "enable_oracle_refinement", "force_gpt4o_arbiter", "quality_dial", "budget_fail_open",
    "refinement_price_ceiling_micros",
)  # fmt: skip


def merged(config: Config, patch: Patch, *, now: float, actor: str, request_id: str) -> Config:
    """The configuration with the patch in it, or the same object if that changes nothing.

    Raises INVALID_FIELD with every field that is wrong, MISSING_FIELD for a patch without any.
    """
    _check(config, patch)
    simple = {name: getattr(patch, name) for name in _SIMPLE if getattr(patch, name) is not None}
    budgets = _replaced(config.budgets, patch.budgets, {b.key for b in patch.remove_budgets}, lambda b: b.key)
    rates = _replaced(config.rates, patch.rates, set(patch.remove_rates), lambda r: r.key)
    wanted = replace(config, **simple, budgets=budgets, rates=rates)
    changes = _differences(config, wanted)
    if not changes:
        return config
    history = (Change(now, changes, actor, request_id), *config.history)[:CHANGES_KEPT]
    return replace(wanted, revision=config.revision + 1, updated=now, history=history)


def _replaced(old: tuple[T, ...], new: tuple[T, ...], removed: set[Any], key: Callable[[T], Any]) -> tuple[T, ...]:
    table = {key(item): item for item in old if key(item) not in removed}
    table |= {key(item): item for item in new}
    return tuple(table[k] for k in sorted(table))


def _differences(old: Config, new: Config) -> tuple[str, ...]:
    found = [
        f"{n}: {_text(getattr(old, n))} -> {_text(getattr(new, n))}"
        for n in _SIMPLE
        if getattr(old, n) != getattr(new, n)
    ]
    return (
        *found,
        *_item_differences("budgets", old.budgets, new.budgets),
        *_item_differences("rates", old.rates, new.rates),
    )


def _item_differences(name: str, old: Iterable[Budget | Rate], new: Iterable[Budget | Rate]) -> list[str]:
    before = {str(i.key): i for i in old}
    after = {str(i.key): i for i in new}
    keys = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    return [f"{name}: {_text(before.get(k))} -> {_text(after.get(k))}" for k in keys]


def _text(value: object) -> str:
    if isinstance(value, Budget):
        return f"{value.tenant} {value.period} {value.purpose} {value.limit_micros}"
    if isinstance(value, Rate):
        return f"{value.tenant} {value.requests_per_minute}/min burst {value.burst}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check(config: Config, patch: Patch) -> None:
    if patch == Patch():
        raise MeshError("MISSING_FIELD", "the body names no field of the configuration that could be changed")
    found = [*_simple_violations(patch), *_budget_violations(config, patch), *_rate_violations(config, patch)]
    if found:
        raise MeshError(
            "INVALID_FIELD", "; ".join(f"{v.field}: {v.description}" for v in found), violations=tuple(found)
        )


def _simple_violations(patch: Patch) -> Iterable[Violation]:
    if patch.quality_dial is not None and not 0 <= patch.quality_dial <= 1:
        yield Violation("quality_dial", f"{patch.quality_dial:g} is not in [0, 1]")
    ceiling = patch.refinement_price_ceiling_micros
    if ceiling is not None and not 0 <= ceiling <= MAX_MICROS:
        yield Violation("refinement_price_ceiling_micros", f"must be from 0 to {MAX_MICROS}")


def _budget_violations(config: Config, patch: Patch) -> Iterable[Violation]:
    for i, budget in enumerate(patch.budgets):
        yield from _scope_violations(budget, f"budgets[{i}]")
        if not 0 <= budget.limit_micros <= MAX_MICROS:
            yield Violation(f"budgets[{i}].limit_micros", f"must be from 0 to {MAX_MICROS}")
    if len({b.key for b in patch.budgets}) < len(patch.budgets):
        yield Violation("budgets", "names the same tenant, period and purpose twice")
    there = {b.key for b in config.budgets}
    for i, budget in enumerate(patch.remove_budgets):
        if budget.key not in there:
            yield Violation(f"remove_budgets[{i}]", "there is no such budget")


def _scope_violations(budget: Budget, path: str) -> Iterable[Violation]:
    if budget.tenant != EVERYONE and not is_id(budget.tenant):
        yield Violation(f"{path}.tenant", "must be * or match [a-z0-9._-]+")
    if budget.period not in PERIODS:
        yield Violation(f"{path}.period", f"must be one of {', '.join(PERIODS)}")
    if budget.purpose not in PURPOSES:
        yield Violation(f"{path}.purpose", f"must be one of {', '.join(PURPOSES)}")


def _rate_violations(config: Config, patch: Patch) -> Iterable[Violation]:
    for i, rate in enumerate(patch.rates):
        if rate.tenant != EVERYONE and not is_id(rate.tenant):
            yield Violation(f"rates[{i}].tenant", "must be * or match [a-z0-9._-]+")
        if not 0 < rate.requests_per_minute <= MAX_RATE:
            yield Violation(f"rates[{i}].requests_per_minute", f"must be from 1 to {MAX_RATE}")
        if not 0 <= rate.burst <= MAX_RATE:
            yield Violation(f"rates[{i}].burst", f"must be from 0 to {MAX_RATE}")
    if len({r.key for r in patch.rates}) < len(patch.rates):
        yield Violation("rates", "names the same tenant twice")
    there = {r.key for r in config.rates}
    for i, tenant in enumerate(patch.remove_rates):
        if tenant not in there:
            yield Violation(f"remove_rates[{i}]", "there is no such rate")
