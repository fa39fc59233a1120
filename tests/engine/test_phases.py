"""Representation first, then a re-balanced head."""

from __future__ import annotations

import signal

import pytest
import torch
from engine_standins import SyntheticLoader, TinyClassifier, same_bits, state_of

from dualtail.engine.finetune import finetune
from dualtail.engine.phases import Phase, finetune_phases, train_only
from dualtail.engine.settings import FinetuneSettings
from dualtail.errors import InputError, Interrupted

FIRST = FinetuneSettings(epochs=2, learning_rate=0.1, precision="fp32")
SECOND = FinetuneSettings(epochs=2, learning_rate=0.05, precision="fp32", seed=1)


def phases() -> list[Phase]:
    loss = torch.nn.CrossEntropyLoss()
    return [
        Phase("representation", SyntheticLoader(), loss, FIRST),
        Phase("head", SyntheticLoader(seed=5), loss, SECOND, only=("head",)),
    ]


def test_the_second_phase_changes_the_head_alone() -> None:
    alone, both = TinyClassifier(norm=True), TinyClassifier(norm=True)
    finetune(alone, SyntheticLoader(), torch.nn.CrossEntropyLoss(), FIRST, device="cpu")
    results = finetune_phases(both, phases(), device="cpu")
    before, after = state_of(alone), state_of(both)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}, "the statistics of a frozen batch norm are frozen too"
    assert [result.num_parameters for result in results] == [32 * 16 + 16 + 32 + 68, 68]
    assert both.tuner.weight.requires_grad, "the classifier is given back as it was"


@pytest.mark.parametrize(("press", "resumed_from"), [(3, [3, None]), (14 + 5, [14, 5])])
def test_stopped_in_either_phase(tmp_path, press: int, resumed_from: list[int | None]) -> None:
    steps = 0

    def tell(_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == press:
            signal.raise_signal(signal.SIGINT)

    whole, fresh = TinyClassifier(), TinyClassifier()
    finetune_phases(whole, phases(), device="cpu")
    with pytest.raises(Interrupted):
        finetune_phases(TinyClassifier(), phases(), checkpoint_dir=tmp_path, progress=tell, device="cpu")
    results = finetune_phases(fresh, phases(), checkpoint_dir=tmp_path, device="cpu")
    assert [result.resumed_from for result in results] == resumed_from
    assert same_bits(state_of(whole), state_of(fresh))


def test_mistakes() -> None:
    with (
        pytest.raises(InputError, match="nothing of haed trains; choose from head, tuner"),
        train_only(TinyClassifier(), "haed"),
    ):
        pass
    with pytest.raises(InputError, match="same name"):
        finetune_phases(TinyClassifier(), [phases()[0]] * 2)
