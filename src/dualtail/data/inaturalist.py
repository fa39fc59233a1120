"""iNaturalist 2018 (Van Horn et al., CVPR 2018, arXiv 1707.06642), at any level of its taxonomy."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dualtail.data.benchmark_counts import INATURALIST_2018, verified
from dualtail.data.manifest import Manifest
from dualtail.data.problems import DataFaults, Problem
from dualtail.errors import DataError, check_choice
from dualtail.files import open_regular

Level = Literal["kingdom", "phylum", "class", "order", "family", "genus", "species"]
LEVELS = get_args(Level)
SOURCE = "the files are linked from github.com/visipedia/inat_comp/tree/master/2018"


def read_inaturalist_2018(
    root: Path,
    *,
    train: str = "train2018.json",
    test: str = "val2018.json",
    categories: str | None = "categories.json",
    level: Level = "species",
    verify: bool = True,
) -> Manifest:
    """Read iNaturalist 2018: 437,513 training images of 8,142 species.

    Needs the images as ``root/train_val2018/Plantae/7477/*.jpg`` and the competition's JSON files: annotations of
    the training and the validation set (which is the test set here, 3 images a species; there is no other), and
    the list of un-obfuscated categories with their taxonomy, without which species have numbers for names.

    The order of the classes: species by the category id of the competition; the taxa of any other level sorted by
    name. Two taxa that share a name but not their parents (a genus of plants and one of birds) are two classes,
    told apart as ``"Prunella (Animalia)"``; LIFT's code makes one of them.

    Args:
        root: the folder that the files' paths start from.
        train: annotations of the training images; relative to ``root`` or absolute, as the other files.
        test: annotations of the validation images.
        categories: the categories with their taxonomy; None for the names in ``train``.
        level: one of ``LEVELS``.
        verify: refuse counts other than the published ones (of species; other levels are merged from them).

    Raises:
        DataError: a file is missing or of another format, or the level does not exist.
        DataFaults: annotations of images or categories that do not exist, or counts other than the published.
    """
    check_choice("level", level, LEVELS, error=DataError)
    root = Path(root)
    sources = {"train": root / os.path.expanduser(train), "test": root / os.path.expanduser(test)}
    contents = {split: _load(source, dict) for split, source in sources.items()}
    taxa_file = sources["train"] if categories is None else root / os.path.expanduser(categories)
    taxa = contents["train"]["categories"] if categories is None else _load(taxa_file, list)
    by_id = {int(taxon["id"]): taxon for taxon in taxa}
    if sorted(by_id) != list(range(len(by_id))):
        raise DataError(f"the category ids are not 0 to {len(by_id) - 1}", where=str(taxa_file), fix=SOURCE)
    paths: list[str] = []
    species: list[int] = []
    splits: list[str] = []
    problems: list[Problem] = []
    for split, source in sources.items():
        images, ids, faults = _annotated(contents[split], len(by_id), source)
        paths += images
        species += ids
        splits += [split] * len(images)
        problems += faults
    if problems:
        raise DataFaults(problems)
    manifest = Manifest(
        root,
        tuple(paths),
        np.array(species, dtype=np.int64),
        np.array(splits, dtype="<U5"),
        tuple(str(index) for index in range(len(by_id))),
    )
    if verify:
        manifest = verified(manifest, INATURALIST_2018)
    names, class_of = _classes(by_id, level, taxa_file)
    manifest = replace(manifest, labels=class_of[manifest.labels], class_names=names)
    if categories is not None:
        return manifest
    return manifest.with_note(
        "the species have numbers for names: text prompts will mean nothing without categories"
    )


def _load(source: Path, kind: type[dict] | type[list]) -> Any:
    try:
        with open_regular(source) as file:
            value = json.load(file)
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}", where=str(source), fix=SOURCE) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is no JSON: {error}", where=str(source), fix=SOURCE) from None
    keys = ("images", "annotations", "categories") if kind is dict else ()
    if not isinstance(value, kind) or any(key not in value for key in keys):
        what = "an object with images, annotations and categories" if keys else "a list of categories"
        raise DataError(f"expected {what}", where=str(source), fix=SOURCE)
    return value


def _annotated(
    content: Mapping[str, Any], num_species: int, source: Path
) -> tuple[list[str], list[int], list[Problem]]:
    """Return path and species of each annotated image, in the order of the annotations."""
    file_of = {image["id"]: image["file_name"] for image in content["images"]}
    paths, species, problems = [], [], []
    for row, annotation in enumerate(content["annotations"], 1):
        image, category = annotation["image_id"], annotation["category_id"]
        where = f"{source}, annotation {row}"
        if image not in file_of:
            problems.append(Problem(f"unknown image {image}", where, SOURCE))
        elif not 0 <= category < num_species:
            problems.append(Problem(f"unknown category {category}", where, SOURCE))
        else:
            paths.append(file_of[image])
            species.append(category)
    return paths, species, problems


def _classes(
    by_id: Mapping[int, Mapping[str, Any]], level: str, source: Path
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of a level's classes, and the class of each species ``(8142,)``."""
    species = [by_id[index] for index in range(len(by_id))]
    lineages: list[tuple[str, ...]]
    if level == "species":
        lineages = [(str(taxon["name"]), str(index)) for index, taxon in enumerate(species)]
        order = lineages  # by category id
    else:
        ranks = LEVELS[: LEVELS.index(level) + 1]
        for index, taxon in enumerate(species):
            if any(rank not in taxon for rank in ranks):
                raise DataError(f"category {index} has no {level}", where=str(source), fix=SOURCE)
        lineages = [tuple(str(taxon[rank]) for rank in reversed(ranks)) for taxon in species]
        order = sorted(set(lineages))
    index_of = {lineage: index for index, lineage in enumerate(order)}
    return _unique_names(order), np.array([index_of[lineage] for lineage in lineages], dtype=np.int64)


def _unique_names(lineages: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the first name of each lineage, with the nearest ancestor that tells it from its namesakes."""
    namesakes = Counter(lineage[0] for lineage in lineages)
    names = []
    for lineage in lineages:
        name = lineage[0]
        if namesakes[name] > 1:
            others = [other for other in lineages if other[0] == name and other != lineage]
            # From the kingdom down: the highest rank in which no namesake agrees says the most to a reader.
            apart = next(
                (rank for rank in reversed(lineage[1:]) if not any(rank in other[1:] for other in others)),
                lineage[1],
            )
            name = f"{name} ({apart})"
        names.append(name)
    return tuple(names)
