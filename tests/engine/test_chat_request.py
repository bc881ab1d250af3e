"""What the engine makes of a request before llama.cpp sees it."""

import orjson
import pytest

from hivemind.servers.engine.chat_request import read_chat_request


@pytest.mark.parametrize(
    ("asked", "penalty"),
    [
        ({"model": "courier"}, None),
        ({"model": "implementer-v000001"}, 1.0),
        ({"adapter_id": "implementer-v000001"}, 1.0),
        ({"model": "implementer-v000001", "repeat_penalty": 1.3}, 1.3),
    ],
)
def test_an_adapter_may_repeat_the_words_of_the_question_unless_the_request_says_otherwise(
    asked: dict[str, object], penalty: float | None
) -> None:
    found = read_chat_request(orjson.dumps({**asked, "messages": [{"role": "user", "content": "Hi"}]}))

    assert found.body.get("repeat_penalty") == penalty
