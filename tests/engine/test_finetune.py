"""The training loop against a hand-written one, its settings, and what it does when things go wrong."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from engine_standins import CLASSES, SyntheticLoader, TinyClassifier, same_bits, state_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dualtail.engine.accelerator import make_accelerator
from dualtail.engine.checkpoint import read_header
from dualtail.engine.finetune import FinetuneResult, finetune
from dualtail.engine.meter import Meter
from dualtail.engine.progress import Progress
from dualtail.engine.settings import FinetuneSettings
from dualtail.engine.training import NotFiniteError
from dualtail.errors import InputError, TrainingError
from dualtail.process_group import ProcessGroup


def settings_with(**options: object) -> FinetuneSettings:
    return FinetuneSettings(**{"epochs": 3, "learning_rate": 0.1, "precision": "fp32", **options})


PLAIN = settings_with()


def run(classifier: nn.Module, settings: FinetuneSettings = PLAIN, loader: object = None, **options: object):
    loss = options.pop("loss", nn.CrossEntropyLoss())
    loader = SyntheticLoader() if loader is None else loader
    return finetune(classifier, loader, loss, settings, device="cpu", **options)


def close(first: nn.Module, second: nn.Module, tolerance: float = 1e-6) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.allclose(one, two, atol=tolerance, rtol=tolerance) for one, two in pairs)


def by_hand(classifier: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """What LIFT's recipe means, in torch's own words: SGD, and a cosine stepped once an epoch."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loader = SyntheticLoader()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(batch.images), batch.labels).backward()
            optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_equals_a_hand_written_loop(name: str) -> None:
    ours, theirs = TinyClassifier(dropout=0.0), TinyClassifier(dropout=0.0)
    trained = [weight for weight in theirs.parameters() if weight.requires_grad]
    if name == "sgd":
        optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4, foreach=False)
    else:
        optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=5e-4, foreach=False)
    by_hand(theirs, optimizer, 3)
    run(ours, FinetuneSettings(epochs=3, optimizer=name, precision="fp32"))
    assert close(ours, theirs)


def test_learns_and_says_so() -> None:
    result = run(TinyClassifier(), settings_with(epochs=8))
    losses = [epoch["loss"] for epoch in result.history]
    assert losses[-1] < 0.3 * losses[0]
    assert result.history[-1]["accuracy"] > 0.9
    assert (result.steps, result.images, result.device, result.precision) == (56, 400, "cpu", "fp32")


def test_a_result_survives_its_record() -> None:
    result = run(TinyClassifier(), evaluate=lambda _: {"macro": 0.25})
    record = json.loads(json.dumps({**result.to_dict(), "backbone": "clip", "second_stage": {"steps": 3}}))
    assert FinetuneResult.from_dict(record) == result
    for key in ("history", "steps"):
        with pytest.raises(InputError, match=f"training record: is no record of a fine-tuning .*{key}"):
            FinetuneResult.from_dict({name: value for name, value in record.items() if name != key})


def test_only_what_requires_a_gradient_changes() -> None:
    classifier = TinyClassifier()
    before = state_of(classifier)
    result = run(classifier)
    changed = {name for name, value in state_of(classifier).items() if not torch.equal(value, before[name])}
    assert changed == {"tuner.weight", "tuner.bias", "head.weight", "head.bias"}
    assert result.num_parameters == 32 * 16 + 16 + 16 * CLASSES + CLASSES
    assert not classifier.training


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(TinyClassifier())
    assert torch.equal(torch.rand(2), expected)


def test_evaluation_does_not_count_as_training_time(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = 0
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 1e6 * evaluations)

    def evaluate(_: nn.Module) -> dict[str, float]:
        nonlocal evaluations
        evaluations += 1
        return {"macro": 0.0}

    result = run(TinyClassifier(), evaluate=evaluate, checkpoint_dir=tmp_path)
    assert 0 < result.seconds < 1e6


def test_numbers_read_in_one_go_are_those_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where reading waits for the device."""
    one_by_one, at_once = TinyClassifier(), TinyClassifier()
    expected = run(one_by_one)
    monkeypatch.setattr(Meter, "full", property(lambda self: len(self.unread) >= 3))
    told: list[Progress] = []
    result = run(at_once, progress=told.append)
    assert [reading.step for reading in told] == [3, 6, 7, 10, 13, 14, 17, 20, 21]
    for one, two in zip(expected.history, result.history, strict=True):
        assert (one["loss"], one["accuracy"]) == (two["loss"], two["accuracy"])
    assert same_bits(state_of(one_by_one), state_of(at_once))


def test_seed_decides_dropout() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        classifier = TinyClassifier()
        run(classifier, settings_with(seed=seed))
        return state_of(classifier)

    assert same_bits(weights(0), weights(0))
    assert not same_bits(weights(0), weights(1))


@pytest.mark.parametrize("accumulation", [2, 3, 10])
def test_accumulation_equals_the_larger_batch(accumulation: int) -> None:
    # 50 images: the last group of an epoch is smaller, and so is its last batch.
    whole, parts = TinyClassifier(dropout=0.0), TinyClassifier(dropout=0.0)
    run(whole, loader=SyntheticLoader(batch_size=4 * accumulation))
    result = run(parts, settings_with(accumulation=accumulation), SyntheticLoader(batch_size=4))
    assert close(whole, parts, 1e-5)
    assert result.images == 150


def test_frozen_parts_need_no_gradient_work() -> None:
    classifier = TinyClassifier()
    run(classifier)
    assert classifier.stem.weight.grad is None


class TestNotFinite:
    def test_names_step_and_samples_and_keeps_the_last_good_state(self, tmp_path) -> None:
        loader = SyntheticLoader()

        class Broken(TinyClassifier):
            """Gives NaN for one image from the second epoch on."""

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                logits = super().forward(images)
                if loader.epoch == 0:
                    return logits
                mark = (images == loader.images[17]).flatten(1).all(1)
                return torch.where(mark[:, None], torch.nan, logits)

        stopped_before = TinyClassifier(dropout=0.0)
        steps_before = self.step_of(17)
        classifier = Broken(dropout=0.0)
        names = [f"class/{row}.png" for row in range(50)]
        with pytest.raises(NotFiniteError, match=r"samples class/17\.png; the state before it") as caught:
            run(classifier, loader=loader, sample_ids=names, checkpoint_dir=tmp_path)
        assert caught.value.sample_ids == ["class/17.png"]
        assert caught.value.step == 7 + steps_before + 1
        assert read_header(tmp_path)["step"] == 7 + steps_before
        self.train_steps(stopped_before, 7 + steps_before)
        assert close(classifier, stopped_before)

    @staticmethod
    def step_of(row: int) -> int:
        loader = SyntheticLoader()
        loader.set_epoch(1)
        return next(step for step, batch in enumerate(loader) if row in batch.index)

    @staticmethod
    def train_steps(classifier: nn.Module, steps: int) -> None:
        def stop(told: Progress) -> None:
            if told.step == steps:
                raise StopIteration

        with pytest.raises(StopIteration):
            run(classifier, progress=stop)

    def test_a_gradient_that_is_not_finite_is_found_too(self) -> None:
        class Explodes(torch.autograd.Function):
            @staticmethod
            def forward(_: object, value: torch.Tensor) -> torch.Tensor:
                return value.clone()

            @staticmethod
            def backward(_: object, gradient: torch.Tensor) -> torch.Tensor:
                return gradient * math.inf

        classifier = TinyClassifier()
        before = state_of(classifier)
        # The very first step: no momentum may come from memory that was never set.
        with pytest.raises(NotFiniteError, match="step 1 ") as caught:
            run(classifier, loss=lambda f, y: Explodes.apply(nn.functional.cross_entropy(f, y)))
        assert len(caught.value.sample_ids) == 8
        assert same_bits(before, state_of(classifier))


@pytest.mark.parametrize(("limit", "fix"), [(3, "batch_size 2 with accumulation 8"), (0, "even one image")])
def test_out_of_memory_says_what_fits(limit: int, fix: str) -> None:
    class Large(TinyClassifier):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > limit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    with pytest.raises(TrainingError, match=f"out of memory with batches of 8 images; {fix}"):
        run(Large(), settings_with(accumulation=2))


def test_a_defect_of_the_model_is_not_taken_for_little_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        run(TinyClassifier(), loss=lambda f, y: (f @ f).sum())


class TestAverage:
    def test_the_average_is_what_is_kept(self) -> None:
        plain, averaged = TinyClassifier(), TinyClassifier()
        steps: list[torch.Tensor] = []
        run(plain, progress=lambda _: steps.append(plain.head.weight.detach().clone()))
        expected = TinyClassifier().head.weight.detach().clone()
        for count, weight in enumerate(steps, start=1):
            expected = torch.lerp(expected, weight, 1 - min(0.9, (1 + count) / (10 + count)))
        run(averaged, settings_with(ema_decay=0.9))
        assert torch.allclose(averaged.head.weight, expected, atol=1e-6)

    def test_the_average_is_what_is_evaluated(self) -> None:
        classifier = TinyClassifier()
        seen: list[torch.Tensor] = []

        def evaluate(model: nn.Module) -> dict[str, float]:
            assert not model.training
            seen.append(model.head.weight.detach().clone())
            return {"macro": 0.0}

        run(classifier, settings_with(ema_decay=0.5), evaluate=evaluate)
        assert torch.equal(seen[-1], classifier.head.weight)


class TestKeep:
    def test_best_by_macro(self) -> None:
        macros, weights = iter([0.1, 0.7, 0.3]), []

        def evaluate(model: nn.Module) -> dict[str, float]:
            weights.append(state_of(model))
            return {"macro": next(macros), "overall": 0.5}

        classifier = TinyClassifier(norm=True)
        result = run(classifier, settings_with(keep="best"), evaluate=evaluate)
        assert result.best_epoch == 2
        assert same_bits(state_of(classifier), weights[1])
        assert [epoch["val"]["macro"] for epoch in result.history] == [0.1, 0.7, 0.3]

    def test_last_is_the_default(self) -> None:
        macros = iter([0.9, 0.7, 0.3])
        classifier, plain = TinyClassifier(), TinyClassifier()
        result = run(classifier, evaluate=lambda _: {"macro": next(macros)})
        run(plain)
        assert (result.best_epoch, result.kept) == (1, "last")
        assert same_bits(state_of(classifier), state_of(plain)), "an evaluation changes nothing"

    def test_best_needs_an_evaluation(self) -> None:
        with pytest.raises(InputError, match="keep: keeping the best epoch needs an evaluation"):
            run(TinyClassifier(), settings_with(keep="best"))
        with pytest.raises(InputError, match="returned no 'macro'"):
            run(TinyClassifier(), settings_with(keep="best"), evaluate=lambda _: {"overall": 1.0})


def test_progress_and_events(tmp_path) -> None:
    told: list[Progress] = []
    run(TinyClassifier(), progress=told.append, events_dir=tmp_path, evaluate=lambda _: {"macro": 0.25})
    assert [reading.step for reading in told] == list(range(1, 22))
    last = told[-1]
    assert (last.epoch, last.epochs, last.steps, last.seconds_left) == (3, 3, 21, 0.0)
    assert last.images_per_second > 0
    assert last.learning_rate == pytest.approx(0.025)
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "train/loss",
        "train/accuracy",
        "train/learning_rate",
        "train/images_per_second",
        "val/macro",
    }
    assert [event.step for event in events.Scalars("val/macro")] == [7, 14, 21]
    assert events.Scalars("train/loss")[-1].value == pytest.approx(last.loss)


def test_resumed_events_have_no_step_twice(tmp_path) -> None:
    def press(told: Progress) -> None:
        if told.step == 9:
            signal.raise_signal(signal.SIGINT)

    options = {"events_dir": tmp_path / "events", "checkpoint_dir": tmp_path / "resume"}
    with pytest.raises(Exception, match="stopped"):
        run(TinyClassifier(), progress=press, **options)
    run(TinyClassifier(), **options)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 22))


def test_the_second_ctrl_c_does_not_wait() -> None:
    def press_twice(_: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(TinyClassifier(), progress=press_twice)
    assert signal.getsignal(signal.SIGINT) is before


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    seen: set[torch.dtype] = set()

    class Watched(TinyClassifier):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            value = super().features(images)
            seen.add(value.dtype)
            return value

    classifier, exact = Watched(dropout=0.0), TinyClassifier(dropout=0.0)
    result = run(classifier, settings_with(precision="bf16"))
    run(exact)
    assert (result.precision, seen) == ("bf16", {torch.bfloat16})
    assert classifier.head.weight.dtype == torch.float32
    assert close(classifier, exact, 0.05)
    assert "forward" not in vars(classifier), "the caller's module is not patched"


class TestLossScaling:
    """What fp16 does on a GPU, with a scaler that works on the CPU."""

    @staticmethod
    def accelerator(scale: float) -> Accelerator:
        accelerator = make_accelerator("cpu", "fp32")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return accelerator

    @pytest.mark.parametrize("clip", [None, 0.1])
    def test_the_scale_cancels(self, clip: float | None) -> None:
        settings = settings_with(gradient_clip=clip, accumulation=2)
        plain, scaled = TinyClassifier(), TinyClassifier()
        run(plain, settings)
        loss = nn.CrossEntropyLoss()
        finetune(scaled, SyntheticLoader(), loss, settings, accelerator=self.accelerator(2.0**10))
        assert close(plain, scaled, 1e-5)

    def test_a_scale_that_overflows_skips_the_step_and_goes_on(self) -> None:
        classifier = TinyClassifier()
        accelerator = self.accelerator(2.0**127)
        loss = nn.CrossEntropyLoss()
        settings = settings_with(learning_rate=1e-4)
        result = finetune(
            classifier, SyntheticLoader(), lambda f, y: 1000 * loss(f, y), settings, accelerator=accelerator
        )
        assert result.steps == 21
        assert accelerator.scaler.get_scale() < 2.0**127
        assert all(weight.isfinite().all() for weight in classifier.parameters())

    def test_a_loss_that_is_not_finite_is_found(self) -> None:
        accelerator, classifier = self.accelerator(2.0**10), TinyClassifier()
        before = state_of(classifier)
        with pytest.raises(NotFiniteError, match="step 1 "):
            finetune(
                classifier, SyntheticLoader(), lambda f, _: f.sum() * math.nan, PLAIN, accelerator=accelerator
            )
        assert same_bits(before, state_of(classifier))


def test_mixing_trains() -> None:
    settings = settings_with(epochs=8, mixup=0.2, cutmix=0.5, mix_probability=0.5)
    assert run(TinyClassifier(), settings).history[-1]["accuracy"] > 0.7


def test_gradient_clip() -> None:
    classifier, start = TinyClassifier(), TinyClassifier()
    settings = FinetuneSettings(
        epochs=1, learning_rate=1.0, momentum=0.0, weight_decay=0.0, gradient_clip=1e-3, precision="fp32"
    )
    run(classifier, settings, SyntheticLoader(count=8))
    moved = [one - two for one, two in zip(classifier.parameters(), start.parameters(), strict=True)]
    assert torch.cat([step.flatten() for step in moved]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_nothing_to_train() -> None:
    with pytest.raises(InputError, match="no parameter"):
        run(TinyClassifier().requires_grad_(False))
    with pytest.raises(InputError, match="no batch"):
        run(TinyClassifier(), loader=SyntheticLoader(count=0))


def test_loader_for_another_number_of_processes() -> None:
    loader = SyntheticLoader()
    loader.plan = SimpleNamespace(group=ProcessGroup(0, 2))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="cut for 2 processes, but 1 run"):
        run(TinyClassifier(), loader=loader)


def test_a_loader_that_gives_less_than_it_said() -> None:
    class Short(SyntheticLoader):
        def __iter__(self):
            yield from list(super().__iter__())[:-2]

    result = run(TinyClassifier(), loader=Short())
    assert (result.steps, len(result.history)) == (15, 3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_is_the_same_training() -> None:
    plain, compiled = TinyClassifier(dropout=0.0), TinyClassifier(dropout=0.0)
    run(plain)
    run(compiled, settings_with(compile=True))
    assert close(plain, compiled, 1e-4)
