"""Full fine-tuning of a tower."""

from __future__ import annotations

import torch
from torch import Tensor

from dualtail.models.tuners.base import EVERY, BackboneTuner, Site


class Full(BackboneTuner):
    """Trains every parameter that the features depend on.

    In a vision tower, dropout and batch statistics follow ``train()``; the statistics are saved with the parameters.

    Args:
        site: where it goes.
    """

    name = "full"
    families = EVERY

    def __init__(self, site: Site) -> None:
        super().__init__(site, site.tower_parameters())
        self._statistics: dict[str, Tensor] = {}
        if site.tower == "vision":
            self._follow_training(site)

    def _follow_training(self, site: Site) -> None:
        backbone = site.backbone
        self._statistics = backbone.tower_statistics()
        original = {name: value.clone() for name, value in self._statistics.items()}
        backbone.trains_modules = True
        self.on_detach(backbone.freeze_modules)
        self.on_detach(lambda: _put_back(backbone.tower_statistics(), original))

    def extra_state(self) -> dict[str, Tensor]:
        """Return the vision tower's running statistics, if it has any."""
        return dict(self._statistics)


@torch.no_grad()
def _put_back(statistics: dict[str, Tensor], original: dict[str, Tensor]) -> None:
    for name, value in statistics.items():
        value.copy_(original[name])
