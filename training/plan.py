"""Says before a run what it would do, and about how much memory and time it takes. Loads no model, writes nothing."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hivemind.servers.common.courier import Hub, Remote, resolve_courier
from hivemind.training.backend import choose_backend
from hivemind.training.control_set import control_set
from hivemind.training.fitting import planned_steps
from hivemind.training.formatting import Turn
from hivemind.training.hub_data import DEFAULT_LIMIT, DEFAULT_MIXTURE
from hivemind.training.licences import reviewed
from hivemind.training.mixture import load_mixture
from hivemind.training.sft_config import ConfigError, SftConfig

_TOKENS_OF_HUB_SAMPLE: Final = 400
"""A guess for a chat sample of the public sets, used only where nothing was read."""
_CHARACTERS_A_TOKEN: Final = 4
_TOKENS_OF_TEMPLATE: Final = 30
_PROBE_S: Final = 0.5
_EFFICIENCY: Final = 0.7
"""What training reaches of the speed of a bare matrix product; 0.8 was measured with short samples on two cores."""
_LIBRARIES_BYTES: Final = 0.5e9


@dataclass(frozen=True, slots=True)
class BaseSize:
    """What is known of a base model from its file: parameters, layers, widths of the stream and of the inner layer."""

    parameters: int
    layers: int
    hidden: int
    inner: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`samples`, `tokens` a pass, `steps`; `memory_bytes` and `cpu_s` are estimates, None where there is no ground for
    one. `notes`: warnings and what is guessed."""

    backend: str
    reason: str
    samples: int
    heldout: int
    tokens: int
    steps: int
    memory_bytes: float | None
    cpu_s: float | None
    notes: tuple[str, ...]


def plan_run(config: SftConfig) -> Plan:
    """The plan of a run. ConfigError or mixture.BadData where it could not be started."""
    backend, reason = choose_backend(config.backend)
    recipe = config.recipe.on(backend)
    local = replace(config.data, mixture="", hub=())
    samples = heldout = tokens = 0
    notes: list[str] = []
    if local.paths or local.platinum:
        read = load_mixture(local, seed=config.seed, count_tokens=_guess_tokens, max_tokens=recipe.max_seq_length)
        samples, heldout, tokens = len(read.train), len(read.heldout), int(read.card["train"]["tokens"])
        notes += read.card["warnings"]
    if config.data.mixture:
        more = config.data.limit or DEFAULT_LIMIT
        samples, tokens = samples + more, tokens + more * _TOKENS_OF_HUB_SAMPLE
        names = [s.name for s in config.data.hub or DEFAULT_MIXTURE]
        notes.append(f"{', '.join(names)} would be streamed from the hub; their lengths are guessed")
        notes += [f"{n}: the licence {reviewed()[n].licence} is not known to allow commercial use" for n in names
                  if n in reviewed() and reviewed()[n].use == "unknown"]  # fmt: skip
    mean = tokens / max(1, samples)
    share = config.data.replay
    control = control_set()
    samples += min(round(samples * share / (1 - share)), len(control.replay_texts) + len(control.replay_questions))
    steps = planned_steps(samples, round(samples * mean), recipe)
    size = base_size(config) if backend == "cpu" else None
    batch_tokens = recipe.micro_batch * min(mean * 2, recipe.max_seq_length)  # twice: for the longest and padding
    work = steps * recipe.batch_size * (recipe.max_seq_length if recipe.packing else mean)
    return Plan(
        backend, reason, samples, heldout, tokens, steps,
        memory_bytes=_memory(size, recipe.rank, batch_tokens) if size else None,
        cpu_s=work * 4 * size.parameters / (_matrix_flops() * _EFFICIENCY) if size else None,
        notes=tuple(notes),
    )  # fmt: skip


def base_size(config: SftConfig) -> BaseSize | None:
    """The size of a base model in a GGUF file that is here; None for any other."""
    where = resolve_courier(config.base_weights or os.environ.get("HIVEMIND_COURIER", ""))
    if isinstance(where, Hub | Remote) or not where.path.is_file():
        return None
    if where.path.suffix != ".gguf":
        return None
    from gguf import GGUFReader

    reader = GGUFReader(where.path)

    def number(name: str) -> int:
        kind = str(reader.fields["general.architecture"].contents())
        return int(reader.fields[f"{kind}.{name}"].contents())

    parameters = sum(int(t.n_elements) for t in reader.tensors)
    return BaseSize(parameters, number("block_count"), number("embedding_length"), number("feed_forward_length"))


def _memory(size: BaseSize, rank: int, tokens: float) -> float:
    """Bytes: float32 weights; the adapter with its gradient and Adam's two moments; what each layer keeps of each token
    for the way back (about 16 streams and 4 inner ones); the libraries themselves."""
    adapter = size.layers * rank * (8 * size.hidden + 3 * (size.hidden + size.inner))
    kept = tokens * size.layers * (16 * size.hidden + 4 * size.inner) * 4
    return size.parameters * 4 + adapter * 16 + kept + _LIBRARIES_BYTES


def _matrix_flops() -> float:
    """Operations that one thread does in a CPU-second, measured with products of the courier's shape."""
    import torch

    a, b = torch.randn(512, 576), torch.randn(576, 1536)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    began, products = time.process_time(), 0
    while time.process_time() - began < _PROBE_S:
        torch.mm(a, b)
        products += 1
    took = time.process_time() - began
    torch.set_num_threads(before)
    return products * 2 * 512 * 576 * 1536 / took


def _guess_tokens(turns: Sequence[Turn]) -> int:
    return _TOKENS_OF_TEMPLATE + sum(len(t.content) for t in turns) // _CHARACTERS_A_TOKEN


def refuse_overwrite(target: Path, *, force: bool) -> None:
    """ConfigError where a result is there already and nobody said that it may go."""
    if target.exists() and not force:
        raise ConfigError("adapter", f"{target} is there already; --force replaces it")
