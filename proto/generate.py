"""Regenerates everything that is derived from the contract: `python proto/generate.py` (or `make gen`).

third_party/            the Google protos that ours import, out of the googleapis-common-protos package (not tracked)
gen/hivemind/v1/        messages, services and their stubs
envoy/hivemind.binpb    the descriptor set that Envoy transcodes by
docs/openapi.json       the REST surface
"""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOOGLE_PROTOS = (
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)
BIN = Path(sys.executable).parent


def copy_google_protos(target: Path) -> None:
    """Lays the Google protos out below `target`, where buf and protoc find them."""
    package = importlib.metadata.distribution("googleapis-common-protos")
    for name in GOOGLE_PROTOS:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(package.locate_file(name)), target / name)


def generate_python(out: Path) -> None:
    """Writes messages, services and type stubs to `out`."""
    shutil.rmtree(out / "hivemind", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    protos = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto" / "hivemind").rglob("*.proto"))
    run(
        sys.executable, "-m", "grpc_tools.protoc", "-Iproto", "-Ithird_party",
        f"--plugin=protoc-gen-mypy={BIN / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={BIN / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out={out}", f"--mypy_grpc_out={out}",
        *protos,
    )  # fmt: skip


def build_descriptor_set(target: Path) -> None:
    """Writes the contract with all that it imports, and its comments, as one FileDescriptorSet."""
    run(str(BIN / "buf"), "build", "--as-file-descriptor-set", "-o", f"{target}#format=binpb")


def run(*command: str) -> None:
    """Runs a command in the checkout and ends this program if it fails."""
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def main() -> None:
    """Regenerates all of it in place."""
    copy_google_protos(ROOT / "third_party")
    generate_python(ROOT / "gen")
    build_descriptor_set(ROOT / "envoy" / "hivemind.binpb")
    openapi = ROOT / "proto" / "openapi.py"
    if openapi.exists():
        run(sys.executable, str(openapi), "envoy/hivemind.binpb", "docs/openapi.json")


if __name__ == "__main__":
    main()
