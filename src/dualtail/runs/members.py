"""Which members a recipe asks for: backbone times fine-tuning seed, each with a name that is a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dualtail.errors import RecipeError, shown
from dualtail.files import file_digest
from dualtail.runs.recipe import Recipe

_LONGEST_NAME = 200  # bytes; a file system takes 255, and temporary files add to a name


@dataclass(frozen=True)
class BackbonePlan:
    """A foundation model of the run.

    Attributes:
        name: its short name, also its folder's.
        backbone: what the recipe calls it, such as ``open_clip:ViT-B-16/laion2b_s34b_b88k``.
        weights: a checkpoint file, ``"random"`` or None.
        seed: of its weights, where they are random.
        image_size: side of its input, or None for the pre-trained one.
    """

    name: str
    backbone: str
    weights: str | None
    seed: int
    image_size: int | None = None

    def identity(self) -> list[object]:
        """Return what tells its weights from others': the content of files, wherever they lie, or a listed name."""
        library, _, rest = self.backbone.partition(":")
        local = Path(rest)
        if library == "open_clip" and os.path.isdir(rest):
            files = sorted(path for path in local.iterdir() if path.is_file())
            source: object = [library, [[path.name, _digest(path)] for path in files]]
        else:
            source = self.backbone
        weights: object = self.weights
        if self.weights is not None and self.weights != "random":
            weights = _digest(Path(self.weights)) or ["missing", self.weights]
        return [source, weights, self.seed if self.weights == "random" else None, self.image_size]


def _digest(path: Path) -> str | None:
    """Return the sha256 of a file, or None if there is none to read."""
    try:
        return file_digest(path) if path.is_file() else None
    except OSError:
        return None


@dataclass(frozen=True)
class MemberPlan:
    """A fine-tuned backbone: one value of the confounder."""

    name: str
    backbone: BackbonePlan
    seed: int


def plan_members(recipe: Recipe) -> list[MemberPlan]:
    """Return the members of a recipe in its order.

    Raises:
        RecipeError: two members have the same name.

    Example:
        >>> recipe = Recipe(name="x", data={"root": "."}, members=[
        ...     {"backbone": "open_clip:ViT-B-16/laion2b_s34b_b88k", "seeds": [0, 1]}, {"backbone": "timm:a"}])
        >>> [member.name for member in plan_members(recipe)]
        ['ViT-B-16_laion2b_s34b_b88k-seed0', 'ViT-B-16_laion2b_s34b_b88k-seed1', 'a']
    """
    plans: list[MemberPlan] = []
    for number, member in enumerate(recipe.members):
        # The number sets apart random backbones of one architecture.
        plan = BackbonePlan(
            member.name or _short_name(member.backbone, member.weights),
            member.backbone,
            member.weights,
            recipe.seed + number,
            member.image_size,
        )
        if member.name is not None and re.sub(r"[^\w.+-]+", "_", member.name).strip("._") != member.name:
            raise RecipeError(
                f"members.{number}.name {shown(member.name)} cannot name a folder",
                where="recipe",
                fix="use letters, digits, '.', '_', '+' and '-'",
            )
        seeds = member.seeds or [recipe.seed]
        plans += [
            MemberPlan(f"{plan.name}-seed{seed}" if len(seeds) > 1 else plan.name, plan, seed)
            for seed in seeds
        ]
    backbones: dict[str, BackbonePlan] = {}
    for planned in plans:
        if backbones.setdefault(planned.backbone.name, planned.backbone) != planned.backbone:
            raise RecipeError(
                f"two different backbones are called {planned.backbone.name!r}",
                where="recipe",
                fix="give one of them a name, or list its seeds in one entry (seeds: [0, 1])",
            )
    names = [plan.name for plan in plans]
    long = next((name for name in names if len(name.encode()) > _LONGEST_NAME), None)
    if long is not None:
        raise RecipeError(
            f"the name of the member {shown(long)} is too long for a folder",
            where="recipe",
            fix="give it a shorter name",
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(
            f"two members are called {twice!r}",
            where="recipe",
            fix="give one of them a name, or list its seeds in one entry (seeds: [0, 1])",
        )
    return plans


def plan_backbones(members: Sequence[MemberPlan]) -> list[BackbonePlan]:
    """Return the distinct backbones of ``members``, in order."""
    return list(dict.fromkeys(member.backbone for member in members))


def _short_name(backbone: str, weights: str | None) -> str:
    library, _, name = backbone.partition(":")
    short = Path(name).name if library == "open_clip" and Path(name).is_absolute() else name
    short = re.sub(r"[^\w.+-]+", "_", short).strip("._") or "backbone"
    return short if weights in (None, "random") else f"{short}_{Path(str(weights)).stem}"
