"""The training itself: TRL's SFTTrainer over encoded samples, with checkpoints that can be trusted after a kill."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hivemind.training.adapter_files import sync_folder
from hivemind.training.backend import Chosen, Loaded
from hivemind.training.encoding import Encoded
from hivemind.training.run_log import RunLog
from hivemind.training.sft_config import Recipe, SftConfig
from hivemind.training.stopping import StopSwitch

COMPLETE: Final = "complete"
"""The file that says a checkpoint is whole and on the disk; it is written last."""


class LossNotFinite(Exception):
    """The loss became NaN or infinite; nothing of this run is worth keeping."""


def planned_steps(samples: int, tokens: int, recipe: Recipe) -> int:
    """Optimizer steps of a run: as many as the passes take, at most `max_steps`. Packed, rows count instead of samples;
    rows are taken to be full."""
    rows = math.ceil(tokens / recipe.max_seq_length) if recipe.packing else samples
    return max(1, min(recipe.max_steps, math.ceil(rows * recipe.epochs / recipe.batch_size)))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that a kill left half-written are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def fit(
    loaded: Loaded, samples: Sequence[Encoded], config: SftConfig, recipe: Recipe, *, backend: Chosen, steps: int,
    folder: Path, log: RunLog, stop: StopSwitch,
) -> None:  # fmt: skip
    """Trains, going on from the last whole checkpoint below `folder`.

    Ends early where `stop` is wanted or the time is used up, with a checkpoint. Raises LossNotFinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resume_from = last_checkpoint(folder)
    callback = _callback(log, stop, steps=steps, max_train_s=config.max_train_s)
    trainer = make_trainer(
        loaded, samples, config, recipe, backend=backend, steps=steps, folder=folder, callback=callback
    )
    with stop.deferred():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)


def make_trainer(
    loaded: Loaded, samples: Sequence[Encoded], config: SftConfig, recipe: Recipe, *, backend: Chosen, steps: int,
    folder: Path, callback: Any,
) -> Any:  # fmt: skip
    """TRL's trainer over encoded samples, with a callback of transformers; nothing is printed."""
    from transformers import PrinterCallback
    from trl import SFTTrainer

    from datasets import Dataset

    # labels, not a mask: Unsloth's preparation takes them over and would drop a mask unseen
    labels = [[i if learnt else -100 for i, learnt in zip(s.ids, s.mask, strict=True)] for s in samples]
    rows = {"input_ids": [list(s.ids) for s in samples], "labels": labels}
    trainer = SFTTrainer(
        model=loaded.model,
        args=_arguments(config, recipe, backend=backend, steps=steps, folder=folder),
        train_dataset=Dataset.from_dict(rows),
        processing_class=loaded.tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: SftConfig, recipe: Recipe, *, backend: Chosen, steps: int, folder: Path) -> Any:
    import torch
    from trl import SFTConfig as TrlConfig

    cuda = backend == "unsloth"
    bf16 = cuda and torch.cuda.is_bf16_supported()
    return TrlConfig(
        output_dir=str(folder), max_steps=steps, seed=config.seed, data_seed=config.seed, report_to="none",
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.batch_size // recipe.micro_batch,
        learning_rate=recipe.learning_rate, lr_scheduler_type="cosine", warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay, max_grad_norm=recipe.max_grad_norm,
        optim="paged_adamw_8bit" if cuda else "adamw_torch",
        bf16=bf16, fp16=cuda and not bf16, use_cpu=not cuda, gradient_checkpointing=False,  # unsloth brings its own
        max_length=recipe.max_seq_length, packing=recipe.packing,
        logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True,
        save_strategy="steps", save_steps=config.checkpoint_steps, save_total_limit=2, dataloader_pin_memory=cuda,
    )  # fmt: skip


def _callback(log: RunLog, stop: StopSwitch, *, steps: int, max_train_s: float) -> Any:
    """The callback of transformers; a class inside, since its base is a heavy import."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
        def __init__(self) -> None:
            self._pace = _Pace(time.monotonic)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise LossNotFinite(
                    f"the loss became {loss} at step {state.global_step}; a lower learning rate may help"
                )
            speed, step_s = self._pace.step(int(logs.get("num_tokens", 0)))
            left = (steps - state.global_step) * step_s
            log.event(
                "step", step=state.global_step, max_steps=steps, loss=loss, tokens_per_second=round(speed, 1),
                eta_s=round(left, 1),
            )  # fmt: skip

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            late = bool(max_train_s) and self._pace.elapsed_s > max_train_s
            if stop.wanted or late or state.global_step >= steps:
                control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _seal(path)
            log.event("checkpoint", step=state.global_step, path=f"checkpoints/{path.name}")

    return Progress()


class _Pace:
    """Tokens and seconds of steps. The first step of a process, which warms up, counts like the others."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = self._before = clock()
        self._tokens = self._steps = 0

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began

    def step(self, tokens: int) -> tuple[float, float]:
        """Tokens a second of the last step, and seconds of a mean one."""
        now = self._clock()
        speed = (tokens - self._tokens) / max(1e-9, now - self._before)
        self._before, self._tokens, self._steps = now, tokens, self._steps + 1
        return speed, (now - self._began) / self._steps


def _seal(checkpoint: Path) -> None:
    """Brings a checkpoint to the disk, then says so in it."""
    sync_folder(checkpoint)
    (checkpoint / COMPLETE).touch()
    sync_folder(checkpoint)
