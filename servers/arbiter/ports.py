"""What the Arbiter's core needs from outside."""

from typing import Protocol

from hivemind.servers.arbiter.example import Example, NewExample


class PlatinumLedger(Protocol):
    """Where examples are kept for good."""

    async def append(self, new: NewExample) -> Example:
        """Stores an example and answers when it is on the disk.

        A second one with the same tenant and idempotency key within 24 hours is not stored: the first is answered, or
        MeshError IDEMPOTENCY_KEY_REUSED raised where the fingerprint differs. MeshError STORE_FULL or
        STORE_UNAVAILABLE where the disk refuses; nothing is stored then.
        """

    def repeated(self, tenant: str, idempotency_key: str, fingerprint: str) -> Example | None:
        """The example that was stored under this key within 24 hours; MeshError IDEMPOTENCY_KEY_REUSED as above."""
