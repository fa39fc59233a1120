"""Write a small run directory with the store's own functions: synthetic logits, everything else computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dualtail.logits.backdoor import backdoor_adjust
from dualtail.logits.comparison import paired_test
from dualtail.logits.groups import ClassGroups
from dualtail.logits.metrics import Evaluation, evaluate
from dualtail.logits.prior import LabelPrior
from dualtail.runs.recipe import Recipe, dump_recipe, parse_recipe
from dualtail.runs.store import RunDirectory, SplitLogits, write_csv, write_json, write_logits, write_text

NAMES = ["clip", "openclip", "metaclip"]


def make_run(
    root: Path,
    *,
    classes: int = 12,
    test_per_class: int = 10,
    backbones: Sequence[str] = NAMES,
    seeds: Sequence[int] = (0,),
    names: Sequence[str] | None = None,
    images: Path | None = None,
    seed: int = 0,
    text: bool = True,
    recipe: dict[str, Any] | None = None,
    features: bool = True,
    edit_logits: bool = True,
) -> Path:
    """Write a finished run of ``len(backbones) * len(seeds)`` members and return its directory.

    Members see the classes' truth through noise; a backbone's zero-shot logits carry its own prior.
    """
    generator = torch.Generator().manual_seed(seed)
    names = list(names or [f"class {index:04d}" for index in range(classes)])
    classes = len(names)
    root.mkdir(parents=True, exist_ok=True)
    settings = make_recipe(root, backbones, seeds, seed, recipe or {}, images)
    write_text(root / "recipe.yaml", dump_recipe(settings))
    run = RunDirectory.read(root)

    train = (200 * (1 / 50) ** (torch.arange(classes) / max(classes - 1, 1))).round().long().clamp(min=2)
    d_groups = ClassGroups.from_counts(train)
    splits = {}
    for split, size in (("val", 8), ("test", test_per_class)):
        labels = torch.arange(classes).repeat_interleave(size)
        ids = tuple(f"{split}/{label:04d}/{i:03d}.png" for i, label in enumerate(labels.tolist()))
        splits[split] = (labels, ids)
    if images is not None:
        for labels, ids in splits.values():
            for label, name in zip(labels.tolist(), ids, strict=True):
                draw_image(images / name, label)

    # What is hard is shared by all members; how hard a class is falls with its training images.
    skill = (train.double().log() / train.double().log().max()).float()
    zero_shot: dict[str, dict[str, Tensor]] = {}
    priors: dict[str, LabelPrior] = {}
    for name in backbones:
        bias = 0.9 * torch.randn(classes, generator=generator)
        folder = run.backbone_dir(name)
        zero_shot[name] = {}
        for split, (labels, _) in splits.items():
            zero_shot[name][split] = noisy_logits(labels, classes, 2.2, generator) + bias
        info = {"name": name, "backbone": f"open_clip:tiny/{name}", "weights": "random", "family": "open_clip_vit",
                "has_text": text, "feature_dim": 16, "image_size": 32, "parameters": 123456,
                "weights_fingerprint": "0123456789ab"}  # fmt: skip
        write_json(folder / "backbone.json", info)
        if not text:
            continue
        write_logits(folder / "zero_shot.safetensors", as_splits(zero_shot[name], splits, generator))
        # The truth and a plausible error stand in for an estimate, which is tested elsewhere.
        errors = 0.1 + 0.2 * torch.rand(classes, generator=generator, dtype=torch.float64)
        priors[name] = LabelPrior(
            bias.double().log_softmax(0), errors, source="zero_shot", num_samples=8 * classes
        )
        p_groups = ClassGroups.from_prior(priors[name])
        write_json(
            folder / "prior.json",
            {**priors[name].to_dict(), "p_groups": p_groups.names_of(),
             "p_membership": p_groups.membership.tolist() if p_groups.membership is not None else None},
        )  # fmt: skip
        result = evaluate(zero_shot[name]["test"], splits["test"][0], d_groups=d_groups, p_groups=p_groups)
        write_json(folder / "metrics.json", result.to_dict())

    mean_prior = LabelPrior.mean(list(priors.values())) if priors else None
    p_groups = ClassGroups.from_prior(mean_prior) if mean_prior else None
    groups = {"d_groups": d_groups, "p_groups": p_groups}

    members: dict[str, dict[str, Tensor]] = {}
    of_backbone: dict[str, str] = {}
    for backbone in backbones:
        shift = 0.6 * torch.randn(classes, generator=generator)
        for member_seed in seeds:
            name = f"{backbone}-seed{member_seed}" if len(seeds) > 1 else backbone
            of_backbone[name] = backbone
            members[name] = {
                split: noisy_logits(labels, classes, 1.6 + 1.8 * skill[labels], generator) + shift
                for split, (labels, _) in splits.items()
            }
            folder = run.member_dir(name)
            write_logits(
                folder / "logits.safetensors",
                as_splits(members[name], splits, generator if features else None),
            )
            write_json(
                folder / "metrics.json",
                evaluate(members[name]["test"], splits["test"][0], **groups).to_dict(),
            )
            epochs = [{"epoch": e, "loss": 2.0 / e, "accuracy": 0.3 * e, "seconds": 1.5} for e in (1, 2)]
            write_json(
                folder / "training.json",
                {"epochs": epochs, "steps": 20, "seconds": 3.0, "trained_parameters": 4567, "images_per_second": 800.0,
                 "backbone": backbone, "seed": member_seed},
            )  # fmt: skip

    write_results(
        run,
        settings,
        members,
        of_backbone,
        zero_shot if text else {},
        priors,
        mean_prior,
        train,
        groups,
        splits,
    )
    counts = {"train": train.tolist(), "val": [8] * classes, "test": [test_per_class] * classes}
    write_json(
        root / "classes.json",
        {"names": names, "counts": counts, "group_counts": train.tolist(), "d_groups": d_groups.names_of(),
         "p_groups": p_groups.names_of() if p_groups else None, "evaluated_on": "test",
         "notes": ["8 images a class were held out of train for val"]},
    )  # fmt: skip
    write_per_class(run, names, train, groups, priors, members, zero_shot if text else {}, splits["test"][0])
    run.write_provenance(
        data={"fingerprint": "f" * 20, "root": settings.data.root, "splits": {"train": int(train.sum())}},
        seeds=list(seeds),
    )
    write_json(
        root / "stages.json", {"zero_shot": {"inputs": "a", "outputs": [], "seconds": 1.0, "finished": "now"}}
    )
    return root


def make_recipe(
    root: Path,
    backbones: Sequence[str],
    seeds: Sequence[int],
    seed: int,
    changes: dict[str, Any],
    images: Path | None,
) -> Recipe:
    members = [
        {"backbone": f"open_clip:tiny/{name}", "weights": "random", "name": name, "seeds": list(seeds)}
        for name in backbones
    ]
    content = {
        "name": root.name,
        "seed": seed,
        "data": {"root": str(images or root / "images")},
        "members": members,
    }
    return parse_recipe({**content, **changes})


def noisy_logits(
    labels: Tensor, classes: int, strength: float | Tensor, generator: torch.Generator
) -> Tensor:
    logits = torch.randn(len(labels), classes, generator=generator)
    # A class is mostly taken for its neighbour, so that confusions have a structure.
    logits[torch.arange(len(labels)), (labels + 1) % classes] += 1.0
    logits[torch.arange(len(labels)), labels] += strength
    return 1.5 * logits


def as_splits(
    logits: dict[str, Tensor], splits: dict[str, Any], generator: torch.Generator | None
) -> dict[str, SplitLogits]:
    return {
        split: SplitLogits(
            logits[split], labels, ids,
            None if generator is None else torch.randn(len(labels), 16, generator=generator).half(),
        )
        for split, (labels, ids) in splits.items()
    }  # fmt: skip


def metric_row(method: str, label: str, members: Sequence[str], evaluation: Evaluation) -> dict[str, Any]:
    content = evaluation.to_dict()
    row: dict[str, Any] = {"method": method, "label": label, "members": "+".join(members), "m": len(members)}
    row |= {"split": content["split"], "n": content["n"], "overall": content["overall"]}
    row["overall_low"], row["overall_high"] = content["overall_ci"]
    row |= {
        key: content[key] for key in ("macro", "macro_f1", "worst", "harmonic", "geometric", "nll", "ece")
    }
    for kind in ("d", "p"):
        for name in ("many", "medium", "few"):
            row[f"{kind}_{name}"] = content.get(f"{kind}_groups", {}).get(name, {}).get("accuracy")
    row["tail_tail"] = content.get("tail_tail", {}).get("accuracy")
    return row


def write_results(
    run: RunDirectory,
    recipe: Recipe,
    members: dict[str, dict[str, Tensor]],
    of_backbone: dict[str, str],
    zero_shot: dict[str, dict[str, Tensor]],
    priors: dict[str, LabelPrior],
    mean_prior: LabelPrior | None,
    train: Tensor,
    groups: dict[str, ClassGroups | None],
    splits: dict[str, Any],
) -> None:
    labels = splits["test"][0]
    adjusted = run.adjusted_dir
    test = {name: logits["test"] for name, logits in members.items()}
    ensemble = backdoor_adjust(list(test.values()), rule=recipe.adjust.rule)
    write_json(adjusted / "metrics.json", evaluate(ensemble, labels, **groups).to_dict())
    write_json(
        adjusted / "weights.json",
        {"rule": recipe.adjust.rule, "members": list(members), "weights": [1 / len(members)] * len(members),
         "temperatures": None, "fitted": False},
    )  # fmt: skip
    if mean_prior is not None:
        write_json(adjusted / "prior.json", mean_prior.to_dict())

    rows = []
    for name, logits in zero_shot.items():
        rows.append(
            metric_row("zero_shot", f"zero-shot {name}", [name], evaluate(logits["test"], labels, **groups))
        )
        scores = logits["test"] - priors[name].log_prob
        rows.append(metric_row("gla_zs", f"GLA-ZS {name}", [name], evaluate(scores, labels, **groups)))
    rows += [
        metric_row("member", name, [name], evaluate(logits, labels, **groups))
        for name, logits in test.items()
    ]
    if len(members) > 1:
        rows.append(
            metric_row("ensemble", "backdoor adjustment", list(members), evaluate(ensemble, labels, **groups))
        )
    write_csv(adjusted / "methods.csv", rows)
    if len(members) > 1:
        subsets = []
        for size in range(1, len(members) + 1):
            for names in combinations(members, size):
                scores = backdoor_adjust([test[name] for name in names], rule=recipe.adjust.rule)
                subsets.append(
                    metric_row("subset", ", ".join(names), names, evaluate(scores, labels, **groups))
                )
        write_csv(adjusted / "subsets.csv", subsets)
    comparisons = []
    for name, logits in test.items():
        for measure in ("overall", "macro"):
            found = paired_test(ensemble, logits, labels, measure=measure)
            comparisons.append({"a": "ensemble", "b": name, **found.to_dict()})
    write_json(adjusted / "comparisons.json", comparisons)


def write_per_class(
    run: RunDirectory,
    names: Sequence[str],
    train: Tensor,
    groups: dict[str, ClassGroups | None],
    priors: dict[str, LabelPrior],
    members: dict[str, dict[str, Tensor]],
    zero_shot: dict[str, dict[str, Tensor]],
    labels: Tensor,
) -> None:
    accuracies = {f"zero_shot_{name}": logits["test"] for name, logits in zero_shot.items()}
    accuracies |= {f"member_{name}": logits["test"] for name, logits in members.items()}
    accuracies["adjusted"] = backdoor_adjust([logits["test"] for logits in members.values()])
    columns = {key: evaluate(logits, labels).per_class.accuracy for key, logits in accuracies.items()}
    n_test = torch.bincount(labels, minlength=len(names)).tolist()
    d_groups, p_groups = (
        groups["d_groups"].names_of(),
        groups["p_groups"].names_of() if groups["p_groups"] else None,
    )
    rows = []
    for index, name in enumerate(names):
        row: dict[str, Any] = {
            "class": index,
            "name": name,
            "n_train": int(train[index]),
            "n_test": n_test[index],
        }
        row |= {"d_group": d_groups[index], "p_group": p_groups[index] if p_groups else None}
        row |= {f"log_prior_{key}": float(prior.log_prob[index]) for key, prior in priors.items()}
        row |= {
            key: None if np.isnan(values[index]) else float(values[index]) for key, values in columns.items()
        }
        rows.append(row)
    write_csv(run.adjusted_dir / "per_class.csv", rows)


def draw_image(path: Path, label: int) -> None:
    """Draw something that a person tells apart: the class's number on its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = tuple(60 + (37 * (label + 1) * step) % 160 for step in (1, 2, 3))
    image = Image.new("RGB", (48, 40), color)
    ImageDraw.Draw(image).text((14, 12), str(label), fill="white")
    image.save(path)
