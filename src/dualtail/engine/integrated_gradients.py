"""What a model looks at: how much every part of an image adds to the probability of its class.

Integrated gradients need nothing of a model but its gradient, so that transformers and convolutional networks, before
and after any tuning, give maps that can be compared; and they add up: the cells of a map sum to the difference that
the image makes to the score, which is measured with every map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.engine.loaders import Batch, EvalLoader, crop_for
from dualtail.engine.progress import InferenceCallback, PassMeter
from dualtail.errors import InputError
from dualtail.process_group import resolve_device


class Differentiable(Protocol):
    """A classifier or zero-shot classifier: its ``backbone`` normalises images, calling it gives logits."""

    backbone: Any

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits ``(B, C)`` of normalised images ``(B, 3, S, S)``."""


@dataclass(frozen=True)
class AttributionMaps:
    """Maps of one model for ``N`` images, on the CPU, in the order of the loader.

    Attributes:
        maps: ``(N, G, G)`` float32, nats: what each cell of the image adds to ``log p(y | x)``.
        score: ``(N,)`` float32, ``log p(y | x)``.
        baseline: ``(N,)`` float32, ``log p(y | x0)`` of the image without content.
        labels: ``(N,)`` int64, the classes y that the maps speak of.
        index: ``(N,)`` int64, rows in the manifest.
    """

    maps: Tensor
    score: Tensor
    baseline: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def gap(self) -> Tensor:
        """How far each map's sum is from ``score - baseline``, ``(N,)`` in nats: the error of the integral."""
        return (self.maps.sum((1, 2)) - (self.score - self.baseline)).abs()


def attribution_maps(
    models: Mapping[str, Differentiable],
    loader: EvalLoader,
    *,
    crops: Mapping[str, str] | None = None,
    steps: int = 16,
    cells: int = 14,
    device: str | torch.device = "auto",
    progress: InferenceCallback | None = None,
) -> dict[str, AttributionMaps]:
    r"""Return integrated gradients of the true class's log-probability, summed over the cells of a grid.

    .. math:: a_i = (x_i - x^0_i) \int_0^1 \frac{\partial \log p(y \mid x^0 + t (x - x^0))}{\partial x_i} \, dt

    for every pixel and channel i, with the midpoint rule over ``steps`` points. The baseline :math:`x^0` is the
    image's own mean colour everywhere: an image without content.

    Args:
        models: name to model. Modules are moved to ``device`` and put into eval mode; no gradient of theirs changes.
        loader: yields batches with ``images`` (uint8 ``(B, 3, S, S)`` by key), ``labels`` and ``index``.
        crops: model name to the key of its crop. Without it: the model's own name if there is such a key, else the
            only key there is.
        steps: points of the integral; each costs a forward and a backward pass.
        cells: cells of the grid along a side, at most; the largest number that divides S is taken.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        progress: called after each batch.

    Raises:
        InputError: no models, no images, fewer than one step or cell, no crop for a model, several crops of an image.

    Source:
        Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv 1703.01365.

    Example:
        >>> from types import SimpleNamespace
        >>> class Corner(nn.Module):  # sees the upper left quarter alone
        ...     backbone = SimpleNamespace(normalize=lambda images: images.float() / 255)
        ...     def forward(self, images):
        ...         seen = images[:, :, :2, :2].mean((1, 2, 3))
        ...         return torch.stack([seen, torch.zeros_like(seen)], 1)
        >>> images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        >>> images[:, :, 0, 0] = 255
        >>> batch = SimpleNamespace(images={"": images}, labels=torch.tensor([0]), index=torch.tensor([0]))
        >>> loader = type("Loader", (), {"num_samples": 1, "__iter__": lambda self: iter([batch])})()
        >>> attribution_maps({"m": Corner()}, loader, cells=2, device="cpu")["m"].maps.round(decimals=3)
        tensor([[[0.0860, 0.0000],
                 [0.0000, 0.0000]]])
    """
    if not models:
        raise InputError("there is no model to ask", where="models")
    for name, value in (("steps", steps), ("cells", cells)):
        if value < 1:
            raise InputError(f"{name} is {value}", fix="expected at least 1")
    chosen = resolve_device(device)
    for model in models.values():
        if isinstance(model, nn.Module):
            model.to(chosen).eval()
    parts: dict[str, list[list[Tensor]]] = {name: [] for name in models}
    meter = PassMeter(loader.num_samples, progress)
    for batch in loader:
        labels = batch.labels.to(chosen)
        for name, model in models.items():
            images = model.backbone.normalize(_one_crop(name, batch, crops).to(chosen))
            answer = _integrate(model, images, labels, steps, cells)
            parts[name].append([*(part.cpu() for part in answer), batch.labels.cpu(), batch.index.cpu()])
        meter.add(len(batch.index))
    if not meter.done:
        raise InputError("the loader gave no image", where="loader")
    return {
        name: AttributionMaps(*(torch.cat(column) for column in zip(*batches, strict=True)))
        for name, batches in parts.items()
    }


def _one_crop(name: str, batch: Batch, crops: Mapping[str, str] | None) -> Tensor:
    images = crop_for(name, batch, crops)
    if images.ndim != 4:
        raise InputError(
            f"{name!r} gets several crops of an image", where="crops", fix="use a transform of one crop"
        )
    return images


def _integrate(
    model: Differentiable, images: Tensor, labels: Tensor, steps: int, cells: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return maps ``(B, G, G)``, scores and baseline scores ``(B,)`` of normalised images."""
    images = images.detach().float()
    baseline = images.mean((2, 3), keepdim=True).expand_as(images)
    difference = images - baseline
    slope = torch.zeros_like(images)
    with torch.enable_grad():
        for step in range(steps):
            point = (baseline + (step + 0.5) / steps * difference).requires_grad_()
            slope += torch.autograd.grad(_log_probability(model, point, labels).sum(), point)[0]
    with torch.no_grad():
        score, empty = (_log_probability(model, end, labels) for end in (images, baseline))
    return _on_grid((difference * slope / steps).sum(1), cells), score, empty


def _log_probability(model: Differentiable, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).float().log_softmax(1).gather(1, labels[:, None])[:, 0]


def _on_grid(values: Tensor, cells: int) -> Tensor:
    """Sum ``(B, S, S)`` over the cells of the finest grid that divides S and has at most ``cells`` a side."""
    side = values.shape[1]
    grid = max(size for size in range(1, min(cells, side) + 1) if side % size == 0)
    return values.reshape(len(values), grid, side // grid, grid, side // grid).sum((2, 4))


def map_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return for each image the correlation of two models' maps: 1 where they look at the same parts.

    Args:
        first: ``(N, G, G)``.
        second: ``(N, H, H)``; the finer of the two grids is averaged to the coarser one.

    Returns:
        ``(N,)`` float32 in [-1, 1]; NaN for an image where a map is the same everywhere.

    Raises:
        InputError: other shapes.

    Example:
        >>> first = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> map_correlation(first, torch.stack([2 * first[0] + 3])), map_correlation(first, -first)
        (tensor([1.]), tensor([-1.]))
    """
    if first.ndim != 3 or second.ndim != 3 or len(first) != len(second):
        raise InputError(
            f"maps have shapes {tuple(first.shape)} and {tuple(second.shape)}", fix="expected (N, G, G)"
        )
    side = min(first.shape[1], second.shape[1])
    # Cells of two grids that do not nest overlap: the average is then an approximate one.
    flat = [F.adaptive_avg_pool2d(maps[:, None].double(), side).flatten(1) for maps in (first, second)]
    centred = [values - values.mean(1, keepdim=True) for values in flat]
    lengths = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    return ((centred[0] * centred[1]).sum(1) / lengths).clamp(-1, 1).float()
