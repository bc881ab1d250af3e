"""Asks the Judge of a running mesh which of two answers is better, with the Router's own prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hivemind.cli.home import CommandError, read_json
from hivemind.cli.http_api import MeshApi
from hivemind.servers.router.judge import SCHEMA, parse_verdict
from hivemind.servers.router.roles import instructed, prompt
from hivemind.training.evaluation import JudgeUnavailable, Winner
from hivemind.training.formatting import Turn

ALIASES: Final = ("judge", "arbiter", "master")
"""Who judges: the first of these that the mesh has."""
_WINNERS: Final[dict[int | None, Winner]] = {1: "A", -1: "B"}


class MeshJudge:
    """Implements evaluation.AnswerJudge. A verdict that cannot be read is a tie."""

    def __init__(self, api: MeshApi, alias: str) -> None:
        self._api, self.alias = api, alias

    def compare(self, turns: Sequence[Turn], a: str, b: str) -> Winner:
        """See evaluation.AnswerJudge; JudgeUnavailable where the mesh does not answer."""
        messages = [{"role": t.role, "content": t.content} for t in turns]
        schema = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
        body = {
            "model": self.alias, "temperature": 0.0, "response_format": schema,
            "messages": instructed(messages, prompt("judge"), f"A:\n{a}", f"B:\n{b}"),
        }  # fmt: skip
        try:
            answer = self._api.post("/v1/chat/completions", body)
            text = answer["choices"][0]["message"]["content"]
        except (CommandError, KeyError, IndexError, TypeError, ValueError) as error:
            raise JudgeUnavailable(str(error)) from error
        verdict = parse_verdict(text or "")
        return _WINNERS.get(verdict.winner, "TIE") if verdict is not None else "TIE"


def find_judge(home: Path) -> MeshJudge | None:
    """The judge of the mesh that runs on a state folder; None where there is no mesh or no model that can judge."""
    mesh = read_json(home / "run" / "mesh.json")
    if not isinstance(mesh, dict):
        return None
    api = MeshApi(str(mesh["host"]), int(mesh["port"]))
    try:
        models: list[dict[str, Any]] = api.get("/api/models")["models"]
    except (CommandError, KeyError, TypeError, ValueError):
        return None
    ready = {m.get("id") for m in models if m.get("health") not in ("NOT_CONFIGURED", "UNHEALTHY")}
    alias = next((a for a in ALIASES if a in ready), None)
    return MeshJudge(api, alias) if alias else None
