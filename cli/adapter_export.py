"""`hivemind adapters export`: a version's files, for another server or for llama.cpp alone."""

import shutil
from pathlib import Path

from hivemind.cli.home import CommandError
from hivemind.cli.http_api import MeshApi


def export(api: MeshApi, adapters: Path, adapter_id: str, out: Path, *, gguf: bool) -> Path:
    """Writes a version to `out`: its PEFT directory, or one GGUF file. CommandError where that cannot be done."""
    path = str(api.get(f"/api/adapters/{adapter_id}")["path"])
    source = adapters / path
    if not source.is_dir():
        raise CommandError(f"{source} is not on this machine; run the command where the adapters' folder is")
    if out.exists():
        raise CommandError(f"{out} is there already; name a place that is not")
    if gguf:
        return _as_gguf(source, out)
    try:
        return Path(shutil.copytree(source, out))
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise CommandError(f"{out} cannot be written ({error.strerror})") from error


def _as_gguf(source: Path, out: Path) -> Path:
    """One file that llama.cpp loads beside the courier's weights (`--lora`)."""
    import os
    import tempfile

    from hivemind.servers.common.courier import Local, ModelError, checked_file, resolve_courier
    from hivemind.servers.engine.base_model import BaseModelError, read_base_model
    from hivemind.servers.engine.gguf_adapter import AdapterBroken, converted

    try:
        where = resolve_courier(os.environ.get("HIVEMIND_COURIER", ""))
        if not isinstance(where, Local):
            raise CommandError("only an adapter of a model in a file on this machine can be written as GGUF")
        with tempfile.TemporaryDirectory(dir=out.resolve().parent) as aside:
            base = read_base_model(checked_file(where, Path(aside)))
            return converted(source, base, Path(aside)).replace(out)
    except (ModelError, BaseModelError, AdapterBroken) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{out} cannot be written ({error.strerror})") from error
