"""What every public function of ``dualtail.logits`` promises, in one matrix.

A row of ``CASES`` is one function with the arguments it is called with; each test below is one promise. A function
that has no row, and is not excused in ``EXCUSED``, fails ``test_every_public_function_has_a_row``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dualtail.logits
from dualtail.errors import InputError
from dualtail.logits import (
    adjust,
    backdoor,
    calibration,
    comparison,
    groups,
    intervals,
    losses,
    member_prior,
    metrics,
    neighbors,
    prior,
)
from dualtail.logits.groups import ClassGroups
from dualtail.logits.prior import LabelPrior

SAMPLES, CLASSES, WIDTH, BANK = 24, 7, 5, 30
LEADING = (2, 3, 4)

# --- one small problem, and what may be done to it ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """All arrays that any function takes; every one a tensor, unless a test turns them into something else."""

    logits: Any
    other: Any
    zero_shot: Any
    labels: Any
    features: Any
    bank: Any
    bank_labels: Any
    counts: Any
    prior: LabelPrior
    source: LabelPrior
    of_samples: LabelPrior  # of the labels themselves

    @property
    def d_groups(self) -> ClassGroups:
        return ClassGroups.from_counts(self.counts)

    @property
    def p_groups(self) -> ClassGroups:
        return ClassGroups.from_prior(self.prior)


BY_SAMPLE = ("logits", "other", "zero_shot", "labels", "features")
BY_CLASS = ("logits", "other", "zero_shot", "counts")
SCORES = ("logits", "other", "zero_shot")
FLOATING = (*SCORES, "features", "bank")


def make_data() -> Data:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(SAMPLES) % CLASSES
    one_hot = torch.nn.functional.one_hot(labels, CLASSES)
    return Data(
        logits=2 * normal(SAMPLES, CLASSES) + one_hot,
        other=2 * normal(SAMPLES, CLASSES) + 2 * one_hot,
        zero_shot=normal(SAMPLES, CLASSES) + one_hot,
        labels=labels,
        features=normal(SAMPLES, WIDTH),
        bank=normal(BANK, WIDTH),
        bank_labels=torch.arange(BANK) % CLASSES,
        counts=torch.tensor([900, 300, 90, 60, 25, 12, 3]),
        prior=LabelPrior(normal(CLASSES).log_softmax(0), standard_errors=torch.full((CLASSES,), 0.1)),
        source=LabelPrior(normal(CLASSES).log_softmax(0)),
        of_samples=LabelPrior.from_counts(torch.bincount(labels)),
    )


def change(data: Data, names: tuple[str, ...], function: Callable[[Any], Any]) -> Data:
    return dataclasses.replace(data, **{name: function(getattr(data, name)) for name in names})


def convert(data: Data, function: Callable[[Any], Any]) -> Data:
    """Apply ``function`` to every array."""
    return change(data, (*FLOATING, "labels", "bank_labels", "counts"), function)


def renumber(data: Data, order: Tensor) -> Data:
    """Give class ``order[i]`` the number ``i``."""
    data = change(data, BY_CLASS, lambda array: array[..., order])
    data = change(data, ("labels", "bank_labels"), lambda labels: order.argsort()[labels])
    return dataclasses.replace(
        data,
        prior=LabelPrior(data.prior.log_prob[order], data.prior.standard_errors[order]),
        source=LabelPrior(data.source.log_prob[order]),
        of_samples=LabelPrior(data.of_samples.log_prob[order]),
    )


# --- the matrix --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A function with its arguments.

    Args:
        function: the public function that the row is about.
        call: calls it on the data.
        reads: the arrays of the data that the call reads, for the tests with bad values.
        rows: whether the answer has one row a sample; else it is about the set and its order does not matter.
        answers_in_kind: whether it answers numpy with numpy and tensors with tensors.
        classes: how class numbers show in the answer: "axis" (an axis of length C is one entry a class), "values"
            (they are the answer), or None.
        view: what of the answer is compared; scores that may differ by a constant are seen through their softmax.
        shift: whether a constant added to a sample's logits changes nothing.
        leading: whether the leading dimensions are free.
        finite: whether values that are not finite are refused.
    """

    function: Callable[..., Any]
    call: Callable[[Data], Any]
    reads: tuple[str, ...]
    rows: bool = False
    answers_in_kind: bool = False
    classes: str | None = "axis"
    view: Callable[[Any], Any] = lambda answer: answer
    shift: bool = True
    leading: bool = True
    finite: bool = True


def softmax(scores: Any) -> Any:
    return torch.as_tensor(scores).softmax(-1)


def all_softmax(subsets: dict[Any, Any]) -> dict[str, Any]:
    return {str(subset): softmax(scores) for subset, scores in subsets.items()}


def fitted(answer: Any) -> Any:
    """The optimality gap and the like are rounding: not to be compared."""
    return {"log_prob": answer.log_prob, "standard_errors": answer.standard_errors}


PAIR = ("logits", "other", "labels")
GLA = {"zero_shot_logits": "zero_shot"}

CASES: dict[str, Case] = {
    "prior.estimate_label_prior": Case(
        prior.estimate_label_prior,
        lambda d: prior.estimate_label_prior(d.logits, d.labels, sample_prior=d.of_samples),
        ("logits", "labels"),
        view=fitted,
    ),
    "prior.estimate_label_prior, fixed": Case(
        prior.estimate_label_prior,
        lambda d: prior.estimate_label_prior(d.logits, d.labels, d.of_samples, temperature=2.0, shrinkage=1),
        ("logits", "labels"),
        view=fitted,
    ),
    "prior.estimate_target_prior": Case(
        prior.estimate_target_prior,
        lambda d: prior.estimate_target_prior(d.logits, d.source, smoothing=0.5),
        ("logits",),
        view=fitted,
    ),
    "prior.as_log_prior": Case(
        prior.as_log_prior, lambda d: prior.as_log_prior(d.prior, CLASSES), (), leading=False
    ),
    "groups.membership_probabilities": Case(
        groups.membership_probabilities,
        lambda d: groups.membership_probabilities(d.prior, thresholds=(0.1, 0.2)),
        (),
    ),
    "groups.cross_table": Case(
        groups.cross_table, lambda d: groups.cross_table(d.d_groups, d.p_groups), (), classes=None
    ),
    "groups.compare_priors": Case(
        groups.compare_priors, lambda d: groups.compare_priors(d.prior, d.source), (), classes=None
    ),
    "groups.compare_groups": Case(
        groups.compare_groups, lambda d: groups.compare_groups(d.d_groups, d.p_groups), (), classes=None
    ),
    **{
        f"losses.build_loss({name})": Case(
            losses.build_loss,
            lambda d, name=name: losses.build_loss(name, counts=d.counts, pretrain_prior=d.prior)(
                d.logits, d.labels
            ),
            ("logits", "labels"),
            answers_in_kind=True,
            classes=None,
            shift=name not in ("lade", "vs"),
            finite=False,  # a training loop finds out from the loss, without waiting for the device
        )
        for name in losses.LOSSES
    },
    **{
        f"adjust.adjust_logits({name})": Case(
            adjust.adjust_logits,
            lambda d, name=name: adjust.adjust_logits(
                d.logits,
                name,
                zero_shot_logits=d.zero_shot,
                source_prior=d.source,
                pretrain_prior=d.prior,
            ),
            ("logits", "zero_shot") if adjustment.adds_zero_shot else ("logits",),
            rows=True,
            answers_in_kind=True,
            view=softmax,
        )
        for name, adjustment in adjust.ADJUSTMENTS.items()
    },
    **{
        f"backdoor.backdoor_adjust({rule})": Case(
            backdoor.backdoor_adjust,
            lambda d, rule=rule: backdoor.backdoor_adjust([d.logits, d.other, d.zero_shot], rule=rule),
            SCORES,
            rows=True,
            answers_in_kind=True,
            view=softmax,
        )
        for rule in backdoor.RULES
    },
    "backdoor.backdoor_adjust, GLA": Case(
        backdoor.backdoor_adjust,
        lambda d: backdoor.backdoor_adjust(
            [d.logits, d.other],
            weights=[0.7, 0.3],
            temperatures=[1.0, 2.0],
            zero_shot_logits=[d.zero_shot, None],
            pretrain_priors=[d.prior, None],
            source_prior=d.source,
        ),
        SCORES,
        rows=True,
        answers_in_kind=True,
        view=softmax,
    ),
    "backdoor.adjust_subsets": Case(
        backdoor.adjust_subsets,
        lambda d: backdoor.adjust_subsets([d.logits, d.other]),
        ("logits", "other"),
        rows=True,
        answers_in_kind=True,
        classes="values",
    ),
    **{
        f"backdoor.adjust_subsets({rule}), scores": Case(
            backdoor.adjust_subsets,
            lambda d, rule=rule: backdoor.adjust_subsets([d.logits, d.other], lambda s, _: s, rule=rule),
            ("logits", "other"),
            rows=True,
            answers_in_kind=True,
            view=all_softmax,
        )
        for rule in backdoor.RULES
    },
    "backdoor.evaluate_subsets": Case(
        backdoor.evaluate_subsets,
        lambda d: backdoor.evaluate_subsets(
            [d.logits, d.other], d.labels, d_groups=d.d_groups, p_groups=d.p_groups
        ),
        PAIR,
    ),
    **{
        f"member_prior.fit_member_prior({rule})": Case(
            member_prior.fit_member_prior,
            lambda d, rule=rule: (
                member_prior.fit_member_prior([d.logits, d.other], d.labels, rule=rule).weights
            ),
            PAIR,
            classes=None,
        )
        for rule in ("logits", "probabilities")
    },
    "metrics.evaluate": Case(
        metrics.evaluate,
        lambda d: metrics.evaluate(d.logits, d.labels, d_groups=d.d_groups, p_groups=d.p_groups),
        ("logits", "labels"),
    ),
    "metrics.class_accuracy": Case(
        metrics.class_accuracy, lambda d: metrics.class_accuracy(d.logits, d.labels), ("logits", "labels")
    ),
    "metrics.top_k_accuracy": Case(
        metrics.top_k_accuracy,
        lambda d: metrics.top_k_accuracy(d.logits, d.labels, k=2),
        ("logits", "labels"),
    ),
    "calibration.reliability_curve": Case(
        calibration.reliability_curve,
        lambda d: calibration.reliability_curve(d.logits, d.labels, bins=5),
        ("logits", "labels"),
        classes=None,
    ),
    "calibration.expected_calibration_error": Case(
        calibration.expected_calibration_error,
        lambda d: calibration.expected_calibration_error(d.logits, d.labels),
        ("logits", "labels"),
    ),
    "calibration.classwise_calibration_error": Case(
        calibration.classwise_calibration_error,
        lambda d: calibration.classwise_calibration_error(d.logits, d.labels),
        ("logits", "labels"),
    ),
    "comparison.paired_test": Case(
        comparison.paired_test, lambda d: comparison.paired_test(d.logits, d.other, d.labels), PAIR
    ),
    "neighbors.nearest_neighbors": Case(
        neighbors.nearest_neighbors,
        lambda d: neighbors.nearest_neighbors(d.bank, d.features, k=4),
        ("features", "bank"),
        rows=True,
        answers_in_kind=True,
        classes=None,
        leading=False,
    ),
    "neighbors.knn_scores": Case(
        neighbors.knn_scores,
        lambda d: neighbors.knn_scores(d.bank, d.bank_labels, d.features, CLASSES, k=6),
        ("features", "bank", "bank_labels"),
        rows=True,
        answers_in_kind=True,
        leading=False,
    ),
    "neighbors.knn_predict": Case(
        neighbors.knn_predict,
        lambda d: neighbors.knn_predict(d.bank, d.bank_labels, d.features, CLASSES, k=6),
        ("features", "bank", "bank_labels"),
        rows=True,
        answers_in_kind=True,
        classes="values",
        leading=False,
    ),
    "neighbors.knn_accuracy": Case(
        neighbors.knn_accuracy,
        lambda d: neighbors.knn_accuracy(d.bank, d.bank_labels, d.features, d.labels, CLASSES, k=6),
        ("features", "bank", "bank_labels", "labels"),
        leading=False,
    ),
    "neighbors.disagreement": Case(
        neighbors.disagreement, lambda d: neighbors.disagreement([d.logits, d.other]), ("logits", "other")
    ),
    "neighbors.error_correlation": Case(
        neighbors.error_correlation,
        lambda d: neighbors.error_correlation([d.logits, d.other], d.labels),
        PAIR,
    ),
    "neighbors.linear_cka": Case(
        neighbors.linear_cka,
        lambda d: neighbors.linear_cka(d.features, d.zero_shot),
        ("features",),
        classes=None,
        shift=False,  # these are features: a constant of a sample is part of them
        leading=False,
    ),
}

# Public functions without arrays of samples or classes to be varied, tested where they live.
EXCUSED = {
    calibration.reliability_from,  # takes what a prediction leaves of the logits
    losses.adjusted_cross_entropy,  # what most losses are made of; takes checked tensors alone
    backdoor.all_subsets,
    comparison.summarize_seeds,
    metrics.harmonic_mean,
    metrics.geometric_mean,
    metrics.label_rank,  # takes checked tensors alone
    intervals.proportion_interval,
    intervals.mean_interval,
    intervals.check_interval,
    intervals.correlation_interval,
    intervals.difference_interval,
    intervals.weighted_mean_interval,
    intervals.normal_quantile,
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def cases_where(condition: Callable[[Case], Any]) -> Any:
    chosen = {name: case for name, case in CASES.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


# --- reading answers ---------------------------------------------------------------------------------------


def numbers(answer: Any, path: str = "") -> dict[str, np.ndarray]:
    """Return every array and number in an answer, by where it is."""
    if isinstance(answer, Tensor):
        return {path: answer.detach().numpy()}
    if isinstance(answer, (np.ndarray, float, int, np.number)):
        return {path: np.asarray(answer)}
    if answer is None or isinstance(answer, str):
        return {}
    if hasattr(answer, "to_dict"):
        return numbers(answer.to_dict(), path)
    if dataclasses.is_dataclass(answer):
        answer = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    if isinstance(answer, Mapping):
        items = answer.items()
    elif all(isinstance(value, (int, float)) for value in answer):
        return {path: np.asarray(answer)}
    else:
        items = enumerate(answer)
    return {key: value for name, part in items for key, value in numbers(part, f"{path}/{name}").items()}


def answer(case: Case, data: Data) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        # The handful of samples here is no draw from any prior in particular.
        warnings.simplefilter("ignore", UserWarning)
        return numbers(case.view(case.call(data)))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-9):
    assert found.keys() == expected.keys()
    assert expected
    for key in expected:
        np.testing.assert_allclose(
            found[key], expected[key], rtol=tolerance, atol=tolerance, equal_nan=True, err_msg=key
        )


DATA = make_data()
# The estimates are solved to a gap of 1e-10 nats or so, which leaves their arguments the root of it.
SOLVED = 1e-4


def tolerance_of(case: Case, plain: float = 1e-9) -> float:
    solved = case.function.__name__.startswith(("estimate_", "fit_"))
    return SOLVED if solved else plain


# --- the promises ------------------------------------------------------------------------------------------


def test_every_public_function_has_a_row():
    tested = {case.function for case in CASES.values()} | EXCUSED
    for module in pkgutil.walk_packages(dualtail.logits.__path__, "dualtail.logits."):
        if "._" in module.name:
            continue
        loaded = importlib.import_module(module.name)
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if function.__module__ == loaded.__name__ and not name.startswith("_"):
                assert function in tested, f"{module.name}.{name} has no row in the matrix"


@cases_where(lambda case: case.shift and set(case.reads) & set(SCORES))
def test_a_constant_added_to_a_samples_logits_changes_nothing(case):
    generator = torch.Generator().manual_seed(1)
    shifted = change(
        DATA, SCORES, lambda scores: scores + 10 * torch.randn(SAMPLES, 1, generator=generator).double()
    )
    assert_same(answer(case, shifted), answer(case, DATA), tolerance_of(case, 1e-7))


@every_case
def test_classes_may_be_renumbered(case):
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    found, expected = answer(case, renumber(DATA, order)), answer(case, DATA)
    for key, value in expected.items():
        if case.classes == "values":
            expected[key] = order.argsort().numpy()[value]
        elif case.classes == "axis":
            axes = [axis for axis, length in enumerate(value.shape) if length == CLASSES]
            expected[key] = np.take(value, order, axis=axes[-1]) if axes else value
    assert_same(found, expected, tolerance_of(case, 1e-6))


@cases_where(lambda case: case.rows)
def test_a_batch_may_be_split(case):
    halves = [
        answer(case, change(DATA, BY_SAMPLE, lambda array, rows=rows: array[rows]))
        for rows in (slice(0, 10), slice(10, None))
    ]
    joined = {key: np.concatenate([half[key] for half in halves]) for key in halves[0]}
    assert_same(joined, answer(case, DATA))


@cases_where(lambda case: set(case.reads) & set(BY_SAMPLE))
def test_the_order_of_samples_does_not_matter(case):
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))
    found = answer(case, change(DATA, BY_SAMPLE, lambda array: array[order]))
    expected = answer(case, DATA)
    if case.rows:
        expected = {key: value[order] for key, value in expected.items()}
    assert_same(found, expected, tolerance_of(case))


@cases_where(lambda case: case.leading and case.reads)
def test_leading_dimensions_are_free(case):
    def boxes(array):
        return array.reshape(*LEADING, *array.shape[1:])

    found, expected = answer(case, change(DATA, (*SCORES, "labels"), boxes)), answer(case, DATA)
    if case.rows:
        expected = {key: boxes(value) for key, value in expected.items()}
    assert_same(found, expected, tolerance_of(case))


@every_case
def test_float32_agrees_with_float64(case):
    single = change(DATA, FLOATING, lambda array: array.float())
    assert_same(answer(case, single), answer(case, DATA), max(2e-4, 10 * tolerance_of(case)))


@cases_where(lambda case: set(case.reads) & set(FLOATING))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(case, dtype):
    half = change(DATA, FLOATING, lambda array: array.to(dtype))
    widened = change(half, FLOATING, lambda array: array.float())
    assert_same(answer(case, half), answer(case, widened), 1e-12)


@every_case
def test_numpy_and_torch_agree_and_are_answered_in_kind(case):
    with_numpy = convert(DATA, lambda array: array.numpy())
    assert_same(answer(case, with_numpy), answer(case, DATA), 1e-12)
    if case.answers_in_kind:
        for data, kind in ((DATA, Tensor), (with_numpy, np.ndarray)):
            found = case.call(data)
            found = list(found.values()) if isinstance(found, dict) else found
            for array in found if isinstance(found, (list, tuple)) else [found]:
                assert isinstance(array, kind)


@every_case
def test_inputs_are_left_as_they_are(case):
    before = convert(DATA, lambda array: array.clone())
    answer(case, DATA)
    for field in dataclasses.fields(Data):
        value = getattr(DATA, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(before, field.name)), field.name


@cases_where(lambda case: set(case.reads) & set(FLOATING))
def test_strides_do_not_matter(case):
    strided = change(DATA, FLOATING, lambda array: array.t().contiguous().t())
    assert_same(answer(case, strided), answer(case, DATA), tolerance_of(case))
    read_only = convert(DATA, lambda array: array.numpy().copy())
    for field in dataclasses.fields(Data):
        value = getattr(read_only, field.name)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not writable.*")
        assert_same(answer(case, read_only), answer(case, DATA), tolerance_of(case))


def with_entry(array: Tensor, value: float) -> Tensor:
    array = array.clone()
    array[5, 1] = value
    return array


@cases_where(lambda case: case.finite and set(case.reads) & set(FLOATING))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(case, value):
    for name in set(case.reads) & set(FLOATING):
        with pytest.raises(InputError, match=r"not finite|hold -?(inf|nan)") as error:
            answer(case, change(DATA, (name,), lambda array: with_entry(array, value)))
        assert "\n" not in str(error.value)


def unaligned(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)


# The same numbers, as arrays of other layouts and types hold them.
LAYOUTS = {
    "reversed": lambda a: a.numpy()[::-1].copy()[::-1],
    "reversed in both": lambda a: np.flip(np.flip(a.numpy()).copy()),
    "every second": lambda a: a.numpy().repeat(2, axis=0)[::2],
    "swapped bytes": lambda a: a.numpy().astype(a.numpy().dtype.newbyteorder(">")),
    "Fortran": lambda a: np.asfortranarray(a.numpy()),
    "unaligned": lambda a: (
        np.frombuffer(b"x" + a.numpy().tobytes(), np.uint8)[1:].view(a.numpy().dtype).reshape(a.shape)
    ),
    "masked, none hidden": lambda a: np.ma.MaskedArray(a.numpy()),
    "lists": lambda a: a.tolist(),
    "tuple of arrays": lambda a: tuple(a.numpy()),
    "list of tensors": lambda a: list(a),
    "parameter": lambda a: torch.nn.Parameter(a.clone(), requires_grad=a.is_floating_point()),
}
# What is more than an array of plain numbers: understood, or refused in one line.
STRANGE = {
    "longdouble": lambda a: a.numpy().astype(np.longdouble),
    "objects": lambda a: a.numpy().astype(object),
    "texts": lambda a: a.numpy().astype(str),
    "sparse": lambda a: a.to_sparse(),
    "lists of mixed types": lambda a: [*a.tolist()[:-1], "x"],
    "lists with None": lambda a: [*a.tolist()[:-1], None],
}
NONSENSE = {
    "hidden entries": lambda a: np.ma.MaskedArray(a.numpy(), mask=a.numpy() == a.numpy().flat[0]),
    "meta": lambda a: a.to("meta"),
    "0-d": lambda a: a.flatten()[0],
    "a number": lambda a: 3,
    "0-d object": lambda a: np.array(object()),
    "text": lambda a: "cat",
    "bytes": lambda a: b"cat",
    "mapping": lambda a: {"a": 1},
    "function": lambda a: len,
    "ragged": lambda a: [[1.0, 2.0], [3.0]],
    "dates": lambda a: np.full(a.shape, np.datetime64("2020-01-01")),
    "records": lambda a: np.zeros(len(a), dtype=[("x", "f8"), ("y", "f8")]),
    "huge numbers": lambda a: [[10**400] * CLASSES] * len(a),
    "truths": lambda a: a > 0,
    "complex": lambda a: a.numpy().astype(complex),
}


@functools.cache
def plain_answer(case: Case) -> dict[str, np.ndarray]:
    return answer(case, DATA)


@cases_where(lambda case: case.reads)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter(case, layout):
    for name in case.reads:
        assert_same(
            answer(case, change(DATA, (name,), LAYOUTS[layout])), plain_answer(case), tolerance_of(case)
        )


@cases_where(lambda case: case.reads)
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_arrays_are_understood_or_refused(case, kind):
    for name in case.reads:
        with contextlib.suppress(InputError):
            assert_same(
                answer(case, change(DATA, (name,), STRANGE[kind])), plain_answer(case), tolerance_of(case)
            )


@cases_where(lambda case: case.reads)
@pytest.mark.parametrize("kind", NONSENSE)
def test_what_is_no_array_of_numbers_is_refused(case, kind):
    for name in case.reads:
        with pytest.raises(InputError) as error:
            answer(case, change(DATA, (name,), NONSENSE[kind]))
        assert "\n" not in str(error.value)


@cases_where(lambda case: set(case.reads) & {"labels", "bank_labels"})
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", ">u2", ">i8"])
def test_labels_are_whole_numbers_of_any_type(case, dtype):
    as_numpy = change(DATA, ("labels", "bank_labels"), lambda labels: labels.numpy().astype(dtype))
    assert_same(answer(case, as_numpy), plain_answer(case), tolerance_of(case))
    if dtype[0] != ">":
        as_torch = change(DATA, ("labels", "bank_labels"), lambda labels: labels.to(getattr(torch, dtype)))
        assert_same(answer(case, as_torch), plain_answer(case), tolerance_of(case))


@cases_where(lambda case: {"labels", "bank_labels"} & set(case.reads))
@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_labels_beyond_int64_are_refused(case, value):
    for name in {"labels", "bank_labels"} & set(case.reads):

        def beyond(labels):
            wide = labels.numpy().astype(np.uint64)
            wide[3] = value
            return wide

        with pytest.raises(InputError):
            answer(case, change(DATA, (name,), beyond))


BAD_SCORES = {
    "integers": lambda scores: scores.long(),
    "complex": lambda scores: scores.to(torch.complex64),
    "one class": lambda scores: scores[..., :1],
    "words": lambda scores: [["a", "b"]] * len(scores),
}


@cases_where(lambda case: set(case.reads) & set(SCORES))
@pytest.mark.parametrize("fault", BAD_SCORES)
def test_malformed_logits_are_refused(case, fault):
    for name in set(case.reads) & set(SCORES):
        with pytest.raises(InputError) as error:
            answer(case, change(DATA, (name,), BAD_SCORES[fault]))
        assert "\n" not in str(error.value)


BAD_LABELS = {
    "too large": lambda labels: labels.clone().index_fill_(0, torch.tensor([3]), CLASSES),
    "negative": lambda labels: labels.clone().index_fill_(0, torch.tensor([3]), -1),
    "floating": lambda labels: labels.double(),
    "too few": lambda labels: labels[:-1],
    "a column": lambda labels: labels[:, None],
}


@cases_where(lambda case: {"labels", "bank_labels"} & set(case.reads))
@pytest.mark.parametrize("fault", BAD_LABELS)
def test_malformed_labels_are_refused(case, fault):
    for name in {"labels", "bank_labels"} & set(case.reads):
        # Predictions may be compared by functions that never learn how many classes there are.
        if fault == "too large" and case.function in (comparison.paired_test, neighbors.error_correlation):
            continue
        with pytest.raises(InputError) as error:
            answer(case, change(DATA, (name,), BAD_LABELS[fault]))
        assert "\n" not in str(error.value)


@cases_where(lambda case: len(set(case.reads) & {"logits", "other", "zero_shot"}) > 1)
def test_different_shapes_are_refused(case):
    for name in set(case.reads) & {"other", "zero_shot"}:
        with pytest.raises(InputError) as error:
            answer(case, change(DATA, (name,), lambda scores: scores[:-1]))
        assert "\n" not in str(error.value)
