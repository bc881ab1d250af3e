"""Ledgers for the tests, written by the Arbiter's own code."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.folder import LedgerFolder
from tests.arbiter.examples import BASE, example


def opened(folder: Path, **options: Any) -> LedgerFolder:
    files = LedgerFolder(folder, **{"rotate_bytes": 1 << 30, "clock": time.time, **options})
    files.refresh()
    return files


def store(
    files: LedgerFolder, domain: str, score: float, *, model: str = "courier", adapter: str = "", cost: int = 120,
    **fields: Any,
) -> Example:  # fmt: skip
    provenance = replace(BASE.provenance, draft_model=model, draft_adapter=adapter, draft_score=score, cost_micros=cost)
    (answer,) = files.commit([example(0, domain=domain, provenance=provenance, **fields)])
    assert isinstance(answer, Example), answer
    return answer
