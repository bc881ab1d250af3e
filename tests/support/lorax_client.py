"""The public `lorax-client` package in an environment of its own: its pins would spoil this one.

As a script (`python lorax_client.py URL ADAPTER`, by that environment's interpreter) it drives a server with the
package as it came, and prints what it got as JSON.
"""

import asyncio
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "lorax-client==0.6.3"
NEEDS = ("aiohttp>=3.14,<4", "pydantic>=2.14,<3", "requests>=2.32,<3")


def lorax_python() -> Path:
    """The interpreter that has the package; the environment is made once."""
    folder = ROOT / ".cache" / "lorax-client"
    python, ready = folder / "bin" / "python", folder / PACKAGE
    if not ready.exists():
        venv.create(folder, clear=True)
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*install, "--no-deps", PACKAGE], check=True)
        subprocess.run([*install, *NEEDS], check=True)
        ready.touch()
    return python


def drive(url: str, adapter_id: str) -> dict[str, Any]:
    """Has the package ask for an answer, whole and as a stream, and for what it must be refused."""
    command = [str(lorax_python()), __file__, url, adapter_id]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _refused(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def _main(url: str, adapter_id: str) -> None:
    from lorax import AsyncClient, Client

    prompt = "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n"
    named = {"adapter_id": adapter_id, "adapter_source": "local", "max_new_tokens": 6}
    client = Client(url)
    whole = client.generate(prompt, **named)
    stream = list(client.generate_stream(prompt, **named))
    asynchronous = asyncio.run(AsyncClient(url).generate(prompt, **named))
    told = {
        "text": whole.generated_text,
        "generated_tokens": whole.details.generated_tokens,
        "tokens": len(whole.details.tokens),
        "base": client.generate(prompt, max_new_tokens=6).generated_text,
        "stream": "".join(r.token.text for r in stream if not r.token.special),
        "stream_text": stream[-1].generated_text,
        "stream_finish": stream[-1].details.finish_reason.value,
        "asynchronous": asynchronous.generated_text,
        "unknown": _refused(lambda: client.generate(prompt, adapter_id="nobody-v000001")),
        "truncate": _refused(lambda: client.generate(prompt, truncate=5)),
        "hub": _refused(lambda: client.generate(prompt, adapter_id=adapter_id, adapter_source="hub")),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    _main(*sys.argv[1:])
