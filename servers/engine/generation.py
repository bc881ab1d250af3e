"""A generation of the engine: one llama.cpp process with the base model and some adapters.

It is a process of its own because llama.cpp holds the interpreter for as long as it loads, does not give back all
memory when a model is dropped, and ends its process when it finds a file that it cannot bear.
"""

import asyncio
import dataclasses
import os
import sys
from contextlib import suppress
from typing import Any, Final

import orjson

from hivemind.servers.engine.engine import EngineOptions
from hivemind.servers.engine.turns import Turns

_START_S: Final = 120.0
_END_S: Final = 2.0
_WAITING: Final = {"GOMP_SPINCOUNT": "2000"}
"""A thread of llama.cpp that waits for the others of its team gives its core away after some 0.1 ms. OpenMP's default
is several ms, at each of the hundreds of barriers of a token: with one thread more than cores (a generation that starts
is enough) all spin while the one that they wait for has no core. Measured on 2 cores: one token took up to 5 s."""


class GenerationFailed(Exception):
    """The process did not start to serve; the text is llama.cpp's reason or how it ended."""


class Generation:
    """A running generation. `adapters` are ids in the order in which llama.cpp numbers them; `port` is its own; `turns`
    says who may send it a request."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, adapters: tuple[str, ...], slots: int) -> None:
        self._process, self.port, self.adapters, self.turns = process, port, adapters, Turns(slots)
        self._closing = False

    def scales(self, adapter_id: str | None) -> list[dict[str, float]]:
        """The `lora` list that has a request answered by one adapter, or by the base model. It must be sent always:
        without it llama.cpp may go on from what another adapter left in its cache."""
        return [{"id": i, "scale": float(name == adapter_id)} for i, name in enumerate(self.adapters)]

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    def come_forward(self) -> None:
        """Ends its staying behind other processes: it is to answer from now on."""
        if self._process.stdin is not None and not self.ended:
            self._process.stdin.write(b"\n")

    async def drain(self) -> None:
        """Sends away who waits, lets the requests under way end, then ends the process."""
        self.turns.close()
        await self.turns.idle()
        await self.close()

    async def close(self) -> None:
        """Ends the process; requests under way break off."""
        self._closing = True
        self.turns.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def died(self) -> int:
        """Waits until the process has ended by itself and answers how; waits for ever if it was closed."""
        code = await self._process.wait()
        if self._closing:
            await asyncio.Event().wait()
        return code


async def start_generation(options: EngineOptions, adapters: tuple[str, ...]) -> Generation:
    """Starts a process and waits until it serves; GenerationFailed if it does not. `options.adapters` are the files of
    `adapters`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hivemind.servers.engine.worker",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**_WAITING, **os.environ},
    )  # fmt: skip
    try:
        async with asyncio.timeout(_START_S):
            told = await _answer(process, options)
    except BaseException as error:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise GenerationFailed(f"it did not start within {_START_S:.0f} s") from error
        raise
    return Generation(process, told["port"], adapters, options.slots)


async def _answer(process: asyncio.subprocess.Process, options: EngineOptions) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    try:
        process.stdin.write(orjson.dumps(fields, default=str) + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
    except ConnectionError:
        line = b""
    if not line:
        raise GenerationFailed(f"llama.cpp ended with code {await process.wait()} while it loaded")
    told: dict[str, Any] = orjson.loads(line)
    if "error" in told:
        raise GenerationFailed(told["error"])
    return told
