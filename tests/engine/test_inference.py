"""One pass over the images for all members, rows in the manifest's order."""

from __future__ import annotations

import random

import pytest
import torch
from engine_standins import CLASSES, EvalLoader, TinyClassifier, synthetic_images
from torch import Tensor, nn

from dualtail.engine.inference import infer, member_evaluation
from dualtail.engine.progress import InferenceProgress
from dualtail.errors import InputError


def exact(members, loader, **options):
    return infer(members, loader, device="cpu", precision="fp32", **options)


def test_every_member_in_one_pass() -> None:
    one, two, loader = TinyClassifier(0), TinyClassifier(1), EvalLoader()
    outputs = exact({"one": one, "two": two}, loader, crops={"one": "plain", "two": "flipped"})
    images, labels = synthetic_images(50, seed=1)
    assert loader.passes == 1
    with torch.no_grad():
        assert torch.allclose(outputs["one"].logits, one(images), atol=1e-6)
        assert torch.allclose(outputs["two"].logits, two(images.flip(-1)), atol=1e-6)
    for output in outputs.values():
        assert torch.equal(output.labels, labels)
        assert torch.equal(output.index, torch.arange(50))
        assert output.features is None
    assert not one.training, "dropout is off"


def test_a_member_is_asked_for_features_and_logits_at_once() -> None:
    calls = []

    class Watched(TinyClassifier):
        def features(self, images: Tensor) -> Tensor:
            calls.append(len(images))
            return super().features(images)

    outputs = exact({"m": Watched()}, EvalLoader(), crops={"m": "plain"}, features="float16")
    assert sum(calls) == 50
    assert outputs["m"].features.dtype == torch.float16
    assert outputs["m"].features.shape == (50, 16)


def test_images_left_out_are_left_out_of_everything() -> None:
    loader = EvalLoader(left_out=(0, 7, 16, 17, 18, 19, 20, 21, 22, 23, 49))
    whole = exact({"m": TinyClassifier()}, EvalLoader(), crops={"m": "plain"})["m"]
    part = exact({"m": TinyClassifier()}, loader, crops={"m": "plain"}, features="float32")["m"]
    kept = torch.tensor([row for row in range(50) if row not in loader.left_out])
    assert torch.equal(part.index, kept)
    assert torch.equal(part.labels, whole.labels[kept])
    assert torch.allclose(part.logits, whole.logits[kept], atol=1e-6)
    assert len(part) == len(part.features) == 39


def test_rows_that_come_in_another_order_are_put_in_place() -> None:
    loader = EvalLoader()
    batches = list(loader)
    random.Random(0).shuffle(batches)

    class Shuffled:
        num_samples = 50

        def __iter__(self):
            return iter(batches)

    model = TinyClassifier()
    first = exact({"m": model}, loader, crops={"m": "plain"})["m"]
    second = exact({"m": model}, Shuffled(), crops={"m": "plain"})["m"]
    assert torch.equal(first.index, second.index)
    assert torch.allclose(first.logits, second.logits, atol=1e-6)


def test_crops_are_averaged_over_logits() -> None:
    model, loader = TinyClassifier(), EvalLoader(crops=5)
    outputs = exact({"m": model}, loader, crops={"m": "plain"}, features="float32")["m"]
    images, _ = synthetic_images(50, seed=1)
    views = [images.roll(shift, -1) for shift in range(5)]
    with torch.no_grad():
        assert torch.allclose(outputs.logits, torch.stack([model(v) for v in views]).mean(0), atol=1e-5)
        features = torch.stack([model.features(v) for v in views]).mean(0)
    assert torch.allclose(outputs.features, features, atol=1e-5)


def test_any_callable_is_a_member() -> None:
    def pixels(images: Tensor) -> tuple[Tensor, Tensor]:
        return images.float().mean((2, 3)), images.float().flatten(1)[:, :7]

    outputs = exact({"flipped": pixels}, EvalLoader(), features="float32")["flipped"]
    assert (outputs.logits.shape, outputs.features.shape) == ((50, 3), (50, 7))
    with pytest.raises(InputError, match="'flipped' gives no features"):
        exact({"flipped": lambda images: images.float().mean((2, 3))}, EvalLoader(), features="float16")


def test_a_member_without_classes() -> None:
    class FeaturesOnly(nn.Module):
        def features(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3))

        def head(self, features: Tensor) -> Tensor:
            return features.new_empty(len(features), 0)

    outputs = exact({"plain": FeaturesOnly()}, EvalLoader(), features="float32")["plain"]
    assert (outputs.logits.shape, outputs.features.shape) == ((50, 0), (50, 3))


def test_results_on_disk(tmp_path) -> None:
    model = TinyClassifier()
    inside = exact({"plain": model}, EvalLoader(), features="float16")["plain"]
    outside = exact({"plain": model}, EvalLoader(), features="float16", scratch=tmp_path)["plain"]
    assert torch.equal(inside.logits, outside.logits)
    assert torch.equal(inside.features, outside.features)
    assert sorted(file.stat().st_size for file in tmp_path.iterdir()) == [50 * CLASSES * 4, 50 * 16 * 2]


def test_progress() -> None:
    told: list[InferenceProgress] = []
    exact({"plain": TinyClassifier()}, EvalLoader(), progress=told.append)
    assert [step.done for step in told] == [*range(8, 50, 8), 50]
    assert (told[-1].total, told[-1].seconds_left) == (50, 0.0)


def test_bf16_gives_float32_near_the_exact_result() -> None:
    model = TinyClassifier()
    exactly = exact({"plain": model}, EvalLoader())["plain"].logits
    roughly = infer({"plain": model}, EvalLoader(), device="cpu", precision="bf16")["plain"].logits
    assert roughly.dtype == torch.float32
    assert 0 < (roughly - exactly).abs().max() < 0.05


def test_what_a_model_caches_serves_training_afterwards() -> None:
    class Caching(TinyClassifier):
        table: Tensor | None = None

        def features(self, images: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(16)
            return super().features(images) * self.table

    model = Caching()
    exact({"plain": model}, EvalLoader())
    model.train()
    model(synthetic_images(4)[0]).sum().backward()
    assert model.tuner.weight.grad is not None


def test_evaluation_for_training() -> None:
    scores = member_evaluation(EvalLoader(), crop="plain", device="cpu", precision="fp32")(TinyClassifier())
    assert scores.keys() == {"overall", "macro", "worst", "nll"}
    assert 0 <= scores["worst"] <= scores["macro"] <= 1


def test_what_cannot_be_done() -> None:
    with pytest.raises(InputError, match="no member"):
        exact({}, EvalLoader())
    with pytest.raises(InputError, match="no crop 'm' for the member 'm'; the loader has plain, flipped"):
        exact({"m": TinyClassifier()}, EvalLoader())
    with pytest.raises(InputError, match="no crop 'plan'"):
        exact({"m": TinyClassifier()}, EvalLoader(), crops={"m": "plan"})
    with pytest.raises(InputError, match="no image"):
        exact({"plain": TinyClassifier()}, EvalLoader(left_out=tuple(range(50))))
    with pytest.raises(InputError, match="features: unknown kind 'float64'; did you mean 'float16'"):
        exact({"plain": TinyClassifier()}, EvalLoader(), features="float64")
