"""What training costs and brings: `make bench NAME=training`.

facts    16 invented facts in three phrasings each, a fourth held out: losses by CPU-seconds of training, r=16
packing  the same short samples padded to a batch and packed in rows, tokens a CPU-second, for lengths that spread
         little, as chat data does, and widely: what packing saves is the padding, so the spread decides
gpu      Unsloth against plain transformers + peft + TRL on a random 1B Llama, same effective batch; needs CUDA

The control questions and texts are of one hand with those that are replayed, so a text from elsewhere (a licence) is
measured too. CPU-seconds are the process's own, whatever else the machine does. Nothing asserts a time.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.forgetting import control_parts, losses
from tests.support.invented_facts import write_facts

HERE = Path(__file__).resolve().parent
FACTS = 16
GPU_STEPS = 20
LOOK = 5


def main(arguments: list[str]) -> None:
    """Measures, prints tables in Markdown and writes bench/results/training.json."""
    parser = argparse.ArgumentParser(
        prog="training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="facts,packing,gpu")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of packing")
    parser.add_argument("--cpu-seconds", type=float, default=100.0, help="of training in `facts`")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["TQDM_DISABLE"] = "1"
    if options.child:
        print(json.dumps(gpu_child(options.child)))
        return
    results: dict[str, Any] = {}
    wanted = options.only.split(",")
    if "facts" in wanted:
        results["facts"] = facts(options.cpu_seconds, options.seed)
        print(facts_table(results["facts"]), flush=True)
    if "packing" in wanted:
        results["packing"] = packing(options.repeat, options.seed)
        print(packing_table(results["packing"]), flush=True)
    if "gpu" in wanted:
        results["gpu"] = gpu()
        print(gpu_table(results["gpu"]), flush=True)
    write(results)


def facts(limit_s: float, seed: int) -> dict[str, Any]:
    """The curve: trains until the CPU-seconds are used up; measured every five steps, which does not count."""
    import torch

    from hivemind.training.encoding import Encoder, replay
    from hivemind.training.sft_config import CPU_RECIPE

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loaded, train, heldout = _facts_data(Path(folder), seed)
        encoder = Encoder(loaded.tokenizer)
        samples = train + replay(encoder, len(train), 0.25, random.Random(seed))
        parts = _parts(encoder, heldout)
        curve: list[dict[str, float]] = [{"step": 0, "cpu_s": 0.0, **losses(loaded.model, parts, encoder)}]

        def look(step: int, cpu_s: float) -> bool:
            over = cpu_s >= limit_s
            if step % LOOK == 0 or over:
                curve.append({"step": step, "cpu_s": cpu_s, **losses(loaded.model, parts, encoder)})
            return over

        steps = max(LOOK, round(limit_s / 3))  # three CPU-seconds a step were measured first: where the cosine ends
        cpu_s, tokens, _ = _train(loaded, samples, CPU_RECIPE, steps, Path(folder), look)
    return {"curve": curve, "cpu_s": cpu_s, "tokens_per_cpu_s": tokens / cpu_s}


def _facts_data(folder: Path, seed: int) -> tuple[Any, list[Any], list[Any]]:
    from hivemind.training.encoding import Encoder
    from hivemind.training.mixture import load_mixture
    from hivemind.training.sft_config import DataChoice

    taught, tests = write_facts(folder, FACTS, seed)
    loaded = _courier(seed)
    encoder = Encoder(loaded.tokenizer)
    choice = DataChoice(paths=(str(taught),), heldout_paths=(str(tests),), licence="CC0-1.0")
    mixture = load_mixture(choice, seed=seed, count_tokens=encoder.count, max_tokens=512)
    train, heldout = ([encoder.turns(s.turns) for s in part] for part in (mixture.train, mixture.heldout))
    return loaded, train, heldout


def _courier(seed: int) -> Any:
    from hivemind.training.backend import load_trainable
    from hivemind.training.base_model import prepare_base
    from hivemind.training.sft_config import CPU_RECIPE, SftConfig

    base = prepare_base(SftConfig(home=str(HERE.parent / ".cache" / "bench-training")), os.environ)
    return load_trainable("cpu", base, CPU_RECIPE, seed)


def _parts(encoder: Any, heldout: list[Any]) -> dict[str, list[Any]]:
    return {"heldout": heldout, **control_parts(encoder)}


def _train(
    loaded: Any, samples: Sequence[Any], recipe: Any, steps: int, folder: Path, look: Callable[[int, float], bool]
) -> tuple[float, int, int]:
    """Trains by the product's own trainer; `look(step, CPU-seconds so far)` answers whether to stop. CPU-seconds of
    the steps alone, tokens, steps."""
    from transformers import TrainerCallback

    from hivemind.training.fitting import make_trainer
    from hivemind.training.sft_config import SftConfig

    class Watch(TrainerCallback):
        used, tokens, steps, began = 0.0, 0, 0, 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.used += time.process_time() - self.began
            self.steps = state.global_step
            control.should_training_stop = look(state.global_step, self.used) or state.global_step >= steps

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.tokens = int(logs.get("num_tokens", self.tokens))

    watch = Watch()
    config = SftConfig(home=str(folder), checkpoint_steps=100_000)
    trainer = make_trainer(loaded, samples, config, recipe, backend="cpu", steps=steps, folder=folder, callback=watch)
    trainer.train()
    return watch.used, watch.tokens, watch.steps


ROW_TOKENS = 512
SPREADS = (0.5, 1.0, 1.5)
"""Of the logarithm of an answer's length in words; the lengths' median is 25 words at each."""


def packing(repeat: int, seed: int) -> list[dict[str, Any]]:
    """Each spread."""
    return [_packing(repeat, seed, spread) for spread in SPREADS]


def _packing(repeat: int, seed: int, spread: float) -> dict[str, Any]:
    """One pass over short samples of mixed lengths, padded in batches of eight and packed in rows, in turn."""
    import torch

    from hivemind.training.sft_config import CPU_RECIPE

    torch.set_num_threads(1)
    samples = _short_samples(seed, spread)
    tokens = sum(len(s.ids) for s in samples)
    padded = replace(CPU_RECIPE, epochs=1.0)
    packed = replace(padded, packing=True, batch_size=1, micro_batch=1)
    ways = (("padded", padded, len(samples) // 8), ("packed", packed, -(-tokens // ROW_TOKENS) + 1))
    found: dict[str, list[float]] = {"padded": [], "packed": []}
    for _ in range(repeat):
        for name, recipe, steps in ways:
            with tempfile.TemporaryDirectory() as folder:
                cpu_s, seen, _ = _train(_courier(seed), samples, recipe, steps, Path(folder), lambda *_: False)
            found[name].append(seen / cpu_s)
    medians = {name: statistics.median(values) for name, values in found.items()}
    lengths = sorted(len(s.ids) for s in samples)
    return {
        "spread": spread, "samples": len(samples), "shortest": lengths[0], "median": lengths[len(lengths) // 2],
        "longest": lengths[-1], "tokens_per_cpu_s": found, "ratio": medians["packed"] / medians["padded"],
    }  # fmt: skip


def _short_samples(seed: int, spread: float) -> list[Any]:
    """Conversations with log-normal lengths, none longer than a row."""
    from hivemind.training.encoding import Encoder
    from hivemind.training.formatting import Turn

    rng = random.Random(seed)
    encoder = Encoder(_courier(seed).tokenizer)
    words = (HERE.parent / "LICENSE").read_text().split()
    sizes = [max(1, round(rng.lognormvariate(3.2, spread))) for _ in range(64)]
    turns = [(Turn("user", "Continue."), Turn("assistant", " ".join(rng.choices(words, k=size)))) for size in sizes]
    return [replace(s, ids=s.ids[:ROW_TOKENS], mask=s.mask[:ROW_TOKENS]) for s in map(encoder.turns, turns)]


def gpu() -> dict[str, Any]:
    """Both ways in processes of their own, the same model, samples and effective batch."""
    import torch

    if not torch.cuda.is_available():
        return {"skipped": "torch.cuda.is_available() is false: not measured on this machine"}
    found: dict[str, Any] = {"card": torch.cuda.get_device_name()}
    for name in ("plain", "unsloth"):
        command = [sys.executable, str(HERE / "run.py"), "training", "--child", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    found["speed"] = found["unsloth"]["tokens_per_s"] / found["plain"]["tokens_per_s"]
    found["memory"] = found["unsloth"]["peak_bytes"] / found["plain"]["peak_bytes"]
    return found


def gpu_child(name: str) -> dict[str, float]:
    """One way on the GPU: tokens a second after two warm-up steps, and the peak of allocated memory."""
    from hivemind.training.backend import TARGETS, Loaded, load_trainable, wake
    from hivemind.training.base_model import Base
    from hivemind.training.encoding import Encoded
    from hivemind.training.fitting import make_trainer
    from hivemind.training.sft_config import GPU_RECIPE, SftConfig

    wake("unsloth" if name == "unsloth" else "cpu")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            torch.cuda.synchronize()
            if state.global_step == 2:
                self.began = time.perf_counter()
            self.ended = time.perf_counter()

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tokenizer = _random_llama(folder)
        base = Base("random-1b", folder, "")
        rng = random.Random(0)
        ids = [tuple(rng.randrange(10, 40_000) for _ in range(1024)) for _ in range(16 * GPU_STEPS)]
        samples = [Encoded(i, (1,) * len(i)) for i in ids]
        recipe = replace(GPU_RECIPE, max_seq_length=1024, packing=False)
        if name == "unsloth":
            loaded = load_trainable("unsloth", base, recipe, 0)
        else:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
            adapter = LoraConfig(r=16, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
            loaded = Loaded(get_peft_model(model, adapter), tokenizer)
        clock = Clock()
        trainer = make_trainer(
            loaded, samples, SftConfig(home=text), recipe, backend="unsloth", steps=GPU_STEPS, folder=folder / "out",
            callback=clock,
        )  # fmt: skip
        trainer.train()
    tokens = (GPU_STEPS - 2) * recipe.batch_size * 1024
    return {
        "tokens_per_s": tokens / (clock.ended - clock.began), "peak_bytes": float(torch.cuda.max_memory_allocated()),
    }  # fmt: skip


def _random_llama(folder: Path) -> Any:
    """A Llama of the shape of a 1B model with random weights, and the courier's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hivemind.training.base_model import load_tokenizer, prepare_base
    from hivemind.training.sft_config import SftConfig

    home = HERE.parent / ".cache" / "bench-training"
    tokenizer = load_tokenizer(prepare_base(SftConfig(home=str(home)), os.environ).folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=1, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def facts_table(found: dict[str, Any]) -> str:
    """The curve; changes against the untrained model."""
    first = found["curve"][0]
    names = ("heldout", "questions", "text", "elsewhere")
    lines = ["| step | CPU-seconds | " + " | ".join(names) + " |", "| ---: | ---: |" + " ---: |" * len(names)]
    for row in found["curve"]:
        cells = [f"{row[n]:.3f} ({row[n] / first[n] - 1:+.1%})" for n in names]
        lines.append(f"| {row['step']} | {row['cpu_s']:.0f} | " + " | ".join(cells) + " |")
    target = "target: held out at least -35%, the others at most +2%"
    return "\n".join([*lines, "", f"- {found['tokens_per_cpu_s']:.0f} tokens a CPU-second; {target}"])


def packing_table(found: list[dict[str, Any]]) -> str:
    """Both ways and their ratio for each spread."""
    lines = [
        "",
        "| tokens of a sample | padded, tokens a CPU-second | packed | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in found:
        padded, packed = (statistics.median(row["tokens_per_cpu_s"][n]) for n in ("padded", "packed"))
        lengths = f"{row['shortest']} to {row['longest']}, median {row['median']}"
        lines.append(f"| {lengths} | {padded:.0f} | {packed:.0f} | {row['ratio']:.2f} |")
    return "\n".join([*lines, "", "- target: at least 2"])


def gpu_table(found: dict[str, Any]) -> str:
    """Both ways, or why there is nothing to show."""
    if "skipped" in found:
        return f"\n- GPU: {found['skipped']}"
    lines = ["", f"| {found['card']} | tokens/s | peak memory, GB |", "| --- | ---: | ---: |"]
    for name in ("plain", "unsloth"):
        row = found[name]
        lines.append(f"| {name} | {row['tokens_per_s']:.0f} | {row['peak_bytes'] / 1e9:.1f} |")
    speed, memory = f"{found['speed']:.2f} (target: at least 2)", f"{found['memory']:.2f} (target: at most 0.5)"
    return "\n".join([*lines, "", f"- Unsloth to plain: speed {speed}, memory {memory}"])


def write(results: dict[str, Any]) -> None:
    """bench/results/training.json: what this call did not measure stays as it was."""
    import importlib.metadata

    file = HERE / "results" / "training.json"
    file.parent.mkdir(exist_ok=True)
    before = json.loads(file.read_text()) if file.exists() else {}
    machine = {
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
    }  # fmt: skip
    versions = {n: importlib.metadata.version(n) for n in ("torch", "transformers", "peft", "trl")}
    file.write_text(json.dumps({**before, **results, "machine": machine, "versions": versions}, indent=1) + "\n")
