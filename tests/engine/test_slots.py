"""The real engine with one slot: a request that comes while it is busy waits for its turn."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from hivemind.servers.common.courier import Remote, checked_file, resolve_courier
from hivemind.servers.engine.engine import Engine, EngineOptions


def test_requests_above_the_slots_wait_and_are_answered(tmp_path: Path) -> None:
    where = resolve_courier("")
    assert not isinstance(where, Remote)
    weights = checked_file(where, tmp_path)
    engine = Engine(EngineOptions(weights, "127.0.0.1", 0, threads=1, slots=1, context=1024))
    url = f"http://127.0.0.1:{engine.port}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 16}
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: httpx.post(url, json=body, timeout=60), range(4)))
    finally:
        engine.close()

    assert [a.status_code for a in answers] == [200] * 4
    assert all(a.json()["choices"][0]["message"]["content"] for a in answers)
