"""Calls of a running mesh over HTTP, as any client would make them. The standard library only: it starts quickly."""

import http.client
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hivemind.cli.home import CommandError


@dataclass(frozen=True, slots=True)
class MeshApi:
    """The mesh at an address. Errors come as CommandError with the mesh's own words."""

    host: str
    port: int
    timeout_s: float = 90.0

    def get(self, path: str) -> Any:
        """The JSON of a GET."""
        return self._json("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a POST."""
        return self._json("POST", path, body)

    def events(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """The server-sent events of a POST as JSON; CommandError if the stream is not whole."""
        connection, answer = self._request("POST", path, body)
        try:
            for raw in answer:
                line = raw.strip()
                if line == b"data: [DONE]":
                    return
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if event.get("error"):
                        raise CommandError(str(event["error"].get("message")))
                    yield event
        finally:
            connection.close()
        raise CommandError("the answer broke off; ask again")

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """The JSON lines of a GET that goes on as long as there is something to tell; CommandError if it breaks off."""
        connection, answer = self._request("GET", path, None)
        try:
            for line in answer:
                if line.strip():
                    yield json.loads(line)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CommandError(f"the answer broke off ({error})") from error
        finally:
            connection.close()

    def _json(self, method: str, path: str, body: Any) -> Any:
        connection, answer = self._request(method, path, body)
        try:
            return json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, body: Any
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get("HIVEMIND_API_KEY")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            cure = "start it with `hivemind up`, or set HIVEMIND_HOME to the folder of the one that runs"
            raise CommandError(f"no mesh answers at {self.host}:{self.port} ({error}); {cure}") from error
        if answer.status >= 400:
            text = _error_text(answer.read())
            connection.close()
            raise CommandError(f"the mesh answered {answer.status}: {text}")
        return connection, answer


def _error_text(body: bytes) -> str:
    try:
        data = json.loads(body)
        error = data.get("error")
        return str(error.get("message") if isinstance(error, dict) else data.get("message"))
    except (ValueError, AttributeError):
        return body[:200].decode(errors="replace") or "no explanation"
