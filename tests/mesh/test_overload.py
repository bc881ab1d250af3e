"""FAULTS 19: ten times more clients than the Router takes."""

from pathlib import Path

import httpx

from tests.support.load import run_load
from tests.support.mesh import Upstream, running_mesh

LIMIT = 16


async def test_load_is_shed_and_what_is_admitted_stays_quick(tmp_path: Path, upstream: Upstream) -> None:
    config = f'[models.slow]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "slow" }}]\n'
    settings = {
        "HIVEMIND_MAX_IN_FLIGHT": str(LIMIT),
        "HIVEMIND_COURIER": upstream.base_url,
        "HIVEMIND_COURIER_MODEL": "ok",
    }
    with running_mesh(tmp_path, config, environment=settings) as mesh:
        router = mesh.server("router")[0]
        usual = await run_load(mesh.base_url, model="slow", seconds=4, concurrency=LIMIT // 2)
        memory = router.memory_info().rss

        over = await run_load(mesh.base_url, model="slow", seconds=6, concurrency=10 * LIMIT, pause_s=0.2)

        assert usual.failed == 0
        assert set(over.outcomes) == {200, 429}, (over.outcomes, over.failures[:2])
        assert '"reason":"OVERLOADED"' in over.failures[0]
        assert over.quantile(0.99) < 2 * usual.quantile(0.99)
        assert router.memory_info().rss - memory < 64 << 20
        async with httpx.AsyncClient() as client:
            port = mesh.plan["processes"]["router"]["metrics"]
            shed = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        assert f"hivemind_shed_total {float(over.outcomes[429])}" in shed
