"""Maps point at what a model uses, and add up to the difference that the image makes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dualtail.engine.integrated_gradients import attribution_maps, map_correlation
from dualtail.errors import InputError

SIZE = 12


class Loader:
    def __init__(self, images: Any, labels: Tensor, batch_size: int = 4) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Any]:
        views = self.images if isinstance(self.images, dict) else {"": self.images}
        for rows in torch.arange(len(self.labels)).split(self.batch_size):
            yield SimpleNamespace(
                images={key: view[rows] for key, view in views.items()}, labels=self.labels[rows], index=rows
            )


def normalize(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


class Linear(nn.Module):
    """Logits of a linear function of the pixels."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.backbone = SimpleNamespace(normalize=normalize)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


class Smooth(nn.Module):
    """A small convolutional network without kinks."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, 5)
        )
        self.backbone = SimpleNamespace(normalize=normalize)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0])


def test_maps_add_up(images: Tensor, labels: Tensor) -> None:
    coarse = attribution_maps({"m": Smooth()}, Loader(images, labels), steps=4, device="cpu")["m"]
    fine = attribution_maps({"m": Smooth()}, Loader(images, labels), steps=64, device="cpu")["m"]
    assert fine.gap.max() < 1e-3
    assert fine.gap.mean() < coarse.gap.mean()
    torch.testing.assert_close(fine.maps.sum((1, 2)), fine.score - fine.baseline, atol=1e-3, rtol=0)


def test_scores_are_the_models(images: Tensor, labels: Tensor) -> None:
    model = Smooth()
    result = attribution_maps({"m": model}, Loader(images, labels), steps=1, device="cpu")["m"]
    expected = model(normalize(images)).log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(result.score, expected.detach())
    assert result.index.tolist() == list(range(6))
    assert result.labels.tolist() == labels.tolist()


def test_maps_show_the_part_that_is_used(images: Tensor) -> None:
    """A model that reads one quarter of the image has nothing elsewhere."""
    weight = torch.zeros(2, 3, SIZE, SIZE)
    weight[0, :, :6, 6:] = 0.1 * torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1))
    model = Linear(weight.flatten(1))
    labels = torch.zeros(6, dtype=torch.int64)
    maps = attribution_maps({"m": model}, Loader(images, labels), cells=2, device="cpu")["m"].maps
    assert maps.shape == (6, 2, 2)
    assert maps[:, 0, 1].abs().min() > 1e-3
    assert maps[:, [0, 1, 1], [0, 0, 1]].abs().max() < 1e-6


def test_what_the_image_lacks_counts_for_nothing(labels: Tensor) -> None:
    """An image of one colour is its own baseline."""
    images = torch.full((6, 3, SIZE, SIZE), 77, dtype=torch.uint8)
    result = attribution_maps({"m": Smooth()}, Loader(images, labels), device="cpu")["m"]
    assert result.maps.abs().max() < 1e-6
    torch.testing.assert_close(result.score, result.baseline)


def test_grid_divides_the_image(images: Tensor, labels: Tensor) -> None:
    for cells, side in ((14, 12), (5, 4), (1, 1)):
        maps = attribution_maps({"m": Smooth()}, Loader(images, labels), cells=cells, steps=1, device="cpu")[
            "m"
        ].maps
        assert maps.shape == (6, side, side)


def test_batches_do_not_matter_and_models_stay_as_they_are(images: Tensor, labels: Tensor) -> None:
    model = Smooth().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = attribution_maps({"m": model}, Loader(images, labels, 1), steps=2, device="cpu")["m"]
    all_at_once = attribution_maps({"m": model}, Loader(images, labels, 6), steps=2, device="cpu")["m"]
    torch.testing.assert_close(one.maps, all_at_once.maps)
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_models_get_their_own_crop(images: Tensor, labels: Tensor) -> None:
    views = {"a": images, "b": 255 - images}
    models = {"first": Smooth(), "second": Smooth()}
    result = attribution_maps(
        models, Loader(views, labels), crops={"first": "a", "second": "b"}, steps=2, device="cpu"
    )
    alone = attribution_maps({"m": Smooth()}, Loader(views["b"], labels), steps=2, device="cpu")["m"]
    torch.testing.assert_close(result["second"].maps, alone.maps)
    assert not torch.allclose(result["first"].maps, result["second"].maps)


def test_correlation_of_maps() -> None:
    maps = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(map_correlation(maps, 3 * maps + 1), torch.ones(5))
    other = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(3))
    summed = other.reshape(5, 4, 2, 4, 2).sum((2, 4))
    torch.testing.assert_close(map_correlation(maps, other), map_correlation(maps, summed))
    pairs = [torch.stack([a.flatten(), b.flatten()]) for a, b in zip(maps, summed, strict=True)]
    expected = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    torch.testing.assert_close(map_correlation(maps, summed), expected)
    assert map_correlation(torch.ones(1, 2, 2), maps[:1]).isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": {}}, "models: there is no model to ask"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"crops": {"m": "x"}}, "crops: there is no crop 'x' for the member 'm'; the loader has a, b"),
    ],
)
def test_mistakes(images: Tensor, labels: Tensor, options: dict[str, Any], message: str) -> None:
    loader = Loader({"a": images, "b": images}, labels)
    arguments: dict[str, Any] = {"models": {"m": Smooth()}, "device": "cpu", **options}
    models = arguments.pop("models")
    with pytest.raises(InputError, match=message):
        attribution_maps(models, loader, **arguments)


def test_several_crops_are_refused(labels: Tensor) -> None:
    images = torch.zeros(6, 5, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(InputError, match="several crops"):
        attribution_maps({"m": Smooth()}, Loader(images, labels), device="cpu")


def test_maps_of_grids_that_do_not_nest_are_averaged_to_the_coarser() -> None:
    fine, coarse = torch.zeros(1, 10, 10), torch.zeros(1, 8, 8)
    fine[0, :5], coarse[0, :4] = 1, 1
    assert map_correlation(fine, coarse).item() > 0.99
    assert map_correlation(fine, -coarse).item() < -0.99


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet"])
def test_real_backbones_before_and_after_tuning(name: str) -> None:
    from dualtail.models.classifier import build_classifier

    family = "adaptformer" if "vit" in name else "none"
    member = build_classifier(name, ["a", "b", "c"], weights="random", tuner=family, head="linear")
    side = member.backbone.image_spec.size
    images = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(4)).to(
        torch.uint8
    )
    loader = Loader(images, torch.tensor([0, 2]))
    result = attribution_maps({"m": member}, loader, steps=32, device="cpu")["m"]
    assert result.maps.shape == (2, 10, 10)
    assert (result.gap <= 0.05 + 0.1 * (result.score - result.baseline).abs()).all()
