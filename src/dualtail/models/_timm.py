"""Builds ``timm:NAME``, and takes apart the timm trunks inside open_clip's models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from timm.models import Beit, Eva, VisionTransformer, VisionTransformerRelPos, get_pretrained_cfg
from torch import Tensor, nn

from dualtail.errors import BackboneError, first_line, nearest_fix
from dualtail.models.activation import replace_quick_gelu
from dualtail.models.blocks import blocks_of
from dualtail.models.parts import RANDOM, Parts, image_spec, quiet, seeded
from dualtail.models.weights import fingerprint, hub_file, load_strict, read_state_dict, unreachable

_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class PooledTrunk(nn.Module):
    """A timm model up to the feature that its classifier would read: pooled, normalised, ``(B, D)``.

    Args:
        model: any timm model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return features of normalised images ``(B, 3, S, S)``."""
        model: Any = self.model
        return model.forward_head(model.forward_features(images), pre_logits=True)


def family_of(trunk: Any) -> str:
    """Return ``timm_vit``, ``timm_relative_vit`` (positions inside the attention) or ``timm_other``."""
    if not blocks_in(trunk):
        return "timm_other"
    inside = isinstance(trunk, (Beit, VisionTransformerRelPos)) or getattr(trunk, "rope", None) is not None
    return "timm_relative_vit" if inside else "timm_vit"


def blocks_in(trunk: Any) -> list[nn.Module]:
    """Return the blocks of a plain vision transformer, ``[]`` for every other architecture."""
    plain = isinstance(trunk, (VisionTransformer, Eva, Beit, VisionTransformerRelPos))
    blocks = list(trunk.blocks) if plain else []
    return blocks if blocks_of(blocks) else []


def feature_dim(model: Any) -> int:
    """Return the width of the feature before the classifier."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def build(name: str, rest: str, *, weights: str | None, seed: int) -> Parts:
    """Return the parts of a timm model; arguments as for open_clip's builder."""
    if not timm.is_model(rest.partition(".")[0]):
        arch = rest.partition(".")[0]
        raise BackboneError(
            f"timm has no architecture {arch!r}",
            where=name,
            fix=nearest_fix(arch, timm.list_models(), "see timm.list_models()"),
        )
    _check_tag(name, rest)
    _check_activation(name, rest)
    with quiet(), seeded(seed):
        model = _with_weights(name, rest, weights)
    digest = fingerprint(model)
    config = resolve_model_data_config(model)
    replace_quick_gelu(model)
    return Parts(
        family=family_of(model),
        visual=PooledTrunk(model.eval()),
        blocks=blocks_in(model),
        image_spec=image_spec(name, config["input_size"][1:], config),
        feature_dim=feature_dim(model),
        fingerprint=digest,
    )


def _check_tag(name: str, rest: str) -> None:
    arch, _, tag = rest.partition(".")
    try:
        get_pretrained_cfg(rest, allow_unregistered=False)
    except RuntimeError:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{arch}.*")]
        raise BackboneError(
            f"timm has no weights {tag!r} for {arch}",
            where=name,
            fix=nearest_fix(tag, tags, f"it has {', '.join(tags) or 'none'}"),
        ) from None


def _check_activation(name: str, rest: str) -> None:
    """Refuse CLIP weights that were trained with QuickGELU in timm's GELU architectures of the same layout."""
    twin = rest.replace("_clip_", "_clip_quickgelu_", 1)
    if twin != rest and "quickgelu" not in rest and timm.models.is_model_pretrained(twin):
        raise BackboneError(
            "these weights were trained with QuickGELU, this architecture computes GELU",
            where=name,
            fix=f"use timm:{twin}",
        )


def _with_weights(name: str, rest: str, weights: str | None) -> nn.Module:
    if weights == RANDOM:
        return _create(rest)
    if weights:
        return _from_file(name, rest, Path(os.path.expanduser(weights)))
    config = get_pretrained_cfg(rest)
    if config is None or not config.has_weights:
        raise BackboneError(
            "timm has no weights for this name", where=name, fix="say `weights: FILE` or `weights: random`"
        )
    if config.hf_hub_id and not config.custom_load:
        names = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_WEIGHTS
        return _from_file(name, rest, hub_file(config.hf_hub_id, names, where=name))
    try:
        return _create(rest, pretrained=True, num_classes=config.num_classes)
    except Exception as error:  # whatever the URL handler raised
        raise unreachable(name, str(config.url), first_line(error)) from error


def _create(rest: str, **options: Any) -> nn.Module:
    model: Any = timm.create_model(rest, **{"num_classes": 0, **options})
    if options.get("num_classes"):
        model.reset_classifier(0)
    return model


def _from_file(name: str, rest: str, path: Path) -> nn.Module:
    state = read_state_dict(path)
    model = _create(rest)
    try:
        load_strict(
            model,
            _without_classifier(state, model),
            where=str(path),
            fix=f"give the complete weights of {name}",
        )
    except BackboneError:
        converted = _by_timm(rest, path)
        if converted is None:
            raise
        return converted
    return model


def _without_classifier(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    classifiers = model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    expected = model.state_dict()
    dropped = {f"{name}.{part}" for name in names for part in ("weight", "bias")} - expected.keys()
    return {name: tensor for name, tensor in state.items() if name not in dropped}


def _by_timm(rest: str, path: Path) -> nn.Module | None:
    """Let timm convert a checkpoint from its authors' naming, completely or not at all."""
    config = get_pretrained_cfg(rest)
    overlay = {"file": str(path), "custom_load": False}
    try:
        return _create(
            rest,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=config.num_classes if config else 0,
        )
    except Exception:  # each architecture's converter fails in its own way; the caller reports the names
        return None
