"""What the reconciler needs of a model server that serves adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemind.servers.common.catalogue import Endpoint


@dataclass(frozen=True, slots=True)
class Adapter:
    """A version of an adapter. `directory` is where the model server finds it, which mounts the same folder."""

    id: str
    directory: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of server can do.

    `lists`: it says what it holds. Where it does not, `ensure` is how to ask, for one adapter at a time.
    `on_demand`: it loads by itself what a request names and makes room by itself, so that nothing must be retired.
    """

    lists: bool
    on_demand: bool


class AdapterServerError(Exception):
    """A server cannot be reached or refuses. The text is fit for GetState: no address, no credentials."""


class AdapterServer(Protocol):
    """One replica of a model server. Every method may raise AdapterServerError, and none waits for ever."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it is, as the catalogue says."""

    @property
    def address(self) -> str:
        """Host and port, without credentials."""

    @property
    def capabilities(self) -> Capabilities:
        """What this kind of server can do."""

    async def ensure(self, adapter: Adapter) -> None:
        """Has it hold an adapter, and returns when requests for it are answered by it. A second time does nothing."""

    async def retire(self, adapter_id: str) -> None:
        """Has it hold an adapter no longer; nothing happens if it did not."""

    async def list(self) -> Sequence[str]:
        """The adapters that it says it holds, by id; none where it cannot say."""

    async def health(self) -> bool:
        """Whether it says that it takes requests."""

    async def close(self) -> None:
        """Closes its connections."""
