"""Measures a trained adapter against the base model and the champion; gates decide whether it may be registered.

Losses are mean negative log-likelihoods in nats of a token; accuracies are the shares of answer tokens that the model
would have chosen itself, given those before. Base, champion and candidate share one copy of the base's weights.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from hivemind.servers.engine.engine import REPEAT_PENALTY
from hivemind.training.control_set import control_set
from hivemind.training.encoding import Encoded, Encoder
from hivemind.training.formatting import Turn
from hivemind.training.sft_config import Gates

PARTS: Final = ("heldout", "questions", "text")
"""What is measured: the held-out samples, the control questions, the control texts."""
SCALES: Final = (1.0, 0.75, 0.5, 0.25)
SAMPLES: Final = 3
JUDGED: Final = 12
"""Held-out questions that are answered: without a judge, and for one."""
SAMPLE_TOKENS: Final = 48
_FORGETTING: Final = ("rise of the loss on unrelated questions", "rise of the loss on plain text")
_BATCH_TOKENS: Final = 1024
_CHAMPION: Final = "champion"

Winner = Literal["A", "B", "TIE"]


class JudgeUnavailable(Exception):
    """The judge cannot be asked; the evaluation goes on without it."""


class AnswerJudge(Protocol):
    """Compares two answers to one conversation; may raise JudgeUnavailable."""

    def compare(self, turns: Sequence[Turn], a: str, b: str) -> Winner:
        """The better one; the caller asks in both orders."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss in nats a token, share of tokens predicted right, and how many tokens there were."""

    loss: float
    accuracy: float
    tokens: int


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """What base and candidate answer to a held-out question, and seconds a token each took."""

    question: str
    expected: str
    base: str
    candidate: str
    base_token_s: float
    candidate_token_s: float


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate: what was measured, the limit, and whether it holds."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured. `scores` by who (`base`, `champion`, `candidate`) and part; `win_rate` is None without a
    judge; `scale`: how much of the adapter was judged, and is to be served."""

    scores: Mapping[str, Mapping[str, Score]]
    samples: tuple[SampleAnswer, ...]
    win_rate: float | None
    gates: tuple[GateResult, ...]
    scale: float = 1.0

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(g.passed for g in self.gates)

    def failures(self) -> str:
        """The gates that do not hold, as a sentence."""
        return "; ".join(f"{g.name} is {g.value:.4g}, the limit is {g.limit:.4g}" for g in self.gates if not g.passed)

    def figures(self) -> dict[str, float]:
        """The figures that go with the adapter, by name."""
        found = {
            f"{who}_{part}_{name}": value
            for who, parts in self.scores.items()
            for part, score in parts.items()
            for name, value in (("loss", score.loss), ("accuracy", score.accuracy))
        }
        found["scale"] = self.scale
        return found if self.win_rate is None else {**found, "win_rate": self.win_rate}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


def evaluate(
    model: Any, encoder: Encoder, heldout: Sequence[Sequence[Turn]], *, champion: str, gates: Gates,
    judge: AnswerJudge | None = None,
) -> Evaluation:  # fmt: skip
    """Measures a PEFT model whose active adapter is the candidate. `champion`: a folder, empty for none.

    A candidate that forgets too much is tried at the smaller scales of SCALES, and judged at the largest that passes;
    the model is left at that scale, in evaluation mode.
    """
    control = control_set()
    parts = {
        "heldout": [encoder.turns(t) for t in heldout],
        "questions": [encoder.turns(t) for t in control.control_questions],
        "text": [encoder.text(t) for t in control.control_texts],
    }
    model.eval()

    def measured() -> dict[str, Score]:
        return {part: score(model, samples, encoder.tokenizer.pad_token_id) for part, samples in parts.items()}

    scores: dict[str, Mapping[str, Score]] = {}
    with model.disable_adapter():
        scores["base"] = measured()
    if champion:
        with _champion_active(model, champion):
            scores["champion"] = measured()
    scale, scores["candidate"] = _largest_that_passes(model, measured, scores, gates)
    set_scale(model, scale)
    count = SAMPLES if judge is None else JUDGED
    samples = tuple(sample_answer(model, encoder, turns) for turns in heldout[:count])
    win_rate = _win_rate(judge, heldout, samples) if judge is not None else None
    return Evaluation(scores, samples, win_rate, check_gates(scores, win_rate, gates), scale)


def score(model: Any, samples: Sequence[Encoded], pad_id: int) -> Score:
    """Loss and accuracy of a model over the learnt tokens of samples."""
    import torch

    base = model.get_base_model()
    loss, right, tokens = 0.0, 0, 0
    with torch.inference_mode():
        for batch in _batches(samples):
            ids, attention, labels = (t.to(base.device) for t in _tensors(batch, pad_id))
            hidden = base.get_decoder()(input_ids=ids, attention_mask=attention, use_cache=False)[0]
            targets = labels[:, 1:]
            learnt = targets != -100
            logits = base.get_output_embeddings()(hidden[:, :-1][learnt]).float()
            loss += torch.nn.functional.cross_entropy(logits, targets[learnt], reduction="sum").item()
            right += int((logits.argmax(-1) == targets[learnt]).sum())
            tokens += int(learnt.sum())
    return Score(loss / max(1, tokens), right / max(1, tokens), tokens)


def sample_answer(model: Any, encoder: Encoder, turns: Sequence[Turn]) -> SampleAnswer:
    """Greedy answers of base and candidate to the last question of a conversation."""
    last = max(i for i, t in enumerate(turns) if t.role == "assistant")
    asked = [{"role": t.role, "content": t.content} for t in turns[:last]]
    with model.disable_adapter():
        base, base_s = _generate(model, encoder.tokenizer, asked)
    candidate, candidate_s = _generate(model, encoder.tokenizer, asked)
    return SampleAnswer(turns[last - 1].content, turns[last].content, base, candidate, base_s, candidate_s)


def check_gates(
    scores: Mapping[str, Mapping[str, Score]], win_rate: float | None, gates: Gates
) -> tuple[GateResult, ...]:
    """Every gate that can be checked. Changes are shares of the loss compared with."""
    found = [
        _at_least("held-out gain over the base", -_change(scores, "base", "heldout"), gates.min_gain),
        _at_most(_FORGETTING[0], _change(scores, "base", "questions"), gates.max_questions),
        _at_most(_FORGETTING[1], _change(scores, "base", "text"), gates.max_text),
    ]
    if "champion" in scores:
        change = _change(scores, "champion", "heldout")
        found.append(_at_most("held-out loss over the champion", change, gates.max_against_champion))
    if win_rate is not None:
        found.append(_at_least("win rate against the base", win_rate, gates.min_win_rate))
    return tuple(found)


def set_scale(model: Any, scale: float) -> None:
    """Serves the active adapter at a share of its strength; 1 is as it was trained."""
    name = model.active_adapter
    strength = model.peft_config[name].lora_alpha / model.peft_config[name].r
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict) and name in module.scaling:
            module.scaling[name] = strength * scale


def _largest_that_passes(
    model: Any, measured: Callable[[], dict[str, Score]], scores: Mapping[str, Mapping[str, Score]], gates: Gates
) -> tuple[float, dict[str, Score]]:
    """A scale and the candidate's scores at it: the largest of SCALES that passes, else 1. Only forgetting is mended by
    a smaller one."""
    first: dict[str, Score] = {}
    for scale in SCALES:
        set_scale(model, scale)
        found = measured()
        first = first or found
        results = check_gates({**scores, "candidate": found}, None, gates)
        if all(g.passed for g in results):
            return scale, found
        if all(g.passed for g in results if g.name in _FORGETTING):
            break
    return 1.0, first


def _at_least(name: str, value: float, limit: float) -> GateResult:
    return GateResult(name, value, limit, value >= limit)


def _at_most(name: str, value: float, limit: float) -> GateResult:
    return GateResult(name, value, limit, value <= limit)


def _change(scores: Mapping[str, Mapping[str, Score]], against: str, part: str) -> float:
    return scores["candidate"][part].loss / max(1e-9, scores[against][part].loss) - 1


@contextmanager
def _champion_active(model: Any, folder: str) -> Iterator[None]:
    active = model.active_adapter
    model.load_adapter(Path(folder), _CHAMPION)
    try:
        model.set_adapter(_CHAMPION)
        yield
    finally:
        model.set_adapter(active)
        model.delete_adapter(_CHAMPION)


def _batches(samples: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Samples of like length together, about _BATCH_TOKENS at a time."""
    batch: list[Encoded] = []
    for sample in sorted(samples, key=lambda s: len(s.ids)):
        if batch and (len(batch) + 1) * len(sample.ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _tensors(batch: Sequence[Encoded], pad_id: int) -> tuple[Any, Any, Any]:
    import torch

    width = max(len(s.ids) for s in batch)
    gaps = [width - len(s.ids) for s in batch]
    ids = [[*s.ids, *[pad_id] * gap] for s, gap in zip(batch, gaps, strict=True)]
    attention = [[1] * len(s.ids) + [0] * gap for s, gap in zip(batch, gaps, strict=True)]
    labels = [
        [i if learnt else -100 for i, learnt in zip(s.ids, s.mask, strict=True)] + [-100] * gap
        for s, gap in zip(batch, gaps, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(attention), torch.tensor(labels)


def _generate(model: Any, tokenizer: Any, asked: list[dict[str, str]]) -> tuple[str, float]:
    """The greedy answer, repeating itself as little as when it is served, and seconds a token."""
    import torch

    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=SAMPLE_TOKENS, do_sample=False, repetition_penalty=REPEAT_PENALTY)
    new = out[0][inputs["input_ids"].shape[1] :]
    seconds = (time.perf_counter() - began) / max(1, len(new))
    return str(tokenizer.decode(new, skip_special_tokens=True)), round(seconds, 4)


def _win_rate(judge: AnswerJudge, heldout: Sequence[Sequence[Turn]], samples: Sequence[SampleAnswer]) -> float | None:
    """The candidate's share of wins over the base, ties half; a pair whose orders disagree is a tie. None where the
    judge cannot be asked."""
    points = 0.0
    try:
        for turns, sample in zip(heldout, samples, strict=False):
            first = judge.compare(turns[:-1], sample.candidate, sample.base)
            second = judge.compare(turns[:-1], sample.base, sample.candidate)
            points += 1.0 if (first, second) == ("A", "B") else 0.0 if (first, second) == ("B", "A") else 0.5
    except JudgeUnavailable:
        return None
    return points / max(1, len(samples))
