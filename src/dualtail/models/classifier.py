"""Backbone, tuner and head put together, and the small part of them that is trained and saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from dualtail.errors import BackboneError, InputError
from dualtail.files import DAMAGE, read_text, refuse_irregular, write_json, write_tensors
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.heads import Head, build_head
from dualtail.models.text import check_class_names
from dualtail.models.tuners import Tuner, attach_tuner

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "trainable.safetensors"


class _Part(TypedDict):
    name: str
    options: dict[str, Any]


class _Backbone(TypedDict):
    name: str
    weights: str | None
    seed: int
    image_size: int | None
    fingerprint: str


class _Config(TypedDict):
    backbone: _Backbone
    tuner: _Part
    text_tuner: _Part | None
    head: _Part
    class_names: list[str]


_CONFIG = TypeAdapter(_Config)


class Classifier(nn.Module):
    """One member: a frozen backbone, the tuner attached to it, and a head.

    Args:
        backbone: the foundation model.
        tuner: attached to that backbone.
        head: reads its features.
        class_names: C names, in the order of the labels.
        text_tuner: attached to the text tower of that backbone, for a head that reads it.

    Raises:
        BackboneError: the head's width is not the backbone's.
        InputError: the text tower is tuned but the head does not read it; the number of class names is not the head's,
            or a name is empty or repeated.

    Example:
        >>> member = build_classifier("timm:test_vit", ["cat", "dog"], weights="random", head="linear")
        >>> member(torch.zeros(1, 3, 160, 160, dtype=torch.uint8)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        backbone: Backbone,
        tuner: Tuner,
        head: Head,
        class_names: Sequence[str],
        text_tuner: Tuner | None = None,
    ) -> None:
        super().__init__()
        self.class_names = check_class_names(class_names)
        if head.feature_dim != backbone.feature_dim:
            raise BackboneError(
                f"the head reads {head.feature_dim} features, the backbone gives {backbone.feature_dim}",
                where=backbone.name,
                fix="build the head with backbone.feature_dim",
            )
        if head.num_classes != len(self.class_names):
            raise InputError(f"{len(self.class_names)} class names for a head of {head.num_classes} classes")
        if text_tuner is not None and not head.reads_text:
            raise InputError(
                f"the head {head.name!r} does not read the text tower that is tuned",
                fix="use 'text' or 'coop'",
            )
        self.backbone, self.tuner, self.head, self.text_tuner = backbone, tuner, head, text_tuner

    @property
    def num_classes(self) -> int:
        """The number of classes ``C``."""
        return len(self.class_names)

    def features(self, images: Tensor) -> Tensor:
        """Return the tuned features ``(B, D)`` float32 of images ``(B, 3, S, S)``, uint8 or normalised."""
        return self.backbone.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, C)`` float32."""
        return self.head(self.features(images))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return what training changes, under the names it is saved by: ``tuner.*``, ``text_tuner.*``, ``head.*``."""
        named = {
            f"{part}.{name}": parameter
            for part, tuner in self._tuners().items()
            for name, parameter in tuner.trainable().items()
        }
        return named | {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the trained parameters, and batch statistics that follow them, as tensors that share memory."""
        extra = {
            f"{part}.{name}": value
            for part, tuner in self._tuners().items()
            for name, value in tuner.extra_state().items()
        }
        return {name: value.detach() for name, value in (self.trainable_parameters() | extra).items()}

    def _tuners(self) -> dict[str, Tuner]:
        return {"tuner": self.tuner} | ({} if self.text_tuner is None else {"text_tuner": self.text_tuner})

    @torch.no_grad()
    def load_trainable_state(self, state: dict[str, Tensor], *, where: str = "state") -> None:
        """Copy a ``trainable_state()`` back, on any device, refusing other names or shapes.

        Raises:
            BackboneError: it belongs to another tuner, head or number of classes.
        """
        own = self.trainable_state()
        if state.keys() != own.keys() or any(state[name].shape != own[name].shape for name in own):
            differing = sorted(state.keys() ^ own.keys()) or [
                name for name in own if state[name].shape != own[name].shape
            ]
            raise BackboneError(
                f"it belongs to another tuner or head ({len(differing)} tensors differ, the first is {differing[0]})",
                where=where,
                fix="build the classifier with the tuner, head and classes that were saved",
            )
        for name, value in own.items():
            value.copy_(state[name])

    def config(self) -> dict[str, Any]:
        """Return what ``load_classifier`` needs to build this member again, JSON-able."""
        backbone = self.backbone
        return {
            "format_version": FORMAT_VERSION,
            "backbone": {
                "name": backbone.name,
                "weights": backbone.weights,
                "seed": backbone.seed,
                "image_size": backbone.image_spec.size,
                "fingerprint": backbone.weights_fingerprint,
            },
            "tuner": _named(self.tuner),
            "text_tuner": None if self.text_tuner is None else _named(self.text_tuner),
            "head": _named(self.head),
            "class_names": list(self.class_names),
        }

    def save(self, directory: str | Path) -> None:
        """Write ``trainable.safetensors`` and ``config.json`` into ``directory``, each whole or not at all."""
        write_tensors(Path(directory) / WEIGHTS_FILE, self.trainable_state())
        write_json(Path(directory) / CONFIG_FILE, self.config())

    def load_trainable(self, directory: str | Path) -> None:
        """Read what ``save`` wrote into this classifier.

        Raises:
            BackboneError: it was saved with another format version, backbone, tuner, head or list of classes.
        """
        config = read_config(directory)
        _check_same(config, self.config(), Path(directory) / CONFIG_FILE)
        path = Path(directory) / WEIGHTS_FILE
        self.load_trainable_state(_read_trainable(path), where=str(path))


def _named(part: Tuner | Head) -> dict[str, Any]:
    return {"name": part.name, "options": part.options}


def read_config(directory: str | Path) -> dict[str, Any]:
    """Return a saved member's configuration.

    Raises:
        BackboneError: it is missing, damaged, or of a format version that this dualtail does not read.
    """
    path = Path(directory) / CONFIG_FILE
    try:
        config = json.loads(read_text(path))
        version = config["format_version"]
    except DAMAGE as error:
        raise BackboneError(
            f"no saved classifier ({type(error).__name__})", where=str(path), fix="give a member's directory"
        ) from error
    if version != FORMAT_VERSION:
        raise BackboneError(
            f"format version {version!r}, this dualtail reads {FORMAT_VERSION}",
            where=str(path),
            fix="install the dualtail that wrote it",
        )
    try:
        _CONFIG.validate_python(config, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        raise BackboneError(
            f"is damaged ({'.'.join(map(str, fault['loc']))}: {fault['msg']})",
            where=str(path),
            fix="train the member again",
        ) from None
    return config


def _read_trainable(path: Path) -> dict[str, Tensor]:
    try:
        refuse_irregular(path)
        return load_file(path)
    except (SafetensorError, *DAMAGE) as error:
        raise BackboneError(
            f"cannot be read ({error})", where=str(path), fix="train the member again"
        ) from error


def _check_same(saved: dict[str, Any], own: dict[str, Any], path: Path) -> None:
    if len(saved["class_names"]) != len(own["class_names"]):
        raise BackboneError(
            f"saved with {len(saved['class_names'])} classes, this classifier has {len(own['class_names'])}",
            where=str(path),
            fix="use the data set it was trained on",
        )
    if saved["class_names"] != own["class_names"]:
        index = next(i for i, name in enumerate(own["class_names"]) if saved["class_names"][i] != name)
        raise BackboneError(
            f"class {index} was {saved['class_names'][index]!r}, here it is {own['class_names'][index]!r}",
            where=str(path),
            fix="use the class names it was trained with, in their order",
        )
    if saved["backbone"]["fingerprint"] != own["backbone"]["fingerprint"]:
        raise BackboneError(
            f"saved with the weights of {saved['backbone']['name']} "
            f"({saved['backbone']['fingerprint'][:12]}), the backbone here is {own['backbone']['name']} "
            f"({own['backbone']['fingerprint'][:12]})",
            where=str(path),
            fix="load the same backbone with the same weights (random ones depend on the versions of torch and "
            "open_clip)",
        )
    if saved["backbone"]["image_size"] != own["backbone"]["image_size"]:
        raise BackboneError(
            f"saved for images of {saved['backbone']['image_size']} pixels, the backbone here takes "
            f"{own['backbone']['image_size']}",
            where=str(path),
            fix="load the backbone with that image_size",
        )
    for part in ("tuner", "text_tuner", "head"):
        if saved[part] != own[part]:
            raise BackboneError(
                f"saved with {part} {saved[part]}, this classifier has {own[part]}",
                where=str(path),
                fix=f"build the classifier with the saved {part}",
            )


def build_classifier(
    backbone: str | Backbone,
    class_names: Sequence[str],
    *,
    weights: str | None = None,
    image_size: int | None = None,
    tuner: str = "adaptformer",
    tuner_options: dict[str, Any] | None = None,
    text_tuner: str | None = None,
    text_tuner_options: dict[str, Any] | None = None,
    head: str = "cosine",
    head_options: dict[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Load a backbone, attach a tuner and put a head on it; the head's weights are random until initialised.

    Args:
        backbone: its name, or one already loaded (then ``weights``, ``image_size`` and ``device`` are not used).
        class_names: C names.
        weights: as for ``load_backbone``.
        image_size: as for ``load_backbone``.
        tuner: a key of ``TUNERS``, for the vision tower.
        tuner_options: its options.
        text_tuner: a key of ``TUNERS`` for the text tower, with the heads ``text`` and ``coop``.
        text_tuner_options: its options.
        head: a key of ``HEADS``.
        head_options: its options.
        seed: of all random weights.
        device: where it will live.

    Raises:
        BackboneError, InputError: as for ``load_backbone``, ``attach_tuner`` and ``build_head``.
    """
    names = check_class_names(class_names)
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights=weights, seed=seed, image_size=image_size, device=device)
    made = build_head(
        head,
        backbone.feature_dim,
        len(names),
        backbone=backbone,
        class_names=names,
        **_own_options(head_options, seed, "name", "feature_dim", "num_classes", "backbone", "class_names"),
    )
    with ExitStack() as undo:  # a refusal on the way leaves the backbone free
        attached = attach_tuner(
            backbone, tuner, num_classes=len(names), **_own_options(tuner_options, seed, *_OF_TUNERS)
        )
        undo.callback(attached.detach)
        text = None
        if text_tuner is not None:
            options = _own_options(text_tuner_options, seed, *_OF_TUNERS)
            text = attach_tuner(backbone, text_tuner, num_classes=len(names), tower="text", **options)
            undo.callback(text.detach)
        classifier = Classifier(backbone, attached, made, names, text)
        undo.pop_all()
    return classifier


_OF_TUNERS = ("backbone", "name", "num_classes", "tower")


def _own_options(options: Mapping[str, Any] | None, seed: int, *given: str) -> dict[str, Any]:
    """Return a part's options and seed; those that the classifier itself has ``given`` are nobody's to choose."""
    for name in options or {}:
        if name in given:
            raise InputError(f"{name!r} is no option of a tuner or head", fix="remove it")
    return {"seed": seed, **(options or {})}


def load_classifier(
    directory: str | Path, *, backbone: Backbone | None = None, device: str | torch.device = "cpu"
) -> Classifier:
    """Build the member that ``Classifier.save`` wrote.

    Args:
        directory: with ``config.json`` and ``trainable.safetensors``.
        backbone: an already loaded backbone without a tuner; None loads the one it was saved with.
        device: where a backbone that is loaded here will live.

    Raises:
        BackboneError: the directory is damaged, or the backbone's weights are not those it was trained on.
    """
    config = read_config(directory)
    saved = config["backbone"]
    if backbone is None:
        backbone = load_backbone(
            saved["name"],
            weights=saved["weights"],
            seed=saved["seed"],
            image_size=saved["image_size"],
            device=device,
        )
    text_tuner = config["text_tuner"] or {"name": None, "options": None}
    classifier = build_classifier(
        backbone,
        config["class_names"],
        tuner=config["tuner"]["name"],
        tuner_options=config["tuner"]["options"],
        text_tuner=text_tuner["name"],
        text_tuner_options=text_tuner["options"],
        head=config["head"]["name"],
        head_options=config["head"]["options"],
    )
    classifier.load_trainable(directory)
    return classifier.eval()
