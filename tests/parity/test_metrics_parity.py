"""Metrics and kNN against what the authors' evaluator gave on fixed random logits and features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dualtail.logits.calibration import expected_calibration_error
from dualtail.logits.groups import ClassGroups
from dualtail.logits.metrics import evaluate, geometric_mean
from dualtail.logits.neighbors import knn_predict, knn_scores

FOLDER = Path(__file__).parent / "data"
DATA = load_file(FOLDER / "metrics.safetensors")
SAID = json.loads((FOLDER / "metrics.json").read_text())

# The reference's evaluator counts in float64, so its accuracies are met to rounding. Its harmonic mean takes a class
# accuracy below 0.001 per cent for that: our ``zero_floor``. Confidences and votes are float32, in another order.
COUNTED = 1e-12
TOLERANCE = 1e-4
FLOOR = 1e-5


def logits_of(case: str) -> np.ndarray:
    logits = DATA["logits"].copy()
    if case == "one_class_never_right":
        logits.reshape(-1)[DATA["never_right.place"]] = DATA["never_right.value"]
    return logits


def reference_groups() -> ClassGroups:
    index = torch.zeros(len(DATA["counts"]), dtype=torch.int64)
    index[DATA["med"]], index[DATA["few"]] = 1, 2
    return ClassGroups(index, "D")


def test_groups_by_counts_are_the_references():
    assert torch.equal(ClassGroups.from_counts(DATA["counts"]).index, reference_groups().index)


@pytest.mark.parametrize("case", ["main", "one_class_never_right"])
def test_accuracies(case):
    said = {name: value / 100 for name, value in SAID["results"][case].items()}
    ours = evaluate(logits_of(case), DATA["gt"], d_groups=reference_groups(), zero_floor=FLOOR)
    assert ours.overall == pytest.approx(said["accuracy"], abs=COUNTED)
    assert 1 - ours.overall == pytest.approx(said["error_rate"], abs=COUNTED)
    assert ours.macro == pytest.approx(said["mean_acc"], abs=COUNTED)
    assert ours.macro_f1 == pytest.approx(said["macro_f1"], abs=COUNTED)
    assert ours.worst == pytest.approx(said["worst_case_acc"], abs=COUNTED)
    assert ours.harmonic == pytest.approx(
        said["hmean_acc"], abs=1e-7
    )  # the floor is the reference's to 7 digits
    for name, theirs in (("many", "many_acc"), ("medium", "med_acc"), ("few", "few_acc")):
        assert ours.d_groups[name].accuracy == pytest.approx(said[theirs], abs=COUNTED)


def test_geometric_mean():
    main, never = (evaluate(logits_of(case), DATA["gt"]) for case in ("main", "one_class_never_right"))
    assert main.geometric == pytest.approx(SAID["results"]["main"]["gmean_acc"] / 100, abs=COUNTED)
    assert never.geometric == SAID["results"]["one_class_never_right"]["gmean_acc"] == 0
    assert never.harmonic == 0  # without a floor, as the mathematics has it


def test_expected_calibration_error():
    ours = expected_calibration_error(2 * DATA["logits"], DATA["gt"], bins=10)
    assert ours == pytest.approx(SAID["ece_10_bins"]["x2"], abs=TOLERANCE)


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_the_references_failure_at_an_empty_bin_is_not_copied(scale):
    assert "ZeroDivisionError" in SAID["ece_10_bins"][f"x{scale:g}"]
    assert 0 < expected_calibration_error(np.float32(scale) * DATA["logits"], DATA["gt"], bins=10) < 1


def test_its_failure_at_an_absent_class_is_not_copied():
    assert "IndexError" in SAID["results"]["class_10_absent"]
    keep = DATA["gt"] != 10
    ours = evaluate(DATA["logits"][keep], DATA["gt"][keep], d_groups=reference_groups())
    assert ours.absent_classes == (10,)
    assert ours.d_groups["many"].absent == 1
    others = np.delete(evaluate(DATA["logits"], DATA["gt"]).per_class.accuracy, 10)
    assert ours.macro == pytest.approx(others.mean())


def test_its_underflow_with_thousands_of_classes_is_not_copied():
    assert SAID["gmean_underflow_C8142_all_70pct"] > 90
    assert geometric_mean(np.full(8142, 0.7)) == pytest.approx(0.7, abs=COUNTED)


def test_votes_of_neighbours():
    k, temperature, classes = (SAID["knn"][name] for name in ("k", "t", "classes"))
    arguments = DATA["knn_bank"], DATA["knn_bank_labels"], DATA["knn_query"], classes, k, temperature
    np.testing.assert_allclose(
        knn_scores(*arguments), DATA["knn_scores"], rtol=TOLERANCE, atol=TOLERANCE * DATA["knn_scores"].max()
    )
    np.testing.assert_array_equal(knn_predict(*arguments), DATA["knn_scores"].argmax(1))
