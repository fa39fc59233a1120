"""Builds ``open_clip:ARCH/TAG``, ``open_clip:DIR`` and ``open_clip:hf-hub:OWNER/NAME@REVISION``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from dualtail.errors import BackboneError, first_line, nearest_fix
from dualtail.files import read_text
from dualtail.models.activation import replace_quick_gelu
from dualtail.models.attention import replace_attention
from dualtail.models.foreign import check_model_cfg, make_tokenizer, refuse_own_code, without_own_code
from dualtail.models.parts import RANDOM, Parts, image_spec, quiet, seeded
from dualtail.models.projection import AttentionPoolFeature, Projection, linear_projection
from dualtail.models.weights import fingerprint, hub_file, load_strict, read_state_dict, unreachable

CONFIG_FILE = "open_clip_config.json"
_DIR_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_HUB = "hf-hub:"
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class _Source:
    """What is known about a model before it is built."""

    model_cfg: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Callable[[], Path] | None  # finds the file that belongs to the name, when there is one
    folder: Path | None = None  # of a local model, whose tokenizer lies in it too
    revisions: dict[str, str] = field(
        default_factory=dict
    )  # of repositories on the hub, where one was asked for


def build(name: str, rest: str, *, weights: str | None, seed: int) -> Parts:
    """Return the parts of an open_clip model.

    Args:
        name: the full backbone name, for messages.
        rest: what follows ``open_clip:``.
        weights: a file, ``"random"``, or None for those that the name stands for.
        seed: of random weights.
    """
    source = _source(name, rest)
    # Weights first: a name without them is refused before anything large is built.
    path = None if weights == RANDOM else Path(weights) if weights else _own_weights(name, source)
    state = None if path is None else read_state_dict(path)
    with quiet(), seeded(seed):
        model = _construct(name, source)
    if state is not None:
        load_strict(
            model,
            _in_todays_names(model, state),
            where=str(path),
            fix=f"give the complete weights of {name}, of the same architecture",
        )
    digest = fingerprint(model)
    return _take_apart(name, model.eval(), source, digest)


def _source(name: str, rest: str) -> _Source:
    if rest.startswith(_HUB):
        return _hub_source(name, rest.removeprefix(_HUB))
    if os.path.isdir(os.path.expanduser(rest)) or rest.startswith(("/", "./", "../", "~")):
        return _local_source(name, Path(os.path.expanduser(rest)))
    return _listed_source(name, rest)


def _local_source(name: str, folder: Path) -> _Source:
    config_file = folder / CONFIG_FILE
    if not config_file.is_file():
        what = "has no " + CONFIG_FILE if folder.is_dir() else "no such folder"
        raise BackboneError(
            what, where=name, fix=f"a local backbone is a folder with {CONFIG_FILE} and its weights"
        )
    config = _read_config(config_file)
    refuse_own_code(folder)
    weights = next((folder / file for file in _DIR_WEIGHTS if (folder / file).is_file()), None)
    return _Source(
        model_cfg=config["model_cfg"],
        preprocess=asdict(PreprocessCfg()) | config.get("preprocess_cfg", {}),
        weights=(lambda: weights) if weights else None,
        folder=folder,
    )


def _hub_source(name: str, rest: str) -> _Source:
    repository, _, revision = rest.partition("@")
    config = _read_config(hub_file(repository, [CONFIG_FILE], where=name, revision=revision or None))
    return _Source(
        model_cfg=config["model_cfg"],
        preprocess=asdict(PreprocessCfg()) | config.get("preprocess_cfg", {}),
        weights=lambda: hub_file(repository, _HUB_WEIGHTS, where=name, revision=revision or None),
        revisions={repository: revision} if revision else {},
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(path))
        dict(config["model_cfg"]), dict(config.get("preprocess_cfg", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BackboneError(
            f"cannot be used ({type(error).__name__}: {error})",
            where=str(path),
            fix='expected {"model_cfg": {...}, "preprocess_cfg": {...}}',
        ) from error
    check_model_cfg(config["model_cfg"], str(path))
    return config


def _listed_source(name: str, rest: str) -> _Source:
    arch, _, tag = rest.partition("/")
    model_cfg = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if model_cfg is None:
        raise BackboneError(
            f"open_clip has no architecture {arch!r} and there is no such folder",
            where=name,
            fix=nearest_fix(arch, open_clip.list_models(), "see open_clip.list_models()"),
        )
    preprocess = asdict(PreprocessCfg())
    if not tag:
        return _Source(model_cfg, preprocess, None)
    pretrained = open_clip.get_pretrained_cfg(arch, tag)
    if not pretrained:
        raise BackboneError(
            f"open_clip has no weights {tag!r} for {arch}", where=name, fix=_tag_advice(arch, tag)
        )
    # The converse needs no check: open_clip lists under its QuickGELU architectures only weights trained so.
    if pretrained.get("quick_gelu") and not model_cfg.get("quick_gelu"):
        raise BackboneError(
            f"the weights {tag!r} were trained with QuickGELU, this architecture computes GELU",
            where=name,
            fix=f"use open_clip:{_twin(arch)}/{tag}",
        )
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess |= {key: pretrained[key] for key in keys if key in pretrained}
    return _Source(model_cfg, preprocess, lambda: _fetch(name, pretrained))


def _twin(arch: str) -> str:
    """Return the same architecture with the other activation, as open_clip names it."""
    suffix = "-quickgelu"
    return arch.removesuffix(suffix) if arch.endswith(suffix) else arch + suffix


def _tag_advice(arch: str, tag: str) -> str:
    if tag in open_clip.list_pretrained_tags_by_model(_twin(arch)):
        return f"they belong to open_clip:{_twin(arch)}/{tag}"
    tags = open_clip.list_pretrained_tags_by_model(arch)
    none = "it has none: give `weights: FILE` or `weights: random`"
    return nearest_fix(tag, tags, f"it has {', '.join(tags)}" if tags else none)


def _fetch(name: str, pretrained: dict[str, Any]) -> Path:
    repository, _, filename = str(pretrained.get("hf_hub") or "").rpartition("/")
    if repository:
        names = (_safe_twin(filename), filename) if filename else _HUB_WEIGHTS
        return hub_file(repository, dict.fromkeys(names), where=name)
    try:
        return Path(open_clip.download_pretrained(pretrained))
    except Exception as error:  # whatever the URL handler or the checksum raised
        raise unreachable(name, str(pretrained.get("url")), first_line(error)) from error


def _safe_twin(filename: str) -> str:
    return f"{Path(filename).stem}.safetensors"


def _own_weights(name: str, source: _Source) -> Path:
    if source.weights is None:
        raise BackboneError(
            "no weights come with this name",
            where=name,
            fix="add a tag (open_clip:ARCH/TAG), put a weights file beside the config, or say `weights: FILE` or "
            "`weights: random`",
        )
    return source.weights()


def _construct(name: str, source: _Source) -> nn.Module:
    """Build the architecture without any weights and any code of its own, as ``open_clip.create_model`` would."""
    config = deepcopy(source.model_cfg)
    try:
        uses_hub_text = "hf_model_name" in config["text_cfg"]
        if uses_hub_text:
            config["text_cfg"]["hf_model_pretrained"] = False
        if "timm_model_name" in config["vision_cfg"]:
            config["vision_cfg"]["timm_model_pretrained"] = False
        custom_text = config.pop("custom_text", False) or uses_hub_text
        kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        with without_own_code(source.revisions):
            return (open_clip.CoCa if "multimodal_cfg" in config else kind)(**config)
    except BackboneError:
        raise
    except OSError as error:  # transformers looks for the text tower's config on the hub
        raise unreachable(name, "the text tower's configuration", first_line(error)) from error
    except (TypeError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise BackboneError(
            f"open_clip cannot build it ({type(error).__name__}: {error})",
            where=name,
            fix="mend its model_cfg",
        ) from error


def _in_todays_names(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename what older or other exporters of the same weights call differently; values are untouched."""
    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    expected = model.state_dict()
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in state and scalar in expected and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(expected[scalar].shape)
    unused = "text.transformer.embeddings.position_ids"
    if unused in state and unused not in expected:
        del state[unused]
    return state


def _take_apart(name: str, model: nn.Module, source: _Source, digest: str) -> Parts:
    visual: Any = model.visual
    # What reads the image keeps everything up to the pooled feature; the projection stands apart.
    family, feature_dim, projection, blocks = _split_visual(visual)
    text: Any = model
    text.visual = None
    tower = getattr(text, "text", text)
    text_blocks = list(getattr(getattr(tower, "transformer", None), "resblocks", ()))
    replace_attention([*blocks, *text_blocks])
    replace_quick_gelu(visual)
    replace_quick_gelu(text)
    return Parts(
        family=family,
        visual=visual,
        projection=projection,
        blocks=blocks,
        image_spec=image_spec(name, visual.image_size, source.preprocess),
        feature_dim=feature_dim,
        fingerprint=digest,
        text=text,
        text_blocks=text_blocks,
        tokenizer=lambda: _tokenizer(name, source),
    )


def _split_visual(visual: Any) -> tuple[str, int, nn.Module, list[nn.Module]]:
    if hasattr(visual, "transformer"):
        projection = Projection(visual.proj)
        visual.proj = None
        visual.output_tokens = False
        return "open_clip_vit", len(projection.weight), projection, list(visual.transformer.resblocks)  # type: ignore[arg-type]
    if hasattr(visual, "attnpool"):
        pool = visual.attnpool
        visual.attnpool = AttentionPoolFeature(pool)
        return "open_clip_resnet", pool.q_proj.in_features, linear_projection(pool.c_proj), []
    if hasattr(visual, "trunk"):
        return _split_trunk(visual)
    raise BackboneError(
        f"open_clip's {type(visual).__name__} is not supported", fix="choose another backbone"
    )


def _split_trunk(visual: Any) -> tuple[str, int, nn.Module, list[nn.Module]]:
    from dualtail.models import _timm

    head = dict(visual.head.named_children())
    last = head.get("proj") or head.get("mlp")
    if last is not None:
        visual.head = nn.Sequential(*(child for key, child in head.items() if key == "pool"))
        width = last.in_features if isinstance(last, nn.Linear) else last.fc1.in_features
        return _timm.family_of(visual.trunk), width, linear_projection(last), _timm.blocks_in(visual.trunk)
    if head:  # attention pooling whose output already lies in the joint space
        return (
            _timm.family_of(visual.trunk),
            visual.head.pool.out_features,
            Projection(),
            _timm.blocks_in(visual.trunk),
        )
    classifier = visual.trunk.get_classifier()
    projection = linear_projection(classifier if isinstance(classifier, nn.Module) else nn.Identity())
    family, blocks = _timm.family_of(visual.trunk), _timm.blocks_in(visual.trunk)
    visual.trunk = _timm.PooledTrunk(visual.trunk)
    return family, _timm.feature_dim(visual.trunk.model), projection, blocks


def _tokenizer(name: str, source: _Source) -> Any:
    try:
        with quiet():
            return make_tokenizer(source.model_cfg, source.folder, source.revisions)
    except BackboneError:
        raise
    except Exception as error:  # transformers and the hub client raise many kinds
        raise unreachable(name, "the tokenizer's files", first_line(error)) from error
