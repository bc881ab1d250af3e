"""What the Router's core needs from outside."""

from collections.abc import Mapping
from typing import Protocol

from hivemind.servers.common.catalogue import Endpoint
from hivemind.servers.router.conversation import Conversation
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.records import Record


class UpstreamError(Exception):
    """A model server could not be reached or broke off. The text is fit for a client; `kind` is a short label."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class UpstreamResponse(Protocol):
    """The answer of a model server, whose body is still to be read."""

    status: int

    def header(self, name: str) -> str:
        """The value of a header, or an empty string."""

    async def read(self, limit: int, *, within_s: float) -> bytes:
        """The whole body; UpstreamError if it is longer than `limit` bytes, takes longer, or breaks off."""

    async def next(self) -> bytes:
        """What has come of the body since the last call, empty at its end; UpstreamError if it breaks off."""

    def fail(self, error: Exception) -> None:
        """Has the read that waits, or the next one, raise this error."""

    def close(self) -> None:
        """Ends the call. A body that was not read whole closes the connection, which stops the model server's work."""


class Upstream(Protocol):
    """HTTP to model servers, over pooled connections."""

    async def post(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        connect_s: float,
        answer_s: float,
    ) -> UpstreamResponse:
        """Sends a request and answers when the headers are there.

        UpstreamError if that fails; its kind is `timeout` where they did not come within `answer_s` seconds.
        """


class RecordStore(Protocol):
    """Where records go."""

    async def append(self, entries: list[Entry]) -> None:
        """Stores a batch; MeshError if it cannot, and nothing of it is stored then."""

    async def get(self, request_id: str) -> Record | None:
        """One record, None if there is none."""

    async def conversation(self, request_id: str) -> Conversation | None:
        """What was said, None where it is not kept (any more)."""

    async def list(self, *, page_size: int, page_token: str, tenant: str) -> tuple[list[Record], str]:
        """A page of records, newest first, and where to go on."""
