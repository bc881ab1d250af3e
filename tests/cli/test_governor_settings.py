"""What `hivemind governor set` sends."""

import pytest

from hivemind.cli.commands import governor_body
from hivemind.cli.home import CommandError


def test_a_budget_is_for_serving_unless_refinement_is_named() -> None:
    body = governor_body(["budget=t1:day:500", "budget=*:MONTH:900:refinement", "enabled=false"])

    assert body == {
        "budgets": [
            {"tenant": "t1", "period": "DAY", "limit_micros": 500},
            {"tenant": "*", "period": "MONTH", "limit_micros": 900, "purpose": "REFINEMENT"},
        ],
        "enabled": False,
    }


@pytest.mark.parametrize("setting", ["budget=t1:DAY", "budget=t1:DAY:much", "enabled"])
def test_what_cannot_be_read_is_refused(setting: str) -> None:
    with pytest.raises(CommandError):
        governor_body([setting])
