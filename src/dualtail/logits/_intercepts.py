"""Multinomial logistic regression with intercepts only: the convex problem behind ``estimate_label_prior``.

With fixed logits ``f``, a scale ``s`` and the samples' own log prior ``log pi``, find the ``b`` that minimises ::

    F(b) = sum_i [ logsumexp_k(s f_ik - b_k + log pi_k) - (s f_iy - b_y + log pi_y) ] + strength/2 ||b - mean b||^2

Its gradient is ``counts - sum_i p_i + strength (b - mean b)`` and its Hessian ``H + strength`` with
``H = diag(sum_i p_i) - P^T P``: the Laplacian of a graph whose classes are joined by ``P^T P``, singular along
constants only. Everything here lives in the space of ``b`` that sum to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from scipy.linalg import lapack
from torch import Tensor

from dualtail.logits._passes import SoftmaxPasses

DENSE_BYTES = 1 << 29
"""The Hessian is inverted as a matrix up to this size (11,585 classes in float32)."""

_FLOAT64_CLASSES = 4096  # a Hessian of more classes is kept in float32
_MEMORY = 10  # pairs that the quasi-Newton method remembers
_LONGEST_STEP = 4.0  # largest change of a log-probability in one step
_MAX_STEPS = 60
_MAX_NEWTON = 20
_BLOCK = 256  # rows of the Hessian that are worked on at once
_LOWEST_LOG_PROB = -46.0  # 1e-20
_PROBES = 64  # random probes for the diagonal of an inverse that is too large to form


class NotDetermined(Exception):
    """The samples do not determine what is asked of them, to working precision."""


class Point(NamedTuple):
    """A value of ``b`` with what one pass tells of it."""

    b: Tensor
    value: float
    gradient: Tensor
    expected: Tensor


class Objective(Protocol):
    """What :func:`quasi_newton` needs of a convex function of log-probabilities."""

    @property
    def size(self) -> int:
        """The number of samples, which scales the objective."""
        ...

    def at(self, b: Tensor) -> Point:
        """Evaluate at ``b``, which is first centred."""
        ...

    def multiplicative_step(self, point: Point) -> Tensor:
        """Return the step of the classical fixed-point iteration, a direction of descent."""
        ...

    def metric(self, point: Point) -> Tensor:
        """Return a diagonal approximation of the inverse Hessian."""
        ...


@dataclass
class InterceptObjective:
    """The objective above, evaluated by passes over the logits."""

    passes: SoftmaxPasses
    log_pi: Tensor
    scale: float = 1.0
    strength: float = 0.0

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.passes.num_rows

    @property
    def counts(self) -> Tensor:
        """The number of samples of each class, ``(C,)``."""
        assert self.passes.counts is not None
        return self.passes.counts

    def offset(self, b: Tensor) -> Tensor:
        """Return what is added to the scaled logits."""
        return self.log_pi - b

    def at(self, b: Tensor) -> Point:
        """Evaluate at ``b``, which is first centred."""
        b = b - b.mean()
        offset = self.offset(b)
        sums = self.passes.evaluate(offset, self.scale)
        value = sums.log_partition - self.scale * self.passes.label_sum - float(self.counts @ offset)
        gradient = self.counts - sums.expected + self.strength * b
        return Point(b, value + self.strength / 2 * float(b @ b), gradient - gradient.mean(), sums.expected)

    def multiplicative_step(self, point: Point) -> Tensor:
        """Return the step of iterative scaling, which is right for classes that are never predicted too."""
        pull = self.strength * point.b
        floor = pull.abs() + self.strength + 1e-12 * self.size
        return ((point.expected + floor) / (self.counts + pull + floor)).log()

    def metric(self, point: Point) -> Tensor:
        """Return the inverse of the counts: information is at most that."""
        return 1 / (torch.maximum(point.expected, self.counts) + self.strength)


@dataclass
class MixtureObjective:
    """Minus the log-likelihood of an unlabelled sample, in the logarithms ``b`` of its label prior.

    ``-sum_i log sum_k q_k exp(f_ik) / source_k - smoothing sum_k log q_k`` with ``q = softmax(b)``: convex in ``q``.
    """

    passes: SoftmaxPasses
    log_source: Tensor
    smoothing: float = 0.0

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.passes.num_rows

    def at(self, b: Tensor) -> Point:
        """Evaluate at ``b``, first normalised; probabilities below 1e-20 are raised to it."""
        b = b.log_softmax(0).clamp(min=_LOWEST_LOG_PROB).log_softmax(0)
        sums = self.passes.evaluate(b - self.log_source)
        gradient = self._total * b.exp() - sums.expected - self.smoothing
        value = -sums.log_partition - self.smoothing * float(b.sum())
        return Point(b, value, gradient, sums.expected)

    def multiplicative_step(self, point: Point) -> Tensor:
        """Return the step of expectation maximisation."""
        return ((point.expected + self.smoothing) / self._total).clamp(min=1e-300).log() - point.b

    def metric(self, point: Point) -> Tensor:
        """Return the inverse of the expected counts."""
        return 1 / (torch.maximum(point.expected, self._total * point.b.exp()) + self.smoothing)

    def gap(self, point: Point) -> float:
        """Return an upper bound on what the optimum gains, in nats a sample: concave in ``q``, over the simplex."""
        slopes = (point.expected + self.smoothing) * (-point.b).exp()
        return max(0.0, float(slopes.max()) - self._total) / self.size

    @property
    def _total(self) -> float:
        return self.size + self.smoothing * self.passes.num_classes


def quasi_newton(problem: Objective, start: Tensor, tolerance: float) -> Point:
    """Return the minimiser by limited-memory BFGS, which starts from the fixed-point step; one pass a step.

    Stops when the predicted decrease is below ``tolerance`` (nats a sample) or after 60 steps: a gap that is sure
    is for the caller to establish.
    """
    point = problem.at(start)
    step = problem.multiplicative_step(point)
    history: list[tuple[Tensor, Tensor]] = []
    for _ in range(_MAX_STEPS):
        if -float(point.gradient @ step) < 2 * tolerance * problem.size:
            break
        better = _line_search(problem, point, step)
        if better is None:
            break
        change, bend = better.b - point.b, better.gradient - point.gradient
        if float(change @ bend) > 1e-12 * float(bend @ bend) / problem.size:
            history = [*history[-_MEMORY + 1 :], (change, bend)]
        point = better
        step = -_two_loops(point.gradient, history, problem.metric(point))
        step -= step.mean()
    return point


def _two_loops(gradient: Tensor, history: list[tuple[Tensor, Tensor]], metric: Tensor) -> Tensor:
    """Apply the quasi-Newton approximation of the inverse Hessian, starting from a scaled diagonal."""
    result = gradient.clone()
    weights = []
    for change, bend in reversed(history):
        weights.append(change @ result / (change @ bend))
        result -= weights[-1] * bend
    if history:
        change, bend = history[-1]
        result *= (change @ bend) / (bend @ (metric * bend))
    result *= metric
    for (change, bend), weight in zip(history, reversed(weights), strict=True):
        result += change * (weight - bend @ result / (change @ bend))
    return result


def _line_search(problem: Objective, point: Point, step: Tensor) -> Point | None:
    """Return a point that decreases enough, halving the step, or None when rounding hides any decrease."""
    length = min(1.0, _LONGEST_STEP / max(float(step.abs().max()), 1e-300))
    slope = float(point.gradient @ step)
    # float32 exponentials leave the value uncertain by about this much.
    noise = 1e-8 * (abs(point.value) + problem.size)
    for _ in range(30):
        trial = problem.at(point.b + length * step)
        if math.isfinite(trial.value) and trial.value <= point.value + 1e-4 * length * slope + noise:
            return trial
        length /= 2
    return None


class Curvature:
    """``H + strength`` at a point, as an operator on vectors that sum to zero; solves by conjugate gradients."""

    def __init__(self, problem: InterceptObjective, point: Point) -> None:
        self.problem, self.point, self.strength = problem, point, problem.strength
        self._offset = problem.offset(point.b)
        self.self_share = problem.passes.gram_diagonal(self._offset, problem.scale) / point.expected.clamp(
            min=1e-300
        )
        """``sum_i p_ik^2 / sum_i p_ik``, ``(C,)``: one minus the information a sample gives on its class."""

    def multiply(self, vectors: Tensor) -> Tensor:
        """Return ``(H + strength) V`` for ``V (C, m)`` with columns that sum to zero."""
        shared = self.problem.passes.product(self._offset, vectors, self.problem.scale)
        result = self.point.expected[:, None] * vectors - shared + self.strength * vectors
        return result - result.mean(0)

    def solve(self, vectors: Tensor, tolerance: float = 1e-6, most: int = 200) -> Tensor:
        """Return the solution of ``(H + strength) X = V``, columns summing to zero, in passes for all columns."""
        information = self.point.expected * (1 - self.self_share)
        scaling = 1 / (information.clamp(min=1e-12 * self.problem.size) + self.strength)[:, None]
        residual = vectors - vectors.mean(0)
        solution = torch.zeros_like(residual)
        scaled = scaling * residual
        direction = scaled - scaled.mean(0)
        size = (residual * direction).sum(0)
        target = tolerance**2 * size
        for _ in range(most):
            if bool((size <= target).all()):
                break
            image = self.multiply(direction)
            along = size / (direction * image).sum(0).clamp(min=1e-300)
            solution += along * direction
            residual -= along * image
            scaled = scaling * residual
            scaled -= scaled.mean(0)
            before, size = size, (residual * scaled).sum(0)
            direction = scaled + size / before.clamp(min=1e-300) * direction
        return solution


class DenseCurvature(Curvature):
    """The same with the inverse as a matrix ``(C, C)`` on the CPU, formed in place."""

    def __init__(self, problem: InterceptObjective, point: Point) -> None:
        self.problem, self.point, self.strength = problem, point, problem.strength
        classes = len(point.b)
        offset = problem.offset(point.b)
        if classes <= _FLOAT64_CLASSES:
            matrix = problem.passes.gram(offset, problem.scale).cpu().double()
        else:
            matrix = problem.passes.gram(offset, problem.scale, torch.float32).cpu()
        expected = point.expected.cpu()
        self.self_share = (matrix.diagonal().double() / expected.clamp(min=1e-300)).to(point.b.device)
        # A Laplacian's diagonal is the sum of its weights: unlike expected - diagonal, that does not cancel.
        matrix.diagonal().zero_()
        information = torch.empty(classes, dtype=torch.float64)
        for start in range(0, classes, _BLOCK):  # summing in another dtype converts what it is given first
            rows = slice(start, start + _BLOCK)
            torch.sum(matrix[rows], 1, dtype=torch.float64, out=information[rows])
        matrix.neg_()
        # Constants are given an eigenvalue of their own, taken out again after the inversion.
        constant = max(self.strength, float(information.mean()))
        matrix += (constant - self.strength) / classes
        matrix.diagonal().add_((information + self.strength).to(matrix))
        self.inverse = _invert(matrix)
        self.inverse -= 1 / (constant * classes)

    def solve(self, vectors: Tensor, tolerance: float = 0.0, most: int = 0) -> Tensor:
        """Return the solution by a matrix product."""
        answer = (self.inverse @ vectors.to(self.inverse)).double().to(vectors.device)
        return answer - answer.mean(0)


def fits_dense(classes: int) -> bool:
    """Say whether the inverse Hessian of so many classes is formed as a matrix."""
    return (4 if classes > _FLOAT64_CLASSES else 8) * classes**2 <= DENSE_BYTES


def _invert(matrix: Tensor) -> Tensor:
    """Invert a symmetric positive definite matrix in its own memory, after scaling its diagonal to one."""
    scaling = matrix.diagonal().rsqrt()
    if not bool(torch.isfinite(scaling).all()):
        raise NotDetermined
    matrix *= scaling
    matrix *= scaling[:, None]
    # LAPACK is column-major: the transposed view of the same memory is what it expects, lower and upper exchanged.
    array = matrix.numpy().T
    factorise, invert = lapack.get_lapack_funcs(("potrf", "potri"), (array,))
    factor, failed = factorise(array, lower=False, overwrite_a=True, clean=False)
    if not failed:
        inverse, failed = invert(factor, lower=False, overwrite_c=True)
    if failed:
        raise NotDetermined
    result = torch.from_numpy(inverse.T)
    # With a unit diagonal before, an entry near 1 / epsilon is the inverse of rounding.
    if not float(result.diagonal().max()) < 0.05 / torch.finfo(result.dtype).eps:
        raise NotDetermined
    for start in range(0, len(result), _BLOCK):
        stop = min(start + _BLOCK, len(result))
        corner = result[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        result[start:stop, stop:] = result[stop:, start:stop].T
    result *= scaling
    result *= scaling[:, None]
    return result


def certify(
    problem: InterceptObjective, point: Point, tolerance: float, kind: type[Curvature]
) -> tuple[Point, float, Curvature]:
    """Take Newton steps until the optimality gap is below ``tolerance``; return point, gap and the Hessian there.

    The gap is ``F(b) - min F`` in nats a sample, half the squared Newton decrement ``g^T (H + strength)^-1 g``.
    With the inverse at hand it is made an upper bound: the softmax's third derivative along ``d`` is at most
    ``range(d)`` times its second (generalised self-concordance: Bach, Electronic Journal of Statistics 4, 2010).
    """
    curvature = kind(problem, point)
    decrement = math.inf
    for _ in range(_MAX_NEWTON):
        step = -curvature.solve(point.gradient[:, None], tolerance=0.1)[:, 0]
        before, decrement = decrement, max(0.0, -float(point.gradient @ step))
        gap = _gap_bound(decrement, point, curvature) / problem.size
        # Within rounding the decrement no longer falls.
        if gap <= tolerance or (decrement > before / 2 and _range(step) < 1e-2):
            break
        better = _line_search(problem, point, step)
        if better is None:
            break
        point = better
        if _range(point.b - curvature.point.b) > 0.5:
            curvature = kind(problem, point)
            decrement = math.inf
    return point, gap, curvature


def _gap_bound(decrement: float, point: Point, curvature: Curvature) -> float:
    """Turn the squared Newton decrement into a bound on what is left to gain, or an estimate where it has none."""
    if not isinstance(curvature, DenseCurvature):
        return decrement / 2
    # Between the Hessian's point and this one it changes by at most exp(range of the way).
    drift = math.exp(min(100.0, _range(point.b - curvature.point.b)))
    # range(d)^2 <= widest d^T (H + strength) d, by the effective resistance between two classes. With ``reach``
    # up to 1/3 the optimum lies within a range of 3 reach, where the objective curves at least (1 - reach) as much.
    widest = 4 * float(curvature.inverse.diagonal().max())
    reach = min(1 / 3, drift * math.sqrt(widest * decrement))
    return drift * decrement / (2 * (1 - reach))


def _range(vector: Tensor) -> float:
    return float(vector.max() - vector.min())


@dataclass
class ScaleFit:
    """How well the scale is determined: the loss's slope and curvature in it, and how it moves the optimal ``b``."""

    slope: float
    curvature: float
    response: Tensor

    @property
    def gap(self) -> float:
        """What a better scale would gain, summed over the samples."""
        return self.slope**2 / (2 * self.curvature)


def fit_scale(problem: InterceptObjective, point: Point, tolerance: float) -> tuple[Point, ScaleFit]:
    """Minimise over the scale as well, by Newton's method on the profile of the objective; sets ``problem.scale``.

    Raises:
        NotDetermined: the best scale is outside [1e-4, 1e4]: the logits say nothing of the labels, or all.
    """
    for _ in range(_MAX_NEWTON):
        moments = problem.passes.slope(problem.offset(point.b), problem.scale)
        direction = moments.covariance - moments.covariance.mean()
        response = Curvature(problem, point).solve(direction[:, None], tolerance=1e-3)[:, 0]
        curvature = max(moments.variance - float(direction @ response), 1e-12 * moments.variance + 1e-300)
        fit = ScaleFit(moments.mean - problem.passes.label_sum, curvature, response)
        if fit.gap < tolerance * problem.size:
            return point, fit
        before = problem.scale
        problem.scale = min(max(before - fit.slope / curvature, before / 3), 3 * before)
        if not 1e-4 <= problem.scale <= 1e4:
            raise NotDetermined
        point = quasi_newton(problem, point.b + (problem.scale - before) * response, tolerance / 10)
    return point, fit


def spread_of(curvature: Curvature, fixed_counts: bool) -> float:
    """Return the variance over classes of the true ``b``, from the ridge solution at the curvature's point.

    The solution is ``A z`` with ``A = R H``, ``R = (H + strength)^-1``, of an unbiased ``z`` of covariance ``V``, so
    ``E ||b||^2 = spread tr(A^2) + tr(A V A)``, solved for the spread. At the fixed point ``strength = 1 / spread``
    this is the stationary point of the Laplace approximation of the marginal likelihood (MacKay 1992). ``V`` is
    ``H^-1``, less ``diag(1/n)`` where the counts were fixed. Traces are exact up to 256 classes and estimated
    with random probes (Hutchinson 1990) above, to about 2 %.
    """
    point, classes = curvature.point, len(curvature.point.b)
    if classes <= 256:
        probes = torch.eye(classes, dtype=torch.float64)
        share = 1.0
    else:
        probes = _random_signs(classes, max(4, 8192 // classes))
        share = 1 / probes.shape[1]
    probes = probes.to(point.b.device)
    probes = probes - probes.mean(0)
    solved = curvature.solve(probes, tolerance=0.03)
    kept = probes - curvature.strength * solved  # A applied to the probes
    noise = float((solved * kept).sum())  # R H R
    if fixed_counts:
        noise -= float((kept.square() / point.expected.clamp(min=1e-300)[:, None]).sum())
    signal = float(kept.square().sum())
    return (float(point.b @ point.b) - share * noise) / (share * signal)


def strength_for(curvature: Curvature, spread: float, fixed_counts: bool) -> float:
    """Return the ridge that suits log-probabilities of variance ``spread``.

    For labels drawn at random it is the Gaussian prior's precision, ``1 / spread``. Counts that were fixed by
    design make the estimate more precise than the Hessian says; along a direction of information ``h`` out of
    ``n`` the best linear shrinkage is then the ridge ``(1 - h/n) / spread``, whose mean over directions is taken.
    """
    return _unexplained(curvature, fixed_counts) / spread


def log_prob_variances(curvature: Curvature, fixed_counts: bool) -> Tensor:
    """Return the variances of ``b - logsumexp(b)``, ``(C,)``.

    Without a ridge the sampling variance of the estimate; with one the mean squared error of the ridge
    solution, averaged over the data and over the ``b`` for which the ridge is the right one, which for labels
    drawn at random is the posterior variance.
    """
    point, strength = curvature.point, curvature.strength
    # Covariance = R + ridge R^2 - [counts fixed] A diag(1/n) A, with A = R H = I - strength R.
    ridge = strength * (_unexplained(curvature, fixed_counts) - 1)
    inverse_counts = fixed_counts / point.expected.clamp(min=1e-300)

    def kept(vector: Tensor) -> Tensor:
        return vector - vector.mean() - strength * solve(vector)

    def solve(vector: Tensor) -> Tensor:
        return curvature.solve(vector[:, None])[:, 0]

    diagonal = _covariance_diagonal(curvature, ridge, inverse_counts)
    prob = point.b.softmax(0)
    solved = solve(prob)
    image = solved + ridge * solve(solved) - kept(inverse_counts * kept(prob))
    return (diagonal - 2 * image + prob @ image).clamp(min=0)


def _covariance_diagonal(curvature: Curvature, ridge: float, inverse_counts: Tensor) -> Tensor:
    strength, classes = curvature.strength, len(inverse_counts)
    if isinstance(curvature, DenseCurvature):
        inverse, weights = curvature.inverse, inverse_counts.cpu()
        result = inverse.diagonal().double().clone()
        for start in range(0, classes, _BLOCK):
            rows = inverse[start : start + _BLOCK].double()
            result[start : start + _BLOCK] += ridge * rows.square().sum(1)
            kept = -1 / classes - strength * rows
            kept.diagonal(start).add_(1)
            result[start : start + _BLOCK] -= kept.square_() @ weights
        return result.to(inverse_counts.device)
    # Hutchinson's diagonal: E[v * R v] and E[(R v)^2] for random signs v (Bekas, Kokiopoulou and Saad 2007).
    probes = _random_signs(classes, _PROBES).to(inverse_counts.device)
    solved = curvature.solve(probes, tolerance=1e-3)
    kept = probes - probes.mean(0) - strength * solved
    moments = probes * solved + ridge * solved.square() - inverse_counts[:, None] * kept.square()
    return moments.mean(1)


def _unexplained(curvature: Curvature, fixed_counts: bool) -> float:
    """Return ``strength * spread``: the mean of ``1 - h/n`` where the counts were fixed, else 1."""
    return float(curvature.self_share.mean()) if fixed_counts else 1.0


def _random_signs(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (rows, columns), generator=generator).double() * 2 - 1
