"""llama.cpp with its own HTTP server, in this process, on a thread of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ALIAS: Final = "courier"
TEMPERATURE: Final = 0.1
"""Sampling temperature where a request names none: a model this small rambles at llama.cpp's 0.8."""
REPEAT_PENALTY: Final = 1.1
"""Where a request to the base model names none: greedy small models repeat themselves for ever."""
ADAPTER_REPEAT_PENALTY: Final = 1.0
"""The same for an adapter, which was taught when to end. A penalty counts the question's words too, and keeps a model
from giving a learnt answer word for word."""
MAX_TOKENS: Final = 512
"""Tokens of an answer where a request names no limit."""
PROMPT_CACHE_MIB: Final = 512
"""Memory for prompts that were read and wait to be gone on with; llama.cpp would take 8 GiB by and by."""
_LOG_WARNINGS: Final = 2


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What is served and how. `context` is in tokens, over all slots; `adapters` are LoRA adapters as GGUF files;
    `behind`: it loads while another answers, which must not feel it."""

    model: Path
    host: str
    port: int
    threads: int
    slots: int
    context: int
    adapters: tuple[Path, ...] = ()
    behind: bool = False


class Engine:
    """A running engine; `port` is the real one. It serves /v1/chat/completions, /v1/models, /health and the rest of
    llama.cpp's server. Requests above the slots wait; a client that leaves ends its generation."""

    def __init__(self, options: EngineOptions) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(options.model)
        params.model_alias = {ALIAS}
        params.n_ctx, params.n_parallel = options.context, options.slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.hostnames, params.port = [options.host], options.port
        params.sampling.temp, params.sampling.penalty_repeat = TEMPERATURE, REPEAT_PENALTY
        params.n_predict, params.cache_ram_mib = MAX_TOKENS, PROMPT_CACHE_MIB
        params.verbosity = _LOG_WARNINGS
        params.ui = False
        params.fit_params = False  # measures what memory there is by loading twice; the context is given
        # a request names the scale of each; one that names none must get the base model
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in options.adapters]
        self._server = xllamacpp.Server(params)
        self.port = int(self._server.listening_address.rsplit(":", 1)[1])

    def close(self) -> None:
        """Ends the server and frees the model."""
        del self._server
