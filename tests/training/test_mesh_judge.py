"""The Judge by way of a mesh. A scripted server stands for the mesh with its paid model."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hivemind.training.evaluation import JudgeUnavailable
from hivemind.training.formatting import Turn
from hivemind.training.mesh_judge import MeshJudge, find_judge

ASKED = (Turn("user", "What is 2 + 2?"),)


class Mesh(BaseHTTPRequestHandler):
    """Has an arbiter and prefers the answer that says four."""

    def do_GET(self) -> None:
        models = [{"id": "judge", "health": "NOT_CONFIGURED"}, {"id": "arbiter", "health": "HEALTHY"}]
        self._answer({"models": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        quoted = body["messages"][-1]["content"].split("B:\n")
        verdict = "A" if "four" in quoted[0] else "B" if "four" in quoted[1] else "TIE"
        text = json.dumps({"winner": verdict, "reason": body["model"]})
        self._answer({"choices": [{"message": {"content": text}}]})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, data: object) -> None:
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def mesh(home: Path) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Mesh) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        (home / "run").mkdir(exist_ok=True)
        (home / "run" / "mesh.json").write_text(json.dumps({"host": "127.0.0.1", "port": server.server_port}))
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def judge_of(home: Path) -> MeshJudge:
    found = find_judge(home)
    assert found is not None
    return found


def test_the_first_model_that_can_judge_compares_the_answers(tmp_path: Path) -> None:
    with mesh(tmp_path):
        judge = judge_of(tmp_path)
        verdicts = [judge.compare(ASKED, *pair) for pair in (("four", "five"), ("five", "four"), ("six", "five"))]
    assert (judge.alias, verdicts) == ("arbiter", ["A", "B", "TIE"])


def test_without_a_mesh_there_is_no_judge(tmp_path: Path) -> None:
    assert find_judge(tmp_path) is None


def test_a_mesh_that_went_away_is_said_to_be_unavailable(tmp_path: Path) -> None:
    with mesh(tmp_path):
        judge = judge_of(tmp_path)
    with pytest.raises(JudgeUnavailable):
        judge.compare(ASKED, "four", "five")
