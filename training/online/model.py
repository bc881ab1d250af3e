"""The model of the online learner: base weights that stay loaded, with one adapter on them whose weights come and go.

Losses are negative log-likelihoods in nats. An answer is `exact` if every token of it is the likeliest one given those
before: that is what greedy decoding would write, and one forward pass tells it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from hivemind.training.backend import TARGETS
from hivemind.training.base_model import Base, load_model, load_tokenizer
from hivemind.training.encoding import Encoded, Encoder
from hivemind.training.online.packing import Pack, pack, packs
from hivemind.training.online.precision import Precision, layers_to_bf16, to_bf16
from hivemind.training.online.starting_point import rank_of, starting_weights

PACK_TOKENS: Final = 512
TOP: Final = 32
"""Of how many tokens a prediction is kept, to tell later how far another one is from it."""
Weights = Mapping[str, Any]
"""The tensors of an adapter by name."""


class LossNotFinite(Exception):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads one sample: loss over its learnt tokens, how many these are, and whether all are foreseen."""

    loss: float
    tokens: int
    exact: bool

    @property
    def surprise(self) -> float:
        """Loss of a token."""
        return self.loss / max(1, self.tokens)


@dataclass(frozen=True, slots=True)
class Opinion:
    """The predictions of a sample's learnt tokens: the likeliest tokens (n, TOP) and the logarithms of their shares."""

    tokens: Any
    logs: Any


@dataclass(frozen=True, slots=True)
class Tempo:
    """How fast weights move. `warm_up`: the first steps, over which the rate grows; `slow`: how much a step keeps of
    the slow weights; `clip`: the longest gradient."""

    rate: float
    warm_up: int
    slow: float
    clip: float = 1.0


class OnlineModel:
    """`champion`: the folder of the adapter in office, empty for the base alone. Starts as the champion does. Whatever
    the champion scales by, an adapter here adds its product as it is. `bf16`: whether its layers compute in that."""

    def __init__(self, base: Base, champion: str, *, rank: int, seed: int, precision: Precision = "fp32") -> None:
        import torch

        self.base, tokenizer = base, load_tokenizer(base.folder)
        self.encoder, self.tokenizer = Encoder(tokenizer), tokenizer
        torch.manual_seed(seed)
        self.rank = rank_of(champion, rank)
        self.model = _with_adapter(load_model(base.folder), self.rank)
        self.bf16 = to_bf16(precision)
        if self.bf16:
            layers_to_bf16(self.model)
        self.model.eval()  # there is no dropout anywhere, and what is measured is what is learnt
        self._live = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._fresh = self.copy()
        self.champion: Weights = starting_weights(champion, self._fresh)
        self.slow: Weights = self.champion
        self._optimizer: Any = None
        self._steps = 0
        self.restart(self.champion)

    def copy(self) -> Weights:
        """The live weights as they are."""
        return {n: p.detach().clone() for n, p in self._live.items()}

    def restart(self, weights: Weights) -> None:
        """Goes on from these weights, fast and slow, as if nothing had been learnt since."""
        import torch

        self._load(weights)
        self.slow = {n: w.clone() for n, w in weights.items()}
        self._optimizer = torch.optim.AdamW(self._live.values(), weight_decay=0.0, betas=(0.9, 0.99))
        self._steps = 0

    def weights_of(self, adapter: str) -> Weights:
        """The adapter in a folder as weights of this one. ConfigError where it does not fit."""
        return starting_weights(adapter, self._fresh)

    def enthrone(self, champion: str) -> None:
        """Takes another adapter for the champion; the live weights stay. ConfigError where it does not fit."""
        self.champion = self.weights_of(champion)

    @property
    def steps(self) -> int:
        """Optimizer steps since these weights began."""
        return self._steps

    @contextmanager
    def as_of(self, weights: Weights, scale: float = 1.0) -> Iterator[None]:
        """The model with other weights, at a share of their strength."""
        fast = self.copy()
        self._load(scaled(weights, scale))
        try:
            yield
        finally:
            self._load(fast)

    def learn(self, samples: Sequence[Encoded], shares: Sequence[float], tempo: Tempo) -> list[Reading]:
        """One optimizer step over samples, each weighing its share; how they were read before it."""
        import torch

        self._optimizer.zero_grad(set_to_none=True)
        readings: list[Reading | None] = [None] * len(samples)
        whole = sum(shares)
        for indices in packs(samples, PACK_TOKENS):
            row = pack([samples[i] for i in indices])
            logits = self._logits(row)
            losses = torch.nn.functional.cross_entropy(logits, row.targets, reduction="none")
            right = logits.detach().argmax(-1) == row.targets
            total = torch.zeros(())
            for i, (begin, end) in zip(indices, row.spans, strict=True):
                total = total + losses[begin:end].mean() * (shares[i] / whole)
                readings[i] = _reading(losses[begin:end].detach(), right[begin:end])
            if not math.isfinite(total.item()):
                raise LossNotFinite(f"the loss became {total.item()} after {self._steps} steps")
            total.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        torch.nn.utils.clip_grad_norm_(self._live.values(), tempo.clip)
        self._steps += 1
        for group in self._optimizer.param_groups:
            group["lr"] = tempo.rate * min(1.0, self._steps / max(1, tempo.warm_up))
        self._optimizer.step()
        with torch.no_grad():
            keep = min(tempo.slow, self._steps / (self._steps + 2))  # at first the slow ones follow quickly
            for name, live in self._live.items():
                self.slow[name].lerp_(live, 1 - keep)
        return [r for r in readings if r is not None]

    def read(self, samples: Sequence[Encoded]) -> list[Reading]:
        """How the live weights read samples."""
        return [reading for reading, _ in self._read(samples, opinions=False)]

    def read_with_opinions(self, samples: Sequence[Encoded]) -> list[tuple[Reading, Opinion]]:
        """The same, with the predictions, for `divergence`."""
        return [(reading, opinion) for reading, opinion in self._read(samples, opinions=True) if opinion is not None]

    def divergence(self, samples: Sequence[Encoded], opinions: Sequence[Opinion]) -> list[tuple[Reading, float]]:
        """How the live weights read samples, and how far they are from the opinions in nats a token.

        The Kullback-Leibler divergence of the opinions to the live predictions over the TOP tokens and the rest as one:
        by the data-processing inequality never more than that over all tokens.
        """
        import torch

        found: list[tuple[Reading, float] | None] = [None] * len(samples)
        with torch.inference_mode():
            for indices in packs(samples, PACK_TOKENS):
                row = pack([samples[i] for i in indices])
                logits = self._logits(row).float()
                logs = logits.log_softmax(-1)
                losses = -logs.gather(1, row.targets[:, None])[:, 0]
                right = logits.argmax(-1) == row.targets
                for i, (begin, end) in zip(indices, row.spans, strict=True):
                    distance = _divergence(opinions[i], logs[begin:end])
                    found[i] = _reading(losses[begin:end], right[begin:end]), distance
        return [f for f in found if f is not None]

    def optimizer_tensors(self) -> dict[str, Any]:
        """The optimizer's state, for a file."""
        state = self._optimizer.state
        found = {"steps": _scalar(self._steps)}
        for name, live in self._live.items():
            if live in state:
                found |= {f"m.{name}": state[live]["exp_avg"], f"v.{name}": state[live]["exp_avg_sq"]}
        return found

    def resume(self, fast: Weights, slow: Weights, optimizer: Mapping[str, Any]) -> None:
        """Goes on where a state was saved."""
        self.restart(fast)
        self.slow = {n: w.clone() for n, w in slow.items()}
        self._steps = int(optimizer["steps"].item())
        for name, live in self._live.items():
            if f"m.{name}" in optimizer:
                self._optimizer.state[live] = {
                    "step": _scalar(self._steps), "exp_avg": optimizer[f"m.{name}"].clone(),
                    "exp_avg_sq": optimizer[f"v.{name}"].clone(),
                }  # fmt: skip

    def fits(self, weights: Weights) -> bool:
        """Whether these are weights of this adapter's shape."""
        return {n: p.shape for n, p in self._live.items()} == {n: w.shape for n, w in weights.items()}

    def _load(self, weights: Weights) -> None:
        import torch

        with torch.no_grad():
            for name, live in self._live.items():
                live.copy_(weights[name])

    def _read(self, samples: Sequence[Encoded], *, opinions: bool) -> list[tuple[Reading, Opinion | None]]:
        import torch

        found: list[tuple[Reading, Opinion | None] | None] = [None] * len(samples)
        with torch.inference_mode():
            for indices in packs(samples, PACK_TOKENS):
                row = pack([samples[i] for i in indices])
                logits = self._logits(row).float()
                losses = torch.nn.functional.cross_entropy(logits, row.targets, reduction="none")
                right = logits.argmax(-1) == row.targets
                logs, tokens = logits.log_softmax(-1).topk(TOP, -1) if opinions else (losses, losses)
                for i, (begin, end) in zip(indices, row.spans, strict=True):
                    kept = Opinion(tokens[begin:end].clone(), logs[begin:end].clone()) if opinions else None
                    found[i] = _reading(losses[begin:end], right[begin:end]), kept
        return [f for f in found if f is not None]

    def _logits(self, row: Pack) -> Any:
        """The predictions that count; the head, a fifth of the work, is spared for all others."""
        import torch

        inner = self.model.get_base_model()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            hidden = inner.get_decoder()(
                input_ids=row.ids, attention_mask=row.mask, position_ids=row.positions, use_cache=False
            )[0]
        return inner.get_output_embeddings()(hidden[0, row.sources].float())


def scaled(weights: Weights, scale: float) -> Weights:
    """The weights of an adapter that adds so much of what it added."""
    if scale == 1.0:
        return weights
    return {n: w * scale if ".lora_B." in n else w for n, w in weights.items()}


def _with_adapter(model: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, adapter)


def _reading(losses: Any, right: Any) -> Reading:
    return Reading(float(losses.sum()), len(losses), bool(right.all()))


def _divergence(opinion: Opinion, logs: Any) -> float:
    import torch

    mine = logs.gather(1, opinion.tokens)
    shares = opinion.logs.exp()
    rest = (1 - shares.sum(-1)).clamp_min(1e-6)
    my_rest = (1 - mine.exp().sum(-1)).clamp_min(1e-6)
    apart = (shares * (opinion.logs - mine)).sum(-1) + rest * (rest.log() - my_rest.log())
    return float(torch.clamp(apart, min=0.0).mean())


def _scalar(value: int) -> Any:
    import torch

    return torch.tensor(float(value))
