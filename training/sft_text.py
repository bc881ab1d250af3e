"""Fine-tunes a text adapter: `python -m hivemind.training.sft_text --run RUN [--data PATH ...]`.

RUN holds a config.json; with flags one is made.

Ends with 0: RUN/adapter is there; 1: failed; 3: told to stop, may be resumed by the same command; 4: rejected by the
gates of the evaluation; 5: configuration or data cannot be used. The reason stands in RUN/log.jsonl and on standard
error.
"""

import argparse
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hivemind.training.adapter_files import AdapterMeta, write_adapter
from hivemind.training.backend import Chosen, Loaded, choose_backend, load_trainable, wake
from hivemind.training.base_model import Base, load_tokenizer, prepare_base
from hivemind.training.encoding import Encoder, replay
from hivemind.training.evaluation import Evaluation, evaluate
from hivemind.training.fitting import LossNotFinite, fit, planned_steps
from hivemind.training.flags import add_config_flags, config_from_flags
from hivemind.training.mesh_judge import find_judge
from hivemind.training.mixture import (
    CARD_FILE,
    BadData,
    Sample,
    load_mixture,
    samples_from_lines,
    samples_to_lines,
)
from hivemind.training.report import write_report
from hivemind.training.run_log import RunLog, heartbeat
from hivemind.training.sft_config import (
    ConfigError,
    Gates,
    Recipe,
    SftConfig,
    check,
    prepare_run,
    read_config,
)
from hivemind.training.stopping import Stopped, StopSwitch

DONE, FAILED, STOPPED, REJECTED, UNUSABLE = 0, 1, 3, 4, 5
ADAPTER: Final = "adapter"
_DATA: Final = "data"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of a run, as it lies in the run's folder, so that a resumed run sees the same."""

    train: tuple[Sample, ...]
    heldout: tuple[Sample, ...]
    first_sequence: int
    last_sequence: int
    licence: str


def main(arguments: list[str] | None = None) -> int:
    """Trains; answers the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hivemind.training.sft_text", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--run", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--role", default="implementer", help="the role that the adapter is for")
    add_config_flags(parser)
    options = parser.parse_args(arguments)
    if options != parser.parse_args(["--run", str(options.run)]):
        config = config_from_flags(options, os.environ, role=options.role, gates=Gates())
        try:
            check(config)
            prepare_run(options.run, config)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return UNUSABLE
    stop = StopSwitch()
    stop.install()
    return train(options.run, stop)


def train(run: Path, stop: StopSwitch) -> int:
    """Trains as config.json says and writes what came of it into the run's folder; answers the exit code."""
    run.mkdir(parents=True, exist_ok=True)
    log = RunLog(run)
    try:
        with heartbeat(run):
            return _train(run, log, stop)
    except Stopped:
        log.event("stopped")
        return STOPPED
    except (ConfigError, BadData) as error:
        return _fail(log, str(error), UNUSABLE)
    except LossNotFinite as error:
        return _fail(log, str(error), FAILED)
    except Exception as error:  # the last place that can tell the Trainer why
        traceback.print_exc()
        return _fail(log, f"{type(error).__name__}: {error}", FAILED)


def _train(run: Path, log: RunLog, stop: StopSwitch) -> int:
    config = read_config(run)
    check(config)
    for left in (*run.glob(f".{ADAPTER}.*"), *run.glob(f".{_DATA}.*")):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    if (run / ADAPTER).is_dir():  # killed between its last two steps
        log.event("done", adapter=ADAPTER)
        return DONE
    backend, reason = choose_backend(config.backend)
    recipe = config.recipe.on(backend)
    _calm(config)
    wake(backend)
    log.event("started", backend=backend, reason=reason, base=config.base, pid=os.getpid())
    base = prepare_base(config, os.environ)
    data = prepare_data(run, config, recipe, base)
    loaded = load_trainable(backend, base, recipe, config.seed)
    encoder = Encoder(loaded.tokenizer)
    samples = [encoder.turns(s.turns) for s in data.train]
    samples += replay(encoder, len(samples), config.data.replay, random.Random(config.seed))
    steps = planned_steps(len(samples), sum(len(s.ids) for s in samples), recipe)
    fit(loaded, samples, config, recipe, backend=backend, steps=steps, folder=run / "checkpoints", log=log, stop=stop)
    stop.check()
    log.event("evaluating")
    heldout = [s.turns for s in data.heldout]
    judge = find_judge(Path(config.home)) if config.judge else None
    evaluation = evaluate(loaded.model, encoder, heldout, champion=config.champion, gates=config.gates, judge=judge)
    write_report(run, evaluation, log.losses())
    log.event("evaluated", passed=evaluation.passed, **evaluation.figures())
    return _conclude(run, log, evaluation, loaded, _meta(config, recipe, base, data, evaluation, backend))


def _conclude(run: Path, log: RunLog, evaluation: Evaluation, loaded: Loaded, meta: AdapterMeta) -> int:
    if not evaluation.passed:
        reason = evaluation.failures()
        log.event("rejected", reason=reason)
        print(f"rejected: {reason}", file=sys.stderr)
        _clear(run)
        return REJECTED
    write_adapter(loaded.model, loaded.tokenizer, run / ADAPTER, meta)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    log.event("done", adapter=ADAPTER, peak_memory_bytes=peak, cpu_s=round(time.process_time(), 1))
    _clear(run)
    return DONE


def prepare_data(run: Path, config: SftConfig, recipe: Recipe, base: Base) -> PreparedData:
    """The data of the run: what was prepared before, else made now; data_card.json tells of it."""
    folder = run / _DATA
    if not folder.is_dir():
        encoder = Encoder(load_tokenizer(base.folder))
        mixture = load_mixture(
            config.data, seed=config.seed, count_tokens=encoder.count, max_tokens=recipe.max_seq_length
        )
        aside = run / f".{_DATA}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, part in (("train", mixture.train), ("heldout", mixture.heldout)):
            with (aside / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(samples_to_lines(part))
        facts = [mixture.first_sequence, mixture.last_sequence, mixture.licence]
        (aside / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        (run / CARD_FILE).write_text(json.dumps(mixture.card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.rename(folder)
    parts = {}
    for name in ("train", "heldout"):
        with (folder / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as file:
            parts[name] = tuple(samples_from_lines(file))
    return PreparedData(parts["train"], parts["heldout"], *json.loads((folder / "facts.json").read_text()))


def _calm(config: SftConfig) -> None:
    """Low priority and a fixed number of threads, so that requests are served while this trains."""
    import torch

    os.nice(max(0, config.niceness - os.nice(0)))
    torch.set_num_threads(config.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _meta(
    config: SftConfig, recipe: Recipe, base: Base, data: PreparedData, evaluation: Evaluation, backend: Chosen
) -> AdapterMeta:
    return AdapterMeta(
        role=config.role, base_model=base.id, base_revision=base.revision, parent=config.parent,
        first_sequence=data.first_sequence, last_sequence=data.last_sequence, data_licence=data.licence,
        evaluation=evaluation.figures(),
        hyper_parameters={**asdict(recipe), "seed": config.seed, "backend": backend},
        scale=evaluation.scale,
    )  # fmt: skip


def _clear(run: Path) -> None:
    """The texts that were learnt and the checkpoints are not kept: what is forgotten later must not lie about here."""
    for name in (_DATA, "checkpoints"):
        shutil.rmtree(run / name, ignore_errors=True)


def _fail(log: RunLog, reason: str, code: int) -> int:
    sentence = " ".join(reason.split())
    log.event("failed", reason=sentence)
    print(sentence, file=sys.stderr)
    return code


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main())
