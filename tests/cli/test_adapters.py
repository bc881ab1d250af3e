"""hivemind adapters: charts, shares and what is sent."""

import sys
from pathlib import Path
from typing import Any

import pytest

from hivemind.cli.adapters import chart, draw, promote, set_traffic
from hivemind.cli.home import CommandError

POINTS = [
    {"pairs": str(n), "win_rate": 0.6, "win_rate_lower": 0.6 - 1 / n, "win_rate_upper": 0.6 + 1 / n, "e_value": 1.05**n}
    for n in (3, 10, 40, 120)
]


class Api:
    """Answers as the mesh would, and keeps what was sent."""

    def __init__(self, traffic: float = 0.05) -> None:
        self.sent: list[tuple[str, Any]] = []
        challenge = {"adapter_id": "r-v000002", "traffic": traffic}
        self.state = {"roles": [{"role": "r", "champion": "r-v000001", "challenges": [challenge]}]}

    def get(self, path: str) -> Any:
        if path.startswith("/api/adapters/preview/r?adapter_id=r-v000002"):
            return {"adapter_id": "r-v000002", "preview_hash": "h", "expected_champion": "r-v000001", "verdict": "HOLD"}
        return self.state

    def post(self, path: str, body: Any) -> Any:
        self.sent.append((path, body))
        return {}


def test_the_chart_shows_win_rate_and_evidence_over_the_pairs() -> None:
    text = chart(POINTS, "r-v000002", width=80)

    assert "win rate of r-v000002" in text
    assert "120.0" in text
    assert text.count("•") >= len(POINTS)
    assert "\x1b" not in text


def test_drawing_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(CommandError, match="hivemind\\[gate\\]"):
        draw({"points": POINTS, "adapter_id": "r-v000002"}, tmp_path / "chart.png")


@pytest.mark.parametrize(
    ("share", "traffic", "shadow"),
    [("10%", 0.1, False), ("0.25", 0.25, False), ("shadow", 0, True), ("next", 0.1, False)],
)
def test_shares_are_read_as_people_write_them(share: str, traffic: float, shadow: bool) -> None:
    api = Api()

    set_traffic(api, "r", "r-v000002", share)  # type: ignore[arg-type]

    expected = {"adapter_id": "r-v000002", "traffic": pytest.approx(traffic), "shadow": shadow}
    assert api.sent == [("/api/adapters/traffic/r", expected)]


def test_after_the_last_step_there_is_no_next() -> None:
    with pytest.raises(CommandError, match="last step"):
        set_traffic(Api(0.5), "r", "r-v000002", "next")  # type: ignore[arg-type]
    with pytest.raises(CommandError, match="give a share"):
        set_traffic(Api(), "r", "r-v000002", "much")  # type: ignore[arg-type]


def test_a_promotion_by_name_carries_its_preview_and_one_without_is_bodyless() -> None:
    api = Api()

    promote(api, "r", "r-v000002", override=False, reason="")  # type: ignore[arg-type]
    promote(api, "r", "", override=False, reason="")  # type: ignore[arg-type]

    named = {"adapter_id": "r-v000002", "preview_hash": "h", "expected_champion": "r-v000001"}
    assert [body for _, body in api.sent] == [named, {}]
