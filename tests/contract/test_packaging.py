"""What a wheel of hivemind holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_that_lies_beside_the_code_goes_into_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: _folder(name, setuptools["package-dir"]) for name in setuptools["packages"]}
    packed = {f for name, globs in setuptools["package-data"].items() for g in globs for f in folders[name].glob(g)}
    packed |= {f for folder in folders.values() for f in folder.glob("*.py")}

    tops = [ROOT / folder for folder in setuptools["package-dir"].values()]
    beside = {f for top in tops for f in top.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    assert {f for f in beside - packed if f.suffix != ".md"} == set()


def _folder(package: str, folders: dict[str, str]) -> Path:
    top = max((name for name in folders if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT / folders[top] / package.removeprefix(top).strip(".").replace(".", "/")
