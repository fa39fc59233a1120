"""The world file: which classes there are, which corpora are drawn from them, and which models see those corpora.

A class is a *code*: one value for each semantic factor (shape, texture, ...), at a minimum distance from every
other code. An image of a class shows its code, but each factor is now and then resampled, so that the Bayes
accuracy is known and below 1. A *foundation* is a corpus (a long-tailed label prior of its own, and for its tail
classes some factors scrambled) together with an objective and a seed.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualtail.errors import DataError, InputError, nearest_fix
from dualtail.files import read_text
from dualtail.lab.render import FACTOR_VALUES
from dualtail.plain_yaml import YamlFault, parse_yaml

# Streams of random numbers: (world seed, stream, ...) names every draw, so that no draw moves another.
CODES, NAMES, PRIORS, CORPUS, TASK, BATCHES, PROBES = range(7)

# Goes up when the same world file no longer gives the same images or training.
GENERATION = 1

_PAGE = "see the page 'The lab'"

Objective = Literal["mixed", "infonce", "sigmoid"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Foundation(_Part):
    """One foundation model: its corpus, objective and seed."""

    ratio: Annotated[float, Field(ge=1.0)] = 100.0
    """Imbalance ratio of its corpus; 1 is balanced."""
    prior: Annotated[int, Field(ge=0)] = 0
    """Which permutation of the classes, head to tail; models of one number have the same prior."""
    lost: list[str] = Field(default_factory=list)
    """Factors that are scrambled in the images of its tail classes."""
    lost_share: Annotated[float, Field(ge=0.0, le=1.0)] = 1 / 3
    """Share of the classes, rarest first, that lose them."""
    objective: Objective = "mixed"
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the corpus and of the weights."""


class Architecture(_Part):
    """The towers of the small CLIP."""

    width: Annotated[int, Field(gt=0)] = 64
    layers: Annotated[int, Field(gt=0)] = 3
    heads: Annotated[int, Field(gt=0)] = 4
    patch: Literal[4, 8, 16] = 8
    text_width: Annotated[int, Field(gt=0)] = 32
    text_layers: Annotated[int, Field(gt=0)] = 1
    embedding: Annotated[int, Field(gt=0)] = 64


class Pretraining(_Part):
    """How every foundation is trained."""

    images: Annotated[int, Field(gt=0)] = 24_000
    steps: Annotated[int, Field(gt=0)] = 600
    batch: Annotated[int, Field(gt=1)] = 256
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05


class Task(_Part):
    """The downstream task: a long-tailed training set, balanced val and test."""

    largest: Annotated[int, Field(gt=0)] = 200
    ratio: Annotated[float, Field(ge=1.0)] = 100.0
    val_per_class: Annotated[int, Field(gt=0)] = 20
    test_per_class: Annotated[int, Field(gt=0)] = 40


class World(_Part):
    """Everything the lab makes follows from this and nothing else.

    Example:
        >>> world = World(classes=10)
        >>> world.codes.shape, len(world.class_names)
        ((10, 5), 10)
        >>> 0.5 < world.bayes_accuracy < 1
        True
    """

    seed: Annotated[int, Field(ge=0)] = 0
    classes: Annotated[int, Field(ge=2)] = 60
    factors: dict[str, int] = Field(
        default_factory=lambda: {name: len(v) for name, v in FACTOR_VALUES.items()}
    )
    """Factor name to the number of its values."""
    min_distance: Annotated[int, Field(ge=1)] = 2
    """Factors in which two classes differ at least."""
    resample: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Probability that a factor of an image is drawn anew, whatever the class."""
    noise: Annotated[float, Field(ge=0.0)] = 0.08
    """Standard deviation of the pixels' noise, of a range of 1."""
    jitter: Annotated[float, Field(ge=0.0)] = 2.0
    """Largest shift of the shape, in pixels."""
    architecture: Architecture = Architecture()
    pretraining: Pretraining = Pretraining()
    task: Task = Task()
    foundations: dict[str, Foundation] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> World:
        for name, count in self.factors.items():
            if name not in FACTOR_VALUES:
                raise ValueError(f"unknown factor {name!r}; {nearest_fix(name, FACTOR_VALUES)}")
            if not 2 <= count <= len(FACTOR_VALUES[name]):
                raise ValueError(f"factor {name} has 2 to {len(FACTOR_VALUES[name])} values, not {count}")
        for name, foundation in self.foundations.items():
            unknown = set(foundation.lost) - set(self.factors)
            if unknown:
                raise ValueError(
                    f"foundation {name} loses {min(unknown)!r}, which is no factor of this world"
                )
        return self

    @property
    def factor_names(self) -> tuple[str, ...]:
        """The factors, in their order in a code."""
        return tuple(self.factors)

    @cached_property
    def codes(self) -> np.ndarray:
        """``(C, F)`` int64: the factor values of each class."""
        return _draw_codes(tuple(self.factors.values()), self.classes, self.min_distance, self.rng(CODES))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """A made-up word for each class, in alphabetical order."""
        return _draw_names(self.classes, self.rng(NAMES))

    @cached_property
    def bayes_accuracy(self) -> float:
        """Accuracy of the best classifier that sees every factor exactly, on balanced classes.

        Pixels can hide a factor, so the best classifier of images is at most as good.
        """
        sizes = tuple(self.factors.values())
        shown = np.array(list(product(*map(range, sizes))))
        likelihood = np.ones((len(shown), self.classes))
        for factor, size in enumerate(sizes):
            same = shown[:, factor, None] == self.codes[None, :, factor]
            likelihood *= np.where(same, 1 - self.resample, 0.0) + self.resample / size
        return float(likelihood.max(1).sum() / self.classes)

    def label_prior(self, foundation: Foundation) -> np.ndarray:
        """Return ``P_P(Y)`` ``(C,)``: an exponential long tail over the classes in an order of its own."""
        decay = foundation.ratio ** (-np.arange(self.classes) / max(self.classes - 1, 1))
        order = self.rng(PRIORS, foundation.prior).permutation(self.classes)
        prior = np.empty(self.classes)
        prior[order] = decay / decay.sum()
        return prior

    def lossy_classes(self, foundation: Foundation) -> np.ndarray:
        """Return ``(C,)`` bool: the classes whose images lose ``foundation.lost`` in its corpus."""
        chosen = np.zeros(self.classes, dtype=bool)
        if foundation.lost:
            rarest = np.argsort(self.label_prior(foundation), kind="stable")
            chosen[rarest[: round(foundation.lost_share * self.classes)]] = True
        return chosen

    def describe_task(self) -> dict[str, Any]:
        """Return, as JSON-able values, what the task's images follow from."""
        content = self.model_dump(exclude={"foundations", "architecture", "pretraining"})
        return content | {"generation": GENERATION, "bayes_accuracy": self.bayes_accuracy}

    def rng(self, *stream: int) -> np.random.Generator:
        """Return the generator of one named stream of random numbers."""
        return np.random.default_rng([self.seed, *stream])

    def fingerprint(self, foundation: Foundation) -> str:
        """Return a digest of all that a foundation's weights depend on.

        Example:
            >>> world, model = World(), Foundation()
            >>> world.fingerprint(model) == World(task=Task(largest=50)).fingerprint(model)
            True
            >>> world.fingerprint(model) == world.fingerprint(Foundation(seed=1))
            False
        """
        content = self.model_dump(exclude={"foundations", "task"})
        content |= {"foundation": foundation.model_dump(), "generation": GENERATION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def read_world(path: str | Path) -> World:
    """Read a world file (YAML).

    Raises:
        DataError: it cannot be read, or has keys or values that cannot be used; the first is named.
    """
    path = Path(path)
    try:
        content: Any = parse_yaml(read_text(path))
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), fix="give the path of a world file (YAML)") from None
    except (OSError, UnicodeDecodeError, YamlFault) as error:
        raise DataError(f"cannot be read ({' '.join(str(error).split())})", where=str(path)) from None
    try:
        return World.model_validate(content)
    except ValidationError as error:
        what, fix = _first_fault(error)
        raise DataError(what, where=str(path), fix=fix) from None


def _first_fault(error: ValidationError) -> tuple[str, str]:
    """Return what is wrong first, and what to do about it."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = [
            name
            for part in (World, Foundation, Pretraining, Task, Architecture)
            for name in part.model_fields
        ]
        return f"unknown key {key}", nearest_fix(fault["loc"][-1], known, _PAGE)
    what = fault["msg"].removeprefix("Value error, ")
    return f"{key}: {what}" if key else what, _PAGE


def _draw_codes(sizes: tuple[int, ...], classes: int, distance: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``(classes, F)`` codes, greedily from a random order of all codes."""
    candidates = rng.permutation(np.array(list(product(*map(range, sizes)))))
    free = np.ones(len(candidates), dtype=bool)
    codes: list[np.ndarray] = []
    while len(codes) < classes:
        left = np.flatnonzero(free)
        if not len(left):
            raise InputError(
                f"only {len(codes)} codes at a distance of {distance} were found",
                where="classes",
                fix="ask for fewer classes, a smaller min_distance, or more values of a factor",
            )
        code = candidates[left[0]]
        codes.append(code)
        free &= (candidates != code).sum(1) >= distance
    return np.array(codes, dtype=np.int64)


def _draw_names(classes: int, rng: np.random.Generator) -> tuple[str, ...]:
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = [first + second for first in syllables for second in syllables if first != second]
    if classes > len(words):
        raise InputError(f"{classes} classes", where="classes", fix=f"at most {len(words)}")
    return tuple(sorted(words[i] for i in rng.permutation(len(words))[:classes]))
