"""The online model on the courier's real weights: it learns, and what it hands over the registry takes."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hivemind.servers.adapter_registry.base_model import read_gguf
from hivemind.servers.adapter_registry.validation import check_directory
from hivemind.servers.common.courier import WHEEL_SHA256, wheel_file
from hivemind.training.adapter_files import AdapterMeta
from hivemind.training.formatting import Turn
from tests.support.invented_facts import invented_facts

torch = pytest.importorskip("torch", reason="the extra train is not installed")


def test_a_fact_is_learnt_in_a_few_steps_and_its_adapter_goes_on_from_where_it_was(
    courier: Any, tmp_path: Path
) -> None:
    from hivemind.training.online.model import OnlineModel, Tempo
    from hivemind.training.online.publication import Outbox

    torch.set_num_threads(1)  # as the learner does; more wait for each other on a busy machine
    model = OnlineModel(courier, "", rank=16, seed=0)
    ((town, mayor),) = invented_facts(1, 3)
    answer = Turn("assistant", f"The mayor of {town} is {mayor}.")
    asked = [f"Who is the mayor of {town}?", f"Tell me the name of the mayor of {town}."]
    lessons = [model.encoder.turns([Turn("user", q), answer]) for q in asked]
    other = [model.encoder.turns([Turn("user", f"Which person is mayor in {town}?"), answer])]
    before = model.read(other)[0]

    for _ in range(10):
        model.learn(lessons, [1.0, 1.0], Tempo(rate=2e-3, warm_up=2, slow=0.5))
    with model.as_of(model.slow):
        after = model.read(other)[0]
        meta = AdapterMeta("implementer", "courier", courier.revision, "", 1, 2, "CC0-1.0", {}, {}, scale=0.5)
        Outbox(tmp_path).publish(1, model.model, model.tokenizer, meta, run="r", closed=0.0, outcomes=())

    assert after.surprise < before.surprise / 4
    folder = tmp_path / "publications" / "000001" / "adapter"
    assert check_directory(folder, read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256)).rank == 16
    half = OnlineModel(courier, str(folder), rank=16, seed=1)
    with model.as_of(model.slow, 0.5):
        assert half.read(other)[0].loss == pytest.approx(model.read(other)[0].loss, rel=1e-3)
    shutil.rmtree(folder)
