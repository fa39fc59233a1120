"""Settings, the learning rate and the choice of arithmetic."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from dualtail.engine import precision
from dualtail.engine.precision import resolve_precision
from dualtail.engine.settings import FinetuneSettings, learning_rate
from dualtail.errors import InputError
from dualtail.process_group import resolve_device


def flat(**options) -> list[float]:
    return [rate for epoch in rates(**options) for rate in epoch]


def rates(batches: int = 10, **options) -> list[list[float]]:
    settings = FinetuneSettings(**options)
    steps = range(0, batches, settings.accumulation)
    return [
        [learning_rate(settings, epoch, batch, batches) for batch in steps]
        for epoch in range(settings.epochs)
    ]


def test_cosine_once_an_epoch_is_torchs() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for epoch in rates(epochs=10):
        assert len(set(epoch)) == 1
        assert epoch[0] == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_cosine_every_step_falls_from_the_peak() -> None:
    steps = flat(epochs=4, schedule_step="step")
    assert steps[0] == 0.01
    assert all(one > two for one, two in pairwise(steps))
    assert 0 < steps[-1] < 1e-4


@pytest.mark.parametrize("by", ["epoch", "step"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_warm_up_rises_to_the_peak_and_never_starts_at_zero(by: str, accumulation: int) -> None:
    steps = flat(epochs=6, schedule_step=by, warmup_epochs=2, accumulation=accumulation)
    peak = steps.index(max(steps))
    assert steps[0] > 0
    assert max(steps) == pytest.approx(0.01)
    assert steps[: peak + 1] == sorted(steps[: peak + 1])
    assert steps[peak:] == sorted(steps[peak:], reverse=True)


def test_constant() -> None:
    assert set(flat(epochs=3, schedule="constant")) == {0.01}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it should be greater than 0"),
        ({"learning_rate": 0}, "learning_rate is 0; it should be greater than 0"),
        ({"momentum": 1.5}, "momentum is 1.5; it should be less than 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it should be a finite number"),
        ({"accumulation": "2"}, "accumulation is '2'; it should be an integer"),
        ({"schedule": "cosin"}, "schedule is 'cosin'; it should be 'cosine' or 'constant'"),
        ({"precision": "half"}, "precision is 'half'; it should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ({"warmup_epochs": 11}, "warmup_epochs (11) must not exceed epochs (10)"),
        ({"ema_decay": True}, "ema_decay is True; it should be a number"),
        ({"epohcs": 3}, "unknown key epohcs; did you mean epochs?"),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        FinetuneSettings(**options)
    assert str(caught.value) == f"settings: {message}"


def test_differences_leave_out_what_changes_no_weight() -> None:
    base = FinetuneSettings()
    stored = base.changed(checkpoint_minutes=1.0, checkpoint_steps=3).to_dict()
    assert base.differences(stored) == []
    assert base.differences(base.changed(learning_rate=0.02, seed=4).to_dict()) == [
        "learning_rate 0.02 there, 0.01 here",
        "seed 4 there, 0 here",
    ]


class TestPrecision:
    CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

    @pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32")])
    def test_auto(self, monkeypatch: pytest.MonkeyPatch, has: bool, expected: str) -> None:
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has)
        assert resolve_precision("auto", self.CPU) == expected
        assert resolve_precision("auto", self.GPU) == expected
        assert resolve_precision("auto", torch.device("mps")) == "fp32"

    @pytest.mark.parametrize(
        ("flags", "expected"), [("fpu amx_bf16 amx_tile", True), ("fpu avx512_bf16", False)]
    )
    def test_cpuinfo_of_an_older_torch(
        self, tmp_path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
    ) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
        monkeypatch.setattr(precision, "Path", lambda _: cpuinfo)
        monkeypatch.setattr(torch, "cpu", SimpleNamespace())
        precision.cpu_has_bf16.cache_clear()
        assert precision.cpu_has_bf16() is expected
        precision.cpu_has_bf16.cache_clear()

    def test_refused(self) -> None:
        with pytest.raises(InputError, match="fp16 needs a GPU"):
            resolve_precision("fp16", self.CPU)
        with pytest.raises(InputError, match="device tpu7: cannot be used"):
            resolve_device("tpu7")
        with pytest.raises(InputError, match="device meta: computes nothing"):
            resolve_device("meta")
