"""Label priors: from counts, estimated from a model's logits, averaged over models.

Three different quantities go by the name "label prior"; a :class:`LabelPrior` says in ``source`` which one it is.

- ``P_S(Y)``, the source prior of the downstream training set: :meth:`LabelPrior.from_counts`.
- ``P_P(Y)``, the prior that pre-training left in a model: :func:`estimate_label_prior`.
- the prior of an unlabelled target set: :func:`estimate_target_prior`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dualtail.errors import InputError, check_choice
from dualtail.logits._arrays import ArrayLike, as_counts, as_float, check_finite, check_saved
from dualtail.logits._intercepts import (
    Curvature,
    DenseCurvature,
    InterceptObjective,
    MixtureObjective,
    NotDetermined,
    Point,
    ScaleFit,
    certify,
    fit_scale,
    fits_dense,
    log_prob_variances,
    quasi_newton,
    spread_of,
    strength_for,
)
from dualtail.logits._passes import SoftmaxPasses

# How far from 1 the probabilities of a given log prior may sum before it is taken for something else
# (counts, probabilities, unnormalised scores).
_NORMALISATION_TOLERANCE = 1e-4

# Optimality gaps, in nats a sample: good enough to choose the strength, aimed at, and worth a warning.
_ROUGH_GAP, _GAP, _GAP_TO_WARN = 1e-6, 1e-11, 1e-6
# Where Newton's method begins: once the Hessian is inverted its steps cost a pass each, otherwise several.
_GAP_FOR_NEWTON = {DenseCurvature: 1e-8, Curvature: 1e-10}
_TARGET_GAP, _TARGET_ROUNDS = 1e-5, 20
_STRENGTH_ROUNDS = 8
# Variances of log-probabilities that are believed: standard deviations from 1 % of a probability to e^10.
_LEAST_SPREAD, _LARGEST_SPREAD = 1e-4, 1e2

# How far the logarithms of a uniform prior may be apart: what the buffers of a loss lose of them.
_UNIFORM = 1e-4

_SOURCES = ("counts", "zero_shot", "unlabelled", "mean", "uniform", "given")


@dataclass(frozen=True, eq=False)
class LabelPrior:
    """A distribution over classes, ``log P(Y)``, with what is known of its error and its origin.

    Args:
        log_prob: ``(C,)`` natural logarithms, finite, normalised (logsumexp within 1e-4 of 0; the rest is
            taken off). Kept as float64 on the CPU.
        standard_errors: ``(C,)`` standard errors of ``log_prob``, or None where it is not an estimate.
        source: ``"counts"`` (``P_S``), ``"zero_shot"`` (``P_P`` from labelled logits), ``"unlabelled"`` (the
            prior of an unlabelled target set), ``"mean"`` (of several), ``"uniform"`` or ``"given"``.
        num_samples: how many samples it was estimated from.
        optimality_gap: how far at most the estimate's objective, in nats a sample, is above its minimum.
        temperature: what the logits were divided by before the estimate.
        shrinkage: strength of the ridge on the log-probabilities, in samples (0: none).

    Raises:
        InputError: the values are not finite, or not normalised log-probabilities.

    Example:
        >>> prior = LabelPrior.from_counts([60, 30, 10])
        >>> prior.prob
        tensor([0.6000, 0.3000, 0.1000], dtype=torch.float64)
        >>> len(prior), prior.source
        (3, 'counts')
    """

    log_prob: Tensor
    standard_errors: Tensor | None = None
    source: str = "given"
    num_samples: int | None = None
    optimality_gap: float | None = None
    temperature: float | None = None
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        log_prob = _normalised(self.log_prob, "log_prob").cpu()
        object.__setattr__(self, "log_prob", log_prob)
        check_choice("source of a prior", self.source, _SOURCES)
        if self.standard_errors is not None:
            errors = as_float(self.standard_errors, "standard_errors").detach().double().cpu()
            if errors.shape != log_prob.shape:
                raise InputError(
                    f"standard_errors has shape {tuple(errors.shape)}",
                    fix=f"expected {tuple(log_prob.shape)}",
                )
            if bool((check_finite(errors, "standard_errors") < 0).any()):
                raise InputError("standard_errors holds a negative value")
            object.__setattr__(self, "standard_errors", errors)

    def __len__(self) -> int:
        """Return the number of classes C."""
        return len(self.log_prob)

    def __repr__(self) -> str:
        known = [f"classes={len(self)}", f"source={self.source!r}"]
        for name in ("num_samples", "optimality_gap", "temperature", "shrinkage"):
            value = getattr(self, name)
            if value is not None:
                known.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
        return f"LabelPrior({', '.join(known)})"

    @property
    def prob(self) -> Tensor:
        """The probabilities ``(C,)``, float64."""
        return self.log_prob.exp()

    @property
    def is_uniform(self) -> bool:
        """Whether it is the uniform prior up to rounding in float32, so that taking it off changes nothing."""
        return float(self.log_prob.max() - self.log_prob.min()) < _UNIFORM

    @classmethod
    def from_counts(
        cls, counts: ArrayLike, zero: Literal["error", "smooth"] = "error", smoothing: float | None = None
    ) -> LabelPrior:
        """Return ``P_S(y) = n_y / N``, or ``(n_y + smoothing) / (N + C smoothing)``.

        Args:
            counts: ``(C,)`` numbers of samples of each class, not negative.
            zero: what to do about a class without samples, whose log-probability would be minus infinity:
                ``"error"`` refuses it and names the classes, ``"smooth"`` adds ``smoothing`` to every class.
            smoothing: the amount for ``zero="smooth"``; 1 is Laplace's rule, 0.5 is Jeffreys'.

        Raises:
            InputError: counts are malformed, a class is empty under ``"error"``, or the amount is missing.

        Example:
            >>> LabelPrior.from_counts([3, 0, 1], zero="smooth", smoothing=1).prob.tolist()
            [0.571..., 0.142..., 0.285...]
        """
        counts = as_counts(counts)
        check_choice("zero policy", zero, ("error", "smooth"))
        if zero == "error":
            if smoothing is not None:
                raise InputError("smoothing is given but zero='error'", fix="pass zero='smooth'")
            if bool((counts == 0).any()):
                empty = (counts == 0).nonzero().flatten().tolist()
                raise InputError(
                    f"counts are zero for {_list_classes(empty)}",
                    fix="pass zero='smooth' with a smoothing, or leave the classes out",
                )
        else:
            if smoothing is None or not (0 < smoothing < math.inf):
                raise InputError(f"smoothing is {smoothing}", fix="zero='smooth' needs a positive amount")
            counts = counts + smoothing
        return cls(counts.log() - counts.sum().log(), source="counts")

    @classmethod
    def uniform(cls, num_classes: int) -> LabelPrior:
        """Return the uniform prior over ``num_classes`` classes.

        Example:
            >>> LabelPrior.uniform(4).prob.tolist()
            [0.25, 0.25, 0.25, 0.25]
        """
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}", fix="expected at least 2")
        return cls(torch.full((num_classes,), -math.log(num_classes), dtype=torch.float64), source="uniform")

    @classmethod
    def mean(cls, priors: Sequence[LabelPrior]) -> LabelPrior:
        """Return the mean of log priors, renormalised: the prior of an ensemble that averages logits.

        Standard errors, if every prior has them, are the mean of the errors: an upper bound however the
        estimates correlate, as those from the same samples do.

        Args:
            priors: one or more priors over the same classes.

        Example:
            >>> ensemble = LabelPrior.mean([LabelPrior.from_counts([8, 1, 1]), LabelPrior.from_counts([1, 8, 1])])
            >>> ensemble.prob.tolist()
            [0.424..., 0.424..., 0.15...]
        """
        priors = list(priors)
        if not priors:
            raise InputError("no priors to average", fix="pass at least one")
        sizes = {len(prior) for prior in priors}
        if len(sizes) > 1:
            raise InputError(f"priors have different numbers of classes: {sorted(sizes)}")
        log_prob = torch.stack([prior.log_prob for prior in priors]).mean(0).log_softmax(0)
        errors = [prior.standard_errors for prior in priors if prior.standard_errors is not None]
        standard_errors = torch.stack(errors).mean(0) if len(errors) == len(priors) else None
        return cls(log_prob, standard_errors, source="mean")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values; :meth:`from_dict` reads it back exactly."""
        return {
            "log_prob": self.log_prob.tolist(),
            "standard_errors": None if self.standard_errors is None else self.standard_errors.tolist(),
            "source": self.source,
            "num_samples": self.num_samples,
            "optimality_gap": self.optimality_gap,
            "temperature": self.temperature,
            "shrinkage": self.shrinkage,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LabelPrior:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: a key is missing or unknown.
        """
        check_saved("label prior", data, cls.__dataclass_fields__)
        values = dict(data)
        values["log_prob"] = torch.tensor(data["log_prob"], dtype=torch.float64)
        if data["standard_errors"] is not None:
            values["standard_errors"] = torch.tensor(data["standard_errors"], dtype=torch.float64)
        return cls(**values)


def as_log_prior(value: LabelPrior | ArrayLike, num_classes: int, name: str = "prior") -> Tensor:
    """Return ``log P(Y)`` as a float64 tensor ``(C,)``, from a :class:`LabelPrior` or an array of logs.

    An array must hold *log*-probabilities: nothing is guessed from its values.

    Args:
        value: the prior, or ``(C,)`` natural logarithms whose logsumexp is within 1e-4 of 0.
        num_classes: C.
        name: what the caller's user knows it by, for the message.

    Raises:
        InputError: wrong shape, values that are not finite, or not normalised.

    Example:
        >>> as_log_prior(LabelPrior.uniform(2), 2).tolist()
        [-0.693..., -0.693...]
        >>> as_log_prior([0.5, 0.5], 2)
        Traceback (most recent call last):
        ...
        dualtail.errors.InputError: prior: log-probabilities expected, but ...
    """
    log_prior = value.log_prob if isinstance(value, LabelPrior) else _normalised(value, name)
    if len(log_prior) != num_classes:
        raise InputError(f"{len(log_prior)} classes, but {num_classes} are expected", where=name)
    return log_prior


@dataclass(frozen=True)
class _Fit:
    """A solved problem, its Hessian, gap and scale."""

    problem: InterceptObjective
    point: Point
    curvature: Curvature
    gap: float
    scale: ScaleFit | None


def estimate_label_prior(
    logits: ArrayLike,
    labels: ArrayLike,
    sample_prior: LabelPrior | ArrayLike | None = None,
    temperature: float | Literal["fit"] | None = None,
    shrinkage: float | Literal["auto"] = "auto",
    *,
    standard_errors: bool = True,
) -> LabelPrior:
    r"""Estimate ``P_P(Y)``, the label prior that pre-training left in a model, from its logits on labelled samples.

    With ``pi`` the samples' own label prior, ``T`` the temperature, and ``b = log q`` ::

        log P_P = argmin_b  sum_i CE(f_i / T - b + log pi, y_i) + (shrinkage / 2) ||b - mean b||^2

    normalised. This is GLA's estimate (Zhu et al., "Generalized Logit Adjustment", NeurIPS 2023, arXiv
    2310.08106), a convex problem, solved here to optimality by a quasi-Newton method and certified with the
    Hessian, in some 20 to 40 passes over the logits. Logits must be calibrated up to the prior (and ``T``) for
    the result to be a prior: it is the one under which the model's probabilities agree with the labels.

    Shrinkage. The plain optimum (``shrinkage=0``) is noisy with few samples a class and infinite for a class
    without any. ``"auto"`` chooses the ridge towards the uniform prior from the data, by the Laplace
    approximation of the marginal likelihood of log-probabilities that are normal with unknown variance; its traces
    are exact up to 256 classes and come from random probes above. At 1,000 classes with 20 samples each this
    took 11 % off the excess loss on held-out samples (``benchmarks/``).

    Standard errors are of the normalised ``log_prob``, from the inverse Hessian, less ``diag(1/n)`` where the
    labels' counts agree with ``sample_prior`` (20 a class, or ``P_S`` of the very samples), since counts that are
    fixed do not vary (Prentice and Pyke, Biometrika 66, 1979). With shrinkage they are root mean squared errors
    over data *and* priors of the variance found (for labels drawn at random: posterior standard deviations), right on
    average over classes, too small for a class whose prior is extreme. Up to 11,585 classes the Hessian is
    inverted as a matrix (in float32 beyond 4,096); above, its diagonal is estimated with 64 random probes.

    Args:
        logits: ``(..., C)`` zero-shot logits: a tensor, a numpy array or memory map, or a two-dimensional object
            with ``shape``, ``dtype`` and slicing by rows, which is streamed. float16 and bfloat16 are widened.
        labels: ``(...)`` integers.
        sample_prior: ``pi``: None for a balanced set, ``P_S`` for the training set. Where labels were drawn at
            random, ``LabelPrior.from_counts`` of these labels gives a more precise estimate than the prior that they
            were drawn from, whose fluctuations it takes off.
        temperature: ``T``: None for 1, a number, or ``"fit"`` to minimise over it as well.
        shrinkage: ``"auto"``, or the strength of the ridge in units of samples; 0 is GLA's plain optimum.
        standard_errors: False leaves them out, and with them the ``(C, C)`` Hessian.

    Returns:
        A :class:`LabelPrior` with source ``"zero_shot"``. Its ``optimality_gap`` is in nats a sample: an upper bound
        where the Hessian is inverted, else half the squared Newton decrement.

    Raises:
        InputError: malformed input, a class without samples at ``shrinkage=0``, or a temperature that cannot be
            fitted.

    Warns:
        UserWarning: the labels cannot have been drawn from ``sample_prior``.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(3).repeat(2000)                          # a balanced set ...
        >>> evidence = torch.randn(6000, 3, generator=generator)           # ... with log p(x | y) up to a constant
        >>> evidence += torch.nn.functional.one_hot(labels, 3)
        >>> logits = evidence + torch.tensor([0.7, 0.2, 0.1]).log()        # and a model that learned another prior
        >>> estimate_label_prior(logits, labels).prob
        tensor([0.702..., 0.199..., 0.098...], dtype=torch.float64)
    """
    strength = _checked_strength(shrinkage)
    scale = _checked_scale(temperature)
    passes = SoftmaxPasses(logits, labels)
    log_pi = _checked_sample_prior(sample_prior, passes)
    deviance, freedom = _deviance(passes, log_pi)
    fixed_counts = deviance < freedom / 10
    if strength == 0:
        _refuse_empty_classes(passes)
    if deviance > freedom + 10 * math.sqrt(2 * freedom) + 20:
        warnings.warn(
            "the labels cannot have been drawn from sample_prior"
            + (" (uniform by default)" if sample_prior is None else "")
            + "; pass the prior of these samples, such as LabelPrior.from_counts of their labels",
            stacklevel=2,
        )
    problem = InterceptObjective(passes, log_pi, scale, 1.0 if strength is None else strength)
    fit = _fit(problem, strength is None, temperature == "fit", fixed_counts, standard_errors)
    if fit.gap > _GAP_TO_WARN:
        warnings.warn(
            f"the estimate is {fit.gap:.2g} nats a sample from the optimum", RuntimeWarning, stacklevel=2
        )
    return LabelPrior(
        fit.point.b.log_softmax(0),
        _errors(fit, fixed_counts) if standard_errors else None,
        source="zero_shot",
        num_samples=passes.num_rows,
        optimality_gap=fit.gap,
        temperature=1 / problem.scale,
        shrinkage=problem.strength,
    )


def estimate_target_prior(
    logits: ArrayLike, source_prior: LabelPrior | ArrayLike, *, smoothing: float = 0.0
) -> LabelPrior:
    """Estimate the label prior of an *unlabelled* set, given the prior that the classifier's logits contain.

    This is another quantity than :func:`estimate_label_prior` finds: not what the model believes but what the samples
    hold. It maximises ``sum_i log sum_y q_y softmax(f_i)_y / source_y + smoothing sum_y log q_y`` over the
    simplex: the optimum that the expectation maximisation of Saerens, Latinne and Decaestecker (Neural Computation
    14, 2002) tends to, found by a quasi-Newton method in fewer passes.

    Args:
        logits: ``(..., C)`` calibrated logits of the target samples; kinds as in :func:`estimate_label_prior`.
        source_prior: the prior in the logits: ``P_S`` for a classifier trained by cross-entropy, ``P_P`` for
            zero-shot logits, uniform for adjusted ones.
        smoothing: added to every class's expected count. At 0 a class that no sample supports gets a
            probability of about 0 (1e-20 at least).

    Returns:
        A :class:`LabelPrior` with source ``"unlabelled"``; its ``optimality_gap`` is an upper bound, in nats a sample.

    Raises:
        InputError: malformed input.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.multinomial(torch.tensor([0.8, 0.2]), 4000, replacement=True, generator=generator)
        >>> logits = torch.randn(4000, 2, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 2)
        >>> estimate_target_prior(2 * logits, LabelPrior.uniform(2)).prob
        tensor([0.8..., 0.1...], dtype=torch.float64)
    """
    if not 0 <= smoothing < math.inf:
        raise InputError(f"smoothing is {smoothing}", fix="expected a number that is not negative")
    passes = SoftmaxPasses(logits)
    log_source = as_log_prior(source_prior, passes.num_classes, "source_prior").to(passes.device)
    problem = MixtureObjective(passes, log_source, smoothing)
    point = problem.at(torch.zeros_like(log_source))
    for _ in range(_TARGET_ROUNDS):
        point = quasi_newton(problem, point.b, _GAP)
        if problem.gap(point) <= _TARGET_GAP:
            break
    gap = problem.gap(point)
    if gap > _TARGET_GAP:
        warnings.warn(
            f"the estimate may be {gap:.2g} nats a sample from the optimum", RuntimeWarning, stacklevel=2
        )
    return LabelPrior(point.b, source="unlabelled", num_samples=passes.num_rows, optimality_gap=gap)


def _normalised(value: ArrayLike, name: str) -> Tensor:
    """Return ``(C,)`` log-probabilities as float64, refusing what is not normalised within the tolerance."""
    tensor = as_float(value, name).detach().double()
    if tensor.ndim != 1 or len(tensor) < 2:
        raise InputError(f"shape {tuple(tensor.shape)}", where=name, fix="expected (C,) with C >= 2")
    check_finite(tensor, name)
    total = tensor.logsumexp(0)
    if abs(float(total)) > _NORMALISATION_TOLERANCE:
        raise InputError(
            f"log-probabilities expected, but their exponentials sum to {math.exp(min(float(total), 700)):.4g}",
            where=name,
            fix="normalise them, or use LabelPrior.from_counts(counts)",
        )
    return tensor - total


def _list_classes(classes: list[int], most: int = 5) -> str:
    """Name up to ``most`` classes: "class 3", "classes 1, 4" or "12 classes (0, 1, 2, 3, 4, ...)"."""
    if len(classes) == 1:
        return f"class {classes[0]}"
    named = ", ".join(map(str, classes[:most]))
    return f"classes {named}" if len(classes) <= most else f"{len(classes)} classes ({named}, ...)"


def _checked_strength(shrinkage: float | str) -> float | None:
    """Return the ridge's strength, None for "auto"."""
    if shrinkage == "auto":
        return None
    if isinstance(shrinkage, str) or not 0 <= shrinkage < math.inf:
        raise InputError(
            f"shrinkage is {shrinkage!r}", fix="expected 'auto' or a number that is not negative"
        )
    return float(shrinkage)


def _checked_scale(temperature: float | str | None) -> float:
    """Return the factor of the logits: where it is to be fitted, where to start."""
    if temperature is None or temperature == "fit":
        return 1.0
    if isinstance(temperature, str) or not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature!r}", fix="expected None, 'fit' or a positive number")
    return 1 / float(temperature)


def _checked_sample_prior(sample_prior: LabelPrior | ArrayLike | None, passes: SoftmaxPasses) -> Tensor:
    given = LabelPrior.uniform(passes.num_classes) if sample_prior is None else sample_prior
    return as_log_prior(given, passes.num_classes, "sample_prior").to(passes.device)


def _deviance(passes: SoftmaxPasses, log_pi: Tensor) -> tuple[float, int]:
    """Return ``2 sum n log(n / (N pi))`` and its degrees of freedom: about equal for labels drawn from ``pi``."""
    assert passes.counts is not None
    expected = passes.num_rows * log_pi.exp()
    terms = torch.special.xlogy(passes.counts, passes.counts / expected)
    return 2 * float(terms.sum()), passes.num_classes - 1


def _refuse_empty_classes(passes: SoftmaxPasses) -> None:
    assert passes.counts is not None
    empty = (passes.counts == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"no sample of {_list_classes(empty)}, so that the plain optimum is infinite",
            where="labels",
            fix="use shrinkage='auto'",
        )


def _fit(
    problem: InterceptObjective, choose: bool, fit_temperature: bool, fixed_counts: bool, dense: bool
) -> _Fit:
    """Solve the problem, first for the strength and the scale where they are to be found."""
    start = torch.zeros_like(problem.log_pi)
    kind = DenseCurvature if dense and fits_dense(len(start)) else Curvature
    scale: ScaleFit | None = None
    try:
        for _ in range(_STRENGTH_ROUNDS if choose else 0):
            point = quasi_newton(problem, start, _ROUGH_GAP)
            if fit_temperature:
                point, scale = fit_scale(problem, point, _ROUGH_GAP)
            start, before = point.b, problem.strength
            curvature = Curvature(problem, point)
            spread = min(max(spread_of(curvature, fixed_counts), _LEAST_SPREAD), _LARGEST_SPREAD)
            problem.strength = strength_for(curvature, spread, fixed_counts)
            # One round from a strength that is right within a factor of 2 is within a few per cent.
            if abs(math.log(problem.strength / before)) < math.log(2):
                break
        point = quasi_newton(problem, start, _GAP_FOR_NEWTON[kind])
        if fit_temperature:
            point, scale = fit_scale(problem, point, _GAP)
    except NotDetermined:
        raise InputError(
            "no temperature fits: the logits say nothing of the labels, or their order is wrong",
            where="temperature",
            fix="pass a number",
        ) from None
    try:
        point, gap, curvature = certify(problem, point, _GAP, kind)
    except NotDetermined:
        raise InputError(
            "the samples do not determine the prior: groups of classes are never confused with each other",
            where="logits",
            fix="use shrinkage='auto', or standard_errors=False",
        ) from None
    return _Fit(problem, point, curvature, gap + (scale.gap / problem.size if scale else 0.0), scale)


def _errors(fit: _Fit, fixed_counts: bool) -> Tensor:
    """Return the standard errors of the log-probabilities, with those from a fitted scale."""
    variances = log_prob_variances(fit.curvature, fixed_counts)
    if fit.scale is not None:
        response = fit.scale.response - fit.point.b.softmax(0) @ fit.scale.response
        variances = variances + response.square() / fit.scale.curvature
    return variances.sqrt()
