"""The front's side of a conversion: starts the converter and takes what it tells."""

import asyncio
import dataclasses
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from hivemind.servers.engine.base_model import BaseModel
from hivemind.servers.engine.gguf_adapter import AdapterBroken

_EACH_S: Final = 60.0

Converted = Path | AdapterBroken


async def files_of(adapters: Mapping[str, Path], base: BaseModel, cache: Path) -> dict[str, Converted]:
    """The GGUF file of each adapter, by id, or why there is none. One process converts them in turn; if it ends early
    or takes more than 60 s over one, that one and those after it are broken."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hivemind.servers.engine.converter",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    task = {"adapters": list(adapters.values()), "base": dataclasses.asdict(base), "cache": cache}
    found: dict[str, Converted] = {}
    try:
        await _hand_over(process, task)
        for name in adapters:
            found[name] = await _told(process)
    except AdapterBroken as error:
        return {**dict.fromkeys(adapters, error), **found}
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return found


async def _hand_over(process: asyncio.subprocess.Process, task: dict[str, Any]) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError):  # it has ended, which its silence says
        process.stdin.write(orjson.dumps(task, default=str) + b"\n")
        await process.stdin.drain()


async def _told(process: asyncio.subprocess.Process) -> Converted:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_EACH_S):
            line = await process.stdout.readline()
    except TimeoutError as error:
        raise AdapterBroken(f"its conversion took more than {_EACH_S:.0f} s") from error
    if not line:
        raise AdapterBroken(f"its conversion ended with code {await process.wait()}")
    told: dict[str, str] = orjson.loads(line)
    return Path(told["file"]) if "file" in told else AdapterBroken(told["error"])
