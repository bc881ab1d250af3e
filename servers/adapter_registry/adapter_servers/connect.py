"""The adapter servers that the catalogue names."""

from collections.abc import Callable, Mapping
from typing import Final

from hivemind.servers.adapter_registry.adapter_servers.embedded import EmbeddedServer
from hivemind.servers.adapter_registry.adapter_servers.lorax import LoraxServer
from hivemind.servers.adapter_registry.adapter_servers.port import AdapterServer
from hivemind.servers.adapter_registry.adapter_servers.vllm import VllmServer
from hivemind.servers.common.catalogue import Catalogue, Endpoint

_KINDS: Final[Mapping[str, Callable[[Endpoint], AdapterServer]]] = {
    "embedded": EmbeddedServer,
    "lorax": LoraxServer,
    "vllm": VllmServer,
}


def connect(catalogue: Catalogue) -> dict[str, list[AdapterServer]]:
    """Role to the replicas that serve it: every endpoint of a model with this role and a kind of adapter server."""
    servers: dict[str, list[AdapterServer]] = {}
    for model in catalogue.models.values():
        if model.role and model.adapters:
            servers.setdefault(model.role, []).extend(_KINDS[model.adapters](e) for e in model.endpoints)
    return servers
