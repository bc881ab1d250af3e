"""What an adapter has cost the small model elsewhere: losses on questions and texts that are never trained on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent


def deltas(adapter: Path) -> Mapping[str, float]:
    """The rise of the loss against the base model, as a share: `questions` and `text` of hivemind's control set, and
    `elsewhere`, a licence that nobody here has written."""
    import torch
    from peft import PeftModel

    from hivemind.training.base_model import load_model, load_tokenizer, prepare_base
    from hivemind.training.encoding import Encoder
    from hivemind.training.sft_config import SftConfig

    torch.set_num_threads(1)
    base = prepare_base(SftConfig(home=str(HERE.parent / ".cache" / "bench-training")), os.environ)
    model = PeftModel.from_pretrained(load_model(base.folder), adapter)
    encoder = Encoder(load_tokenizer(base.folder))
    with model.disable_adapter():
        before = losses(model, control_parts(encoder), encoder)
    after = losses(model, control_parts(encoder), encoder)
    return {name: after[name] / before[name] - 1 for name in before}


def control_parts(encoder: Any) -> dict[str, list[Any]]:
    """What is never trained on, encoded."""
    from hivemind.training.control_set import control_set

    control = control_set()
    licence = (HERE.parent / "LICENSE").read_text().split("\n\n")
    elsewhere = [" ".join(p.split()) for p in licence if len(p) > 300][:8]
    return {
        "questions": [encoder.turns(t) for t in control.control_questions],
        "text": [encoder.text(t) for t in control.control_texts],
        "elsewhere": [encoder.text(t) for t in elsewhere],
    }


def losses(model: Any, parts: Mapping[str, list[Any]], encoder: Any) -> dict[str, float]:
    """Mean loss in nats a token by part; the model is left as it trains or not."""
    from hivemind.training.evaluation import score

    training = model.training
    model.eval()
    found = {name: score(model, samples, encoder.tokenizer.pad_token_id).loss for name, samples in parts.items()}
    model.train(training)
    return found
