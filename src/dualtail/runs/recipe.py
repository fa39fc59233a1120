"""The recipe: a strict schema of everything a run depends on.

A recipe is a YAML file. Unknown keys are refused with the nearest known one, nothing is silently converted, and
the resolved recipe (every default written out, every path absolute) is stored in the run directory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualtail.errors import RecipeError, nearest
from dualtail.imagespec import ImageSpec

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Options = dict[str, Any]


class Section(BaseModel):
    """Base of every part of a recipe: no unknown keys, no coercion, no change after validation."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class LongTail(Section):
    """Seeded subsampling of the training split to a long-tailed one; val and test stay as they are."""

    profile: Literal["exponential", "pareto"] = "exponential"
    """Shape of the tail: ``exponential`` as CIFAR-LT's, ``pareto`` as ImageNet-LT's."""
    ratio: Annotated[float, Field(ge=1.0)] = 100.0
    """Imbalance ratio, largest class over smallest."""
    shuffle_classes: bool = False
    """Draw the order of the classes (head to tail) from the seed instead of taking it as it is."""


class Data(Section):
    """Where the images are and how they are read."""

    reader: str = "folder"
    """``folder``, ``table``, ``lists``, ``webdataset``, ``hugging_face``, or a benchmark's name."""
    root: str
    """The folder that holds the images; relative to the recipe's folder."""
    options: Options = Field(default_factory=dict)
    """Options of the reader, such as the manifest's file name (see the page "Your own data")."""
    val_per_class: NonNegativeInt = 20
    """Images a class to hold out of train where there is no val split; 0 goes without one."""
    long_tail: LongTail | None = None
    """Make a balanced training set long-tailed; left out, train stays as it is."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized, where it is not to be the backbone's own way."""
    on_bad_image: Literal["error", "skip"] = "error"
    """``error`` stops at an image that cannot be read, ``skip`` leaves it out and says so."""

    def image_spec(self, own: ImageSpec) -> ImageSpec:
        """Return what a backbone expects of images, with this section's changes."""
        return own if self.interpolation is None else replace(own, interpolation=self.interpolation)


class Member(Section):
    """One foundation model: one value of the confounder."""

    backbone: str
    """``open_clip:ARCH/TAG``, ``open_clip:DIR`` or ``timm:NAME``; a local folder starts with ``./``."""
    weights: str | None = None
    """A checkpoint file, or ``random``; nothing for the weights that the backbone's name stands for."""
    image_size: PositiveInt | None = None
    """Side of its input where it is not to be the pre-trained one; position embeddings are resized."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Fine-tuning seeds, one member each; the recipe's seed if left out."""
    name: str | None = None
    """Its folder in the run and its name in tables; made from the backbone's if left out."""


class Text(Section):
    """Prompts that turn class names into text features."""

    templates: str | Annotated[list[str], Field(min_length=1)] = "a photo of a {}."
    """One template, several whose features are averaged, or a set's name: ``photo``, ``simple``, ``openai``."""
    descriptions: str | None = None
    """A JSON file, class name to one or several sentences, in place of the templates."""


class Prior(Section):
    """How the pre-training label prior is estimated from zero-shot logits."""

    split: Literal["val", "train"] = "val"
    """``val`` should be balanced; ``train`` is taken with its own counts as the sample prior."""
    per_class: PositiveInt | None = None
    """From train: at most so many images a class, drawn by the recipe's seed; all of them if left out."""
    shrinkage: Literal["auto"] | NonNegativeFloat = "auto"
    """Pull towards uniform, in samples a class; ``auto`` chooses it from the data, 0 is GLA's plain optimum."""
    temperature: Literal["fit"] | PositiveFloat | None = None
    """Divides the zero-shot logits; ``fit`` fits it with the prior; nothing stands for 1."""


class Tuner(Section):
    """What is added to, or trained in, the frozen backbone."""

    name: str = "adaptformer"
    """See the page "Choose a tuner"."""
    options: Options = Field(default_factory=dict)
    """The tuner's own, such as ``width``, and ``blocks`` for chosen blocks."""


class Head(Section):
    """The classifier on the backbone's feature."""

    name: str = "cosine"
    """``cosine``, ``linear``, ``l2_normed``, ``layer_normed``, ``text`` or ``coop``."""
    init: str = "auto"
    """``auto``: text features where they can be mapped back to image features, class means otherwise."""
    options: Options = Field(default_factory=dict)
    """The head's own, such as ``scale``."""


class Loss(Section):
    """A training loss."""

    name: str = "la"
    """``la``, ``ce``, ``focal``, ``ldam``, ``class_balanced``, ``generalized_reweight``, ``balanced_softmax``,
    ``lade``, ``gla_train`` or ``vs``."""
    options: Options = Field(default_factory=dict)
    """The loss's own, such as ``tau``."""


class Augment(Section):
    """Training augmentation."""

    name: str = "random_resized_crop"
    """``random_resized_crop`` (LIFT), ``minimalist`` (LIFT+), ``rand_augment`` or ``resize`` (none)."""
    options: Options = Field(default_factory=dict)
    """The augmentation's own, such as ``flip`` and ``scale``."""


class SecondStage(Section):
    """A second training after the first, of the head alone by default (decoupled training, Kang et al. 2020)."""

    only: Annotated[list[Literal["head", "tuner"]], Field(min_length=1)] = ["head"]
    """The parts that train."""
    epochs: PositiveInt = 5
    learning_rate: PositiveFloat = 0.01
    sampling: str = "class_balanced"
    """As ``finetune.sampling``."""
    loss: Loss = Loss(name="ce")


class Finetune(Section):
    """How a member is trained; the defaults are LIFT's."""

    tuner: Tuner = Tuner()
    text_tuner: Tuner | None = None
    """A tuner of the text tower, for the heads ``text`` and ``coop``."""
    head: Head = Head()
    loss: Loss = Loss()
    augment: Augment = Augment()
    sampling: str = "instance"
    """``instance``, ``class_balanced``, ``square_root`` or ``progressive``."""
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    """Over all processes."""
    accumulation: PositiveInt = 1
    """Batches whose gradients are added up before a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_step: Literal["epoch", "step"] = "epoch"
    """The learning rate changes once an epoch (LIFT) or at every step."""
    warmup_epochs: NonNegativeFloat = 0.0
    gradient_clip: PositiveFloat | None = None
    """Largest total norm of the gradient."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto`` is bf16 where the device computes in it."""
    ema_decay: Fraction | None = None
    """Decay of a moving average of the trained weights, which then takes their place."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of Mixup; 0 is off."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of CutMix; 0 is off."""
    keep: Literal["last", "best"] = "last"
    """``best``: the epoch with the highest macro accuracy on val, measured after every epoch."""
    compile: bool = False
    """Train through ``torch.compile``."""
    second_stage: SecondStage | None = None
    """Train the head again on re-balanced batches; left out, there is none."""

    @property
    def losses(self) -> list[Loss]:
        """The losses of all stages."""
        return [self.loss, *([self.second_stage.loss] if self.second_stage else [])]

    @property
    def classifier_options(self) -> dict[str, Any]:
        """What ``build_classifier`` takes of this section."""
        return {
            "tuner": self.tuner.name,
            "tuner_options": self.tuner.options,
            "text_tuner": self.text_tuner.name if self.text_tuner else None,
            "text_tuner_options": self.text_tuner.options if self.text_tuner else None,
            "head": self.head.name,
            "head_options": self.head.options,
        }


class Adjust(Section):
    """The backdoor adjustment over the members."""

    rule: Literal["logits", "probabilities", "log_probabilities", "median"] = "logits"
    """What is averaged over the members."""
    weights: Literal["uniform", "fitted"] | Annotated[list[NonNegativeFloat], Field(min_length=1)] = "uniform"
    """P(c): ``uniform``, ``fitted`` on val, or one number a member."""


class Groups(Section):
    """Cut points of the groups of classes."""

    many: PositiveInt = 100
    """D-Many: more training images than this."""
    few: PositiveInt = 20
    """D-Few: fewer training images than this."""
    quantiles: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [1 / 3, 2 / 3]
    )
    """P-groups: where the classes, sorted by the estimated prior, are cut."""

    @model_validator(mode="after")
    def _in_order(self) -> Groups:
        if self.few > self.many:
            raise ValueError(f"few ({self.few}) must not exceed many ({self.many})")
        if self.quantiles[0] >= self.quantiles[1]:
            raise ValueError("quantiles must ascend")
        return self


class Neighbors(Section):
    """The nearest-neighbour check of the features, with val as the bank."""

    k: PositiveInt = 200
    """Neighbours that vote."""
    temperature: PositiveFloat = 0.1
    """A neighbour's vote is ``exp(cosine / temperature)``."""


class Attribution(Section):
    """What each model looks at, before and after tuning: integrated gradients on some images."""

    images: PositiveInt = 24
    """Images drawn at random; some of the weakest classes come on top."""
    steps: PositiveInt = 16
    """Points of the integral."""


class Evaluate(Section):
    """What is measured on the test split."""

    groups: Groups = Groups()
    neighbors: Neighbors = Neighbors()
    attribution: Attribution | None = Attribution()
    """Nothing (``null``) leaves the maps out."""
    confidence: Fraction = 0.95
    """Nominal coverage of the intervals."""
    crops: Literal[1, 5, 10] = 1
    """Crops of an image whose logits are averaged: 5 or 10 for test-time ensembling."""


class Runtime(Section):
    """How the work is done; changes no result beyond rounding, and is no part of a stage's fingerprint."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    workers: Literal["auto"] | NonNegativeInt = "auto"
    """Processes that read images; ``auto`` is one a core, at most 8."""
    share: Literal["batches", "members"] = "batches"
    """With several processes: they share each batch, or each trains members of its own."""
    cache: str | None = None
    """A folder for smaller copies of large photographs, which are then quicker to read in later epochs."""
    eval_batch_size: PositiveInt = 256
    """Images of a batch that is not trained on."""
    checkpoint_minutes: PositiveFloat = 5.0
    """Minutes of training between checkpoints."""


class Recipe(Section):
    """Everything a run depends on.

    Example:
        >>> recipe = parse_recipe({"name": "birds", "data": {"root": "/data/birds"},
        ...                        "members": [{"backbone": "open_clip:ViT-B-16/laion2b_s34b_b88k"}]})
        >>> recipe.finetune.tuner.name, recipe.finetune.learning_rate
        ('adaptformer', 0.01)
    """

    name: Annotated[str, Field(min_length=1)]
    """What the report calls the run."""
    seed: NonNegativeInt = 0
    """Of everything drawn: splits, subsampling, random weights, training."""
    data: Data
    members: Annotated[list[Member], Field(min_length=1)]
    text: Text = Text()
    prior: Prior = Prior()
    finetune: Finetune = Finetune()
    adjust: Adjust = Adjust()
    evaluate: Evaluate = Evaluate()
    runtime: Runtime = Runtime()


# --- reading


class _Loader(yaml.SafeLoader):
    """YAML without its two traps: ``1e-3`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is no text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply ``key=value`` overrides and validate.

    Relative paths in the file are relative to the file's folder; those in an override to the working directory.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` each; the value is YAML, list items are named by number
            (``members.0.weights=random``).

    Raises:
        RecipeError: the file or an override cannot be read, or the recipe is not valid; every fault is in
            ``error.faults``, the message shows the first.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), fix="give the path of a recipe (YAML)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({error})", where=str(path)) from None
    content = _parse_yaml(text, where=str(path))
    if not isinstance(content, dict):
        raise RecipeError("is not a mapping of keys", where=str(path), fix="start from a file in recipes/")
    content = _absolute_paths(content, path.resolve().parent)
    for override in overrides:
        content = apply_override(content, override)
    return parse_recipe(_absolute_paths(content, Path.cwd()), where=str(path))


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        raise RecipeError(
            f"is not valid YAML: {getattr(error, 'problem', None) or error}", where=place
        ) from None


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as nested dictionaries.

    Raises:
        RecipeError: with every fault in ``error.faults`` (one line each).

    Example:
        >>> parse_recipe({"name": "x", "data": {"root": "."}, "members": [{"backbon": "timm:x"}]})
        Traceback (most recent call last):
        dualtail.errors.RecipeError: recipe: members.0.backbone is missing; add it (2 faults in all...)
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        faults = _faults(error.errors())
    fault = faults[0]
    if len(faults) > 1:
        fault += f" ({len(faults)} faults in all: 'dualtail check' lists them)"
    raised = RecipeError(fault, where=where)
    raised.faults = tuple(faults)
    raise raised


def _faults(errors: Sequence[Any]) -> list[str]:
    """Return a line for each faulty key; what the branches of a union expect is joined by "or"."""
    lines: list[str] = []
    expected: dict[str, tuple[Any, list[str]]] = {}
    for error in errors:
        # A branch of a union adds its own name to the location: "list[constrained-float]", "literal[...]".
        location = [str(part) for part in error["loc"]]
        key = ".".join(part for part in location if re.fullmatch(r"[A-Za-z_]\w*|\d+", part))
        if error["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            guess = nearest(location[-1], known)
            prefix = "".join(f"{part}." for part in location[:-1])
            hint = f"did you mean {prefix}{guess}?" if guess else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key {key}; {hint}")
        elif error["type"] == "missing":
            lines.append(f"{key} is missing; add it")
        elif error["type"] == "value_error":
            lines.append(f"{key}: {error['msg'].removeprefix('Value error, ')}" if key else str(error["msg"]))
        else:
            expected.setdefault(key, (error["input"], []))[1].append(_expectation(error))
    return lines + [
        f"{key} is {found!r}; it should be {' or '.join(what)}" for key, (found, what) in expected.items()
    ]


def _expectation(error: Any) -> str:
    """Return what one of pydantic's errors expects, as the end of "it should be ..."."""
    kind = error["type"]
    if kind in ("too_short", "too_long"):
        context = error["ctx"]
        limit = (
            f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        )
        return f"a list of {limit}"
    if kind == "model_type":
        return "a mapping of keys"
    if kind == "none_required":
        return "left out"
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    if not kind.endswith("_type"):
        return message
    return f"{'an' if message[0] in 'aeiou' else 'a'} {message}"


def _known_keys(location: Sequence[str]) -> list[str]:
    """Return the keys of the section at ``location``."""
    section: Any = Recipe
    for part in location:
        if not part.isdigit():
            section = (
                _section_of(section.model_fields[part].annotation)
                if part in section.model_fields
                else section
            )
    return list(section.model_fields)


def _section_of(annotation: Any) -> Any:
    """Return the Section class inside an annotation such as ``Annotated[list[Member], ...]`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def apply_override(content: dict[str, Any], override: str) -> dict[str, Any]:
    """Return ``content`` with ``dotted.key=value`` set; sections that are not there yet are made.

    Example:
        >>> apply_override({"finetune": {"epochs": 10}}, "finetune.learning_rate=1e-3")
        {'finetune': {'epochs': 10, 'learning_rate': 0.001}}
    """
    where = f"--set {override}"
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            "is not of the form key=value", where=where, fix="for example --set finetune.epochs=5"
        )
    content = deepcopy(content)
    place: Any = content
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise RecipeError(
                    f"{'.'.join(parts[:index])} is a list of {len(place)}, which has no item {part!r}",
                    where=where,
                )
            slot: Any = int(part)
        elif isinstance(place, dict):
            slot = part
        else:
            raise RecipeError(
                f"{'.'.join(parts[:index])} is a single value, which has no key {part!r}", where=where
            )
        if last:
            place[slot] = _parse_yaml(value, where)
        else:
            if isinstance(place, dict) and place.get(slot) is None:
                place[slot] = {}
            place = place[slot]
    return content


def _absolute_paths(content: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return ``content`` with its paths made absolute against ``base``."""
    content = deepcopy(content)
    data = content.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = str(base / Path(data["root"]).expanduser())
    members = content.get("members")
    for member in members if isinstance(members, list) else []:
        if not isinstance(member, dict):
            continue
        backbone, weights = member.get("backbone"), member.get("weights")
        if isinstance(backbone, str) and backbone.startswith(
            ("open_clip:./", "open_clip:../", "open_clip:~")
        ):
            member["backbone"] = f"open_clip:{(base / Path(backbone[10:]).expanduser()).resolve()}"
        if isinstance(weights, str) and weights != "random":
            member["weights"] = str(base / Path(weights).expanduser())
    for section, key in (("text", "descriptions"), ("runtime", "cache")):
        part = content.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str(base / Path(part[key]).expanduser())
    return content


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
