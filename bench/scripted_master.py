"""Stands for a paid API: `python bench/scripted_master.py FACTS.json [PORT]` serves OpenAI's chat; prints its port.

It knows the facts of the file and is asked as `master` (answers), `oracle` or `arbiter` (refines a draft by JSON) and
`judge` (compares two answers). Nothing of it is learnt or random; it ends with SIGTERM, as an API that is gone.
"""

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.facts import Fact, subject_in

UNKNOWN: Final = "I know nothing about that."
_QUOTED: Final = re.compile(r"<<<(\S+)(?: ([^\n]*))?\n(.*?)\n\1>>>", re.DOTALL)
_BYTES_A_TOKEN: Final = 4


def answer_to(body: Mapping[str, Any], facts: Mapping[str, Fact]) -> str:
    """What it says to a request; `facts` by subject."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    text = str(body["messages"][-1]["content"])
    if schema == "verdict":
        return json.dumps(refined(text, facts))
    if schema == "comparison":
        quoted = {title: said for _, title, said in _QUOTED.findall(text)}
        fact = subject_in(quoted["conversation"], facts)
        return json.dumps(compared(fact, quoted["answer A"], quoted["answer B"]))
    if schema == "judge":
        first, second = (said for _, _, said in _QUOTED.findall(text)[-2:])
        fact = subject_in(_asked(body["messages"][:-1]), facts)
        verdict = compared(fact, first, second)
        return json.dumps({**verdict, "score_a": worth(fact, first), "score_b": worth(fact, second)})
    fact = subject_in(_asked(body["messages"]), facts)
    return UNKNOWN if fact is None else fact.answer


def refined(text: str, facts: Mapping[str, Fact]) -> dict[str, Any]:
    """The verdict on a draft: the right answer, or the draft with a low score where it knows nothing of the matter."""
    quoted = {title: said for _, title, said in _QUOTED.findall(text)}
    fact, draft = subject_in(quoted["conversation"], facts), quoted["draft"]
    answer, score = (draft, 0.0) if fact is None else (fact.answer, 1.0)
    changes = "" if answer == draft else "The draft did not say what is true."
    return {
        "answer": answer, "score": score, "draft_score": worth(fact, draft), "confidence": score, "changes": changes,
        "safety": "safe",
    }  # fmt: skip


def compared(fact: Fact | None, a: str, b: str) -> dict[str, str]:
    """Which of two answers holds the value; a tie where both or neither do."""
    gap = worth(fact, a) - worth(fact, b)
    return {"winner": "TIE" if not gap else "A" if gap > 0 else "B", "reason": "by the value that is true"}


def worth(fact: Fact | None, answer: str) -> float:
    """1 where an answer holds the value and speaks of the subject, else 0."""
    return float(fact is not None and fact.value in answer and fact.subject in answer)


def completion(body: Mapping[str, Any], facts: Mapping[str, Fact]) -> dict[str, Any]:
    """A whole answer in OpenAI's form, with the tokens that it comes to."""
    text = answer_to(body, facts)
    asked = sum(len(str(m["content"]).encode()) for m in body["messages"])
    prompt, said = asked // _BYTES_A_TOKEN + 1, len(text.encode()) // _BYTES_A_TOKEN + 1
    message = {"role": "assistant", "content": text}
    return {
        "id": "scripted", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said},
    }  # fmt: skip


def _asked(messages: Any) -> str:
    return str(next((m["content"] for m in reversed(messages) if m["role"] == "user"), ""))


async def serve(facts: Mapping[str, Fact], port: int) -> None:
    """Serves on a port (0: any free one), which it prints, until it is ended."""
    from aiohttp import web

    async def chat(request: web.Request) -> web.Response:
        return web.json_response(completion(await request.json(), facts))

    app = web.Application(client_max_size=1 << 22)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main(file: Path, port: int) -> None:
    """Serves the facts of a file: a list of objects with the fields of Fact."""
    found = [Fact(**fields) for fields in json.loads(file.read_text())]
    asyncio.run(serve({fact.subject: fact for fact in found}, port))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
