"""What the loop has to know of the catalogue, replaced whole when the file changes."""

from collections.abc import Collection

from hivemind.servers.common.catalogue import COURIER, Catalogue


class Models:
    """The models of the mesh, as far as they matter here."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def replace(self, catalogue: Catalogue) -> None:
        """Puts a changed catalogue in force."""
        self._catalogue = catalogue

    def learners(self) -> Collection[str]:
        """The aliases that learn: the courier, and whichever has an adapter role."""
        return {COURIER, *(m.alias for m in self._catalogue.models.values() if m.role)}

    def can_refine(self) -> bool:
        """Whether there is a model that could refine an answer."""
        return any(self._catalogue.get(alias) is not None for alias in ("oracle", "arbiter"))
