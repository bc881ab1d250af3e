"""Looks whether a run would find anything to learn from, before it is queued: reads no more than it needs for that."""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hivemind.training.sft_config import ConfigError, DataChoice

_NEEDED: Final = "torch"


def check_installed() -> None:
    """ConfigError where the extra that every run needs is not installed."""
    if importlib.util.find_spec(_NEEDED) is None:
        raise ConfigError(
            "backend", f"{_NEEDED} is not installed here: run make install-train, or install the extra gpu"
        )


def check_data(choice: DataChoice) -> None:
    """ConfigError where the hub that a mixture needs does not answer, where a licence forbids the use, or where files
    and ledger hold too few samples; it says why."""
    from hivemind.training.mixture import LEAST

    if choice.mixture:
        _check_hub(choice)
        return
    refused: Counter[str] = Counter()
    seen: set[str] = set()
    for sample in _samples(choice, refused):
        seen.add(sample)
        if len(seen) >= LEAST:
            return
    told = "; ".join(f"{count} x {reason}" for reason, count in refused.most_common(5)) or "they hold no records"
    where = " and ".join(["the files"] * bool(choice.paths) + ["the ledger"] * bool(choice.platinum))
    raise ConfigError("data", f"usable samples in {where}: {len(seen)}, at least {LEAST} are needed: {told}")


def _check_hub(choice: DataChoice) -> None:
    from hivemind.training.hub_data import DEFAULT_MIXTURE, HubUnavailable, resolve_revision

    for source in choice.hub or DEFAULT_MIXTURE:
        try:
            resolve_revision(source)
        except HubUnavailable as error:
            raise ConfigError("data.hub", str(error)) from error


def _samples(choice: DataChoice, refused: Counter[str]) -> Iterator[str]:
    """The texts of usable samples; what is none is counted by reason."""
    from hivemind.training.formatting import Refused, read_turns
    from hivemind.training.licences import use_of
    from hivemind.training.platinum_data import read_platinum
    from hivemind.training.records import files_of, read_records

    if not choice.allow_non_commercial and use_of(choice.licence or "LicenseRef-unstated") == "non-commercial":
        raise ConfigError("data.paths", f"are under {choice.licence}, which allows no commercial use")
    for path in files_of(choice.paths):
        for record in read_records(path, refused):
            own = record.get("licence", record.get("license"))
            if isinstance(own, str) and use_of(own) == "non-commercial" and not choice.allow_non_commercial:
                raise ConfigError("data.paths", f"{path.name} is under {own}, which allows no commercial use")
            try:
                yield "\n".join(turn.content for turn in read_turns(record))
            except Refused as error:
                refused[str(error)] += 1
    if choice.platinum:
        for example in read_platinum(Path(choice.platinum), choice.refused_tenants, refused):
            yield example.id
