"""The recipe: a strict schema of everything a run depends on.

Every default is written out and every path absolute in the recipe that a run directory keeps; reading and writing
recipes is :mod:`dualtail.runs.recipe_file`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dualtail.data.images import MAX_PIXELS
from dualtail.engine.settings import Precision, TrainingChoices
from dualtail.imagespec import ImageSpec
from dualtail.schema import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Size,
)

Options = dict[str, Any]


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
    max_pixels: PositiveInt = MAX_PIXELS
    """Pixels of an image, at most; a larger one counts as an image that cannot be read."""
    allow_outside: bool = False
    """Let images lie outside ``root``: by absolute paths, ``..`` or symbolic links in what describes the data."""

    def image_spec(self, own: ImageSpec) -> ImageSpec:
        """Return what a backbone expects of images, with this section's changes."""
        return own if self.interpolation is None else replace(own, interpolation=self.interpolation)


class Member(Section):
    """One foundation model: one value of the confounder."""

    backbone: str
    """``open_clip:ARCH/TAG``, ``open_clip:DIR`` or ``timm:NAME``; a local folder starts with ``./``."""
    weights: str | None = None
    """A checkpoint file, or ``random``; nothing for the weights that the backbone's name stands for."""
    image_size: Size | None = None
    """Side of its input where it is not to be the pre-trained one; position embeddings are resized."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
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

    only: Annotated[list[Literal["head", "tuner"]], Field(min_length=1)] = ["head"]  # noqa: RUF012
    """The parts that train."""
    epochs: PositiveInt = 5
    learning_rate: PositiveFloat = 0.01
    sampling: str = "class_balanced"
    """As ``finetune.sampling``."""
    loss: Loss = Loss(name="ce")


class Finetune(TrainingChoices):
    """How a member is trained; the defaults are LIFT's."""

    tuner: Tuner = Tuner()
    text_tuner: Tuner | None = None
    """A tuner of the text tower, for the heads ``text`` and ``coop``."""
    head: Head = Head()
    loss: Loss = Loss()
    augment: Augment = Augment()
    sampling: str = "instance"
    """``instance``, ``class_balanced``, ``square_root`` or ``progressive``."""
    batch_size: PositiveInt = 128
    """Over all processes."""
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
    """How the work is done; changes no result beyond rounding. Precision alone is part of what a stage depends on."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    precision: Precision = "auto"
    """Of training and inference: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 where the device computes in it."""
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
        >>> recipe = Recipe(name="birds", data={"root": "/data/birds"},
        ...                 members=[{"backbone": "open_clip:ViT-B-16/laion2b_s34b_b88k"}])
        >>> recipe.finetune.tuner.name, recipe.finetune.learning_rate
        ('adaptformer', 0.01)
    """

    name: Annotated[str, Field(min_length=1)]
    """What the report calls the run."""
    seed: Seed = 0
    """Of everything drawn: splits, subsampling, random weights, training."""
    data: Data
    members: Annotated[list[Member], Field(min_length=1)]
    text: Text = Text()
    prior: Prior = Prior()
    finetune: Finetune = Finetune()
    adjust: Adjust = Adjust()
    evaluate: Evaluate = Evaluate()
    runtime: Runtime = Runtime()
