"""One real mesh a session: Envoy, Redis, the engine with its model, two Routers, a scripted upstream."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.mesh import RunningMesh, Upstream, running_mesh, scripted_upstream
from tests.support.scripted_upstream import SCRIPTS

POLICIES = """
[policies.frugal]
models = ["courier", "panel"]
strategies = ["single", "vote"]
max_cost_micros = 100000
shadow = "lavish"
[policies.lavish]
dial = 1.0
[tenants.thrifty]
policy = "frugal"
"""
TIMEOUTS = "timeouts = { connect_s = 1.0, first_token_s = 1.0, idle_s = 1.0, total_s = 8.0 }"


def catalogue(upstream: Upstream) -> str:
    """An alias per script, and a few that fail before any server is reached."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refused = closed.getsockname()[1]
    tables = {name: [(upstream.base_url, name)] for name in SCRIPTS}
    tables["master"] = [(upstream.base_url, "ok")]
    tables["judge"] = [(upstream.base_url, "panel")]
    tables["refused"] = [(f"http://127.0.0.1:{refused}/v1", "ok")]
    tables["no_such_host"] = [("http://nothing.invalid/v1", "ok")]
    tables["bad_tls"] = [(f"https://127.0.0.1:{upstream.tls_port}/v1", "ok")]
    tables["patient_hang"] = [(upstream.base_url, "hang")]
    tables["patient_hang_mid"] = [(upstream.base_url, "hang_mid")]
    tables["patient_panel_hangs_mid"] = [(upstream.base_url, "panel_hangs_mid")]
    for name, failing in (("500", "error_500"), ("503", "error_503"), ("hang", "hang"), ("429", "rate_limited")):
        tables[f"rescued_{name}"] = [(upstream.base_url, failing), (upstream.base_url, "ok")]
    for name, failing in (("500", "error_500"), ("hang", "hang"), ("429", "rate_limited")):
        tables[f"panel_rescued_{name}"] = [(upstream.base_url, failing), (upstream.base_url, "panel")]
    tables["panel_rescued_refused"] = [(f"http://127.0.0.1:{refused}/v1", "ok"), (upstream.base_url, "panel")]
    tables["hang_both"] = [(upstream.base_url, "hang"), (upstream.base_url, "hang")]
    tables["rescued_refused"] = [(f"http://127.0.0.1:{refused}/v1", "ok"), (upstream.base_url, "ok")]
    text = []
    for alias, endpoints in tables.items():
        lines = ", ".join(f'{{ base_url = "{url}", model = "{model}" }}' for url, model in endpoints)
        priced = alias in ("master", "ok", "slow", "spaced", "patient_hang", "patient_hang_mid") or "panel" in alias
        text += [
            f"[models.{alias}]",
            f"endpoints = [{lines}]",
            "context_tokens = 400000",
            "max_output_tokens = 100",
            "input_price = 2.5\noutput_price = 10.0" if priced else "",
            "auto = false" if alias == "master" else "",
            "" if alias.startswith("patient") else TIMEOUTS,
        ]
    return "\n".join([*text, POLICIES])


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    with scripted_upstream() as server:
        yield server


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[RunningMesh]:
    home: Path = tmp_path_factory.mktemp("mesh")
    with running_mesh(home, catalogue(upstream), replicas="router=2") as running:
        yield running


@pytest.fixture
def client(mesh: RunningMesh) -> Iterator[httpx.Client]:
    with mesh.client() as opened:
        yield opened
