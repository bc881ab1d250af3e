"""Regenerates everything that is derived from the contract: `python proto/generate.py` (`make gen`); --check compares.

third_party/            the Google protos that ours import, out of the googleapis-common-protos package (not tracked)
gen/hivemind/v1/        messages, services and their stubs
envoy/hivemind.binpb    the descriptor set that Envoy transcodes by
docs/openapi.json       the REST surface
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
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


def write_openapi(descriptor_set: Path, target: Path) -> None:
    """Writes the REST surface."""
    run(sys.executable, str(ROOT / "proto" / "openapi.py"), str(descriptor_set), str(target))


def generate(root: Path) -> None:
    """Writes all of it below `root`."""
    for folder in ("gen", "envoy", "docs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    generate_python(root / "gen")
    build_descriptor_set(root / "envoy" / "hivemind.binpb")
    write_openapi(root / "envoy" / "hivemind.binpb", root / "docs" / "openapi.json")


def differences(fresh: Path) -> list[str]:
    """The generated files that are not what is checked in."""
    names = {p.relative_to(root) for root in (fresh, ROOT) for p in (root / "gen").rglob("*_pb2*.py*") if p.is_file()}
    names = {n for n in names if n.suffix in (".py", ".pyi")} | {
        Path("envoy/hivemind.binpb"),
        Path("docs/openapi.json"),
    }
    return sorted(str(n) for n in names if _content(fresh / n) != _content(ROOT / n))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main() -> None:
    """Regenerates in place, with --check compares, with --protos-only lays out the Google protos and no more."""
    copy_google_protos(ROOT / "third_party")
    if "--protos-only" in sys.argv:
        return
    if "--check" not in sys.argv:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        stale = differences(Path(fresh))
    if stale:
        sys.exit("not what the contract generates, run `make gen`: " + ", ".join(stale))
    print("the generated files are fresh")


if __name__ == "__main__":
    main()
