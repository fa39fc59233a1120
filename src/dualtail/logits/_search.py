"""Exact nearest neighbours by cosine, in bounded memory.

Two ways, one answer:

- *plain*: a product in the features' own precision and ``topk``; any device.
- *screened*, on processors with half-precision matrix units: a product in half precision, many times faster, leaves
  a few candidates a query, whose similarities are computed anew in the features' precision. No neighbour can be
  missed: the error of the half product is bounded (:class:`_Screen`), and a query for which the bound is of no help,
  or is seen not to hold, goes the plain way.

Both give the ``k`` largest similarities up to rounding in the features' precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_BUFFER_BYTES = 1 << 28  # of the scores of a chunk of queries against the whole bank
_TILE = 2048  # rows of the bank in one product: its scores stay in cache until they are reduced
_LANES = 8  # the screen looks for groups of this many scores before it looks into them
_MIN_GROUPS = 4  # groups a neighbour that the screen needs
_MIN_QUERIES = 64  # fewer do not repay the half-precision copy of the bank
_NOTHING = torch.iinfo(torch.int16).max  # a threshold that no score reaches


class Neighbours(NamedTuple):
    """The nearest rows of the bank for the queries ``rows``, the nearest first: ``(n, k)`` each."""

    rows: slice
    similarity: Tensor
    places: Tensor


class _Bank(NamedTuple):
    features: Tensor  # (N, D), as given
    inverse_norm: Tensor  # (N,), 0 for a row of zeros


def nearest(bank: Tensor, queries: Tensor | None, k: int) -> Iterator[Neighbours]:
    """Yield the ``k`` rows of ``bank (N, D)`` of largest cosine to each row of ``queries (Q, D)``, chunk by chunk.

    ``queries=None`` asks for the neighbours of the bank's own rows, each without itself.
    """
    bank = bank.contiguous()
    prepared = _Bank(bank, _inverse_norm(bank))
    asked = bank if queries is None else queries
    screen = _make_screen(prepared, len(asked), k)
    start = 0
    while start < len(asked):
        step = screen.chunk if screen else _plain_chunk(bank)
        rows = slice(start, min(start + step, len(asked)))
        unit = asked[rows] * _inverse_norm(asked[rows])[:, None]
        own = torch.arange(rows.start, rows.stop, device=bank.device) if queries is None else None
        if screen is None:
            similarity, index = _plain(prepared, unit, k, own)
        else:
            similarity, index, sure = screen.search(unit, k, own)
            unsure = (~sure).nonzero()[:, 0]
            for some in unsure.split(_plain_chunk(bank)):
                own_some = None if own is None else own[some]
                similarity[some], index[some] = _plain(prepared, unit[some], k, own_some)
            if 2 * len(unsure) > len(unit):
                screen = None  # it does not suit these features: do not pay twice for the chunks to come
        yield Neighbours(rows, similarity, index)
        start = rows.stop


def _inverse_norm(features: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1)
    return torch.where(
        norm >= torch.finfo(norm.dtype).tiny, 1 / norm, 0
    )  # the inverse of less may be infinite


def _plain_chunk(bank: Tensor) -> int:
    return max(1, _BUFFER_BYTES // (len(bank) * bank.element_size()))


def _plain(bank: _Bank, unit: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = (unit @ bank.features.T).mul_(bank.inverse_norm)
    if own is not None:
        scores[torch.arange(len(unit), device=unit.device), own] = -torch.inf
    similarity, index = scores.topk(k, dim=1)
    return similarity, index


def fast_half() -> torch.dtype | None:
    """Return the half precision in which this processor multiplies matrices several times faster, if there is one."""
    if not torch.backends.mkldnn.is_available():
        return None
    # float16 first: its error is an eighth of bfloat16's, so fewer candidates remain.
    for probe, dtype in (
        ("_is_amx_fp16_supported", torch.float16),
        ("_is_amx_tile_supported", torch.bfloat16),
    ):
        supported = getattr(torch.cpu, probe, None)
        if supported is not None and supported():
            return dtype
    return None


def _make_screen(bank: _Bank, queries: int, k: int) -> _Screen | None:
    enough = len(bank.features) >= _LANES * _MIN_GROUPS * k and queries >= _MIN_QUERIES
    half = fast_half() if enough and bank.features.device.type == "cpu" else None
    return _Screen(bank, half) if half is not None else None


class _Screen:
    r"""Candidates by a product in half precision, certified to hold every neighbour.

    Let :math:`\hat x, \hat y` be a query and a row of the bank, of length 1, rounded to half precision. Before its own
    rounding the half product differs from :math:`x \cdot y` by at most

    .. math:: \epsilon = \|x - \hat x\| + (1 + \|x - \hat x\|) \max_y \|y - \hat y\| + 2 D \, 2^{-24},

    the last term for its sums in float32. If at least k half products are :math:`\ge t`, each neighbour's is
    :math:`\ge t - 2 \epsilon` (up to the rounding of the results, which keeps their order), so all rows above that are
    candidates. Such a ``t`` just below the k-th largest is the k-th largest of the maxima of groups of rows.

    Half-precision numbers that are not negative sort as their bits do, and integers are compared faster: scores are
    reduced and compared as int16. That is right for thresholds above 0; others are not certified.
    """

    def __init__(self, bank: _Bank, half: torch.dtype) -> None:
        self._bank, self._half = bank, half
        size, width = bank.features.shape
        # The last tile is filled up with rows of zeros: their products never reach a threshold above 0.
        self._tiles = torch.zeros(-(-size // _TILE), _TILE, width, dtype=half)
        flat, worst = self._tiles.view(-1, width), 0.0
        for start in range(0, size, _TILE):
            rows = slice(start, min(start + _TILE, size))
            flat[rows], error = self._round(bank.features[rows] * bank.inverse_norm[rows, None])
            worst = max(worst, float(error.max()))
        self._bank_error = worst
        self.chunk = max(_MIN_QUERIES, min(1024, _BUFFER_BYTES // (2 * len(flat))))
        self._scores = torch.empty(self.chunk * len(flat), dtype=half)
        self._maxima = torch.empty(self.chunk, len(self._tiles), _TILE // _LANES, dtype=torch.int16)

    def _round(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``unit`` in half precision and the length of each row's error."""
        rounded = unit.to(self._half)
        # Matrix units may take subnormal numbers for 0: make that part of the measured error.
        rounded = torch.where(rounded.abs() < torch.finfo(self._half).tiny, 0, rounded)
        return rounded, torch.linalg.vector_norm(unit - rounded, dim=1)

    def search(self, unit: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return similarity and index ``(n, k)``, and for which queries ``(n,)`` they are certain."""
        rounded, error = self._round(unit)
        epsilon = error + (1 + error) * self._bank_error + 2 * unit.shape[1] * 2.0**-24
        scores, maxima = self._multiply(rounded, own)
        threshold = self._threshold(maxima, k, epsilon)
        row, column, approximate, sure = self._candidates(scores, maxima, threshold, 4 * k)
        similarity = self._exact(unit, row, column)
        # The bound relies on how the product was computed: hold it against every candidate.
        slack = epsilon[row] + approximate.abs() * torch.finfo(self._half).eps
        sure[row[(similarity - approximate).abs() > slack]] = False
        best, index = _ragged_topk(similarity, row, column, len(unit), k)
        return best, index, sure

    def _multiply(self, rounded: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the half products ``(tiles, n, _TILE)`` as bits and their maxima over groups ``(n, groups)``."""
        n = len(rounded)
        scores = self._scores[: len(self._tiles) * n * _TILE].view(len(self._tiles), n, _TILE)
        maxima = self._maxima[:n]
        for t, tile in enumerate(self._tiles):
            torch.mm(rounded, tile.T, out=scores[t])
            if own is not None:
                place = own - t * _TILE
                mine = ((place >= 0) & (place < _TILE)).nonzero()[:, 0]
                scores[t, mine, place[mine]] = -torch.inf
            # A group's members lie far apart, because neighbours often lie side by side (rows sorted by class).
            groups = scores[t].view(torch.int16).view(n, _LANES, -1)
            torch.amax(groups, 1, out=maxima[:, t])
        return scores.view(torch.int16), maxima.flatten(1)

    def _threshold(self, maxima: Tensor, k: int, epsilon: Tensor) -> Tensor:
        """Return bits ``(n,)`` that no neighbour's half product is below, or ``_NOTHING`` where no bound is found."""
        fold = max(1, maxima.shape[1] // (2 * _MIN_GROUPS * k))
        coarse = maxima[:, : maxima.shape[1] // fold * fold].view(len(maxima), fold, -1).amax(1)
        kth = coarse.topk(k, dim=1, sorted=False).values.amin(1)
        value = kth.view(self._half).double()
        lowest = value * (1 - torch.finfo(self._half).eps) - 2 * epsilon
        bits = lowest.to(self._half).view(torch.int16) - 1  # one step down undoes rounding up
        return torch.where((kth > 0) & (lowest > 0), bits, _NOTHING)

    def _candidates(
        self, scores: Tensor, maxima: Tensor, threshold: Tensor, most: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return row, column and half product of each candidate, by row, and which rows have them all."""
        row, group = _nonzero(maxima >= threshold[:, None])
        sure = (threshold != _NOTHING) & (torch.bincount(row, minlength=len(maxima)) <= most)
        if not bool(sure.all()):
            row, group = row[sure[row]], group[sure[row]]
        per_tile = _TILE // _LANES
        tile, place = group // per_tile, group % per_tile
        start = (tile * len(maxima) + row) * _TILE + place
        lane = torch.arange(_LANES) * per_tile
        values = scores.view(-1)[start[:, None] + lane]
        which, of_lane = (values >= threshold[row, None]).nonzero(as_tuple=True)
        column = (tile * _TILE + place)[which] + lane[of_lane]
        return row[which], column, values[which, of_lane].view(self._half).float(), sure

    def _exact(self, unit: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the similarities of the pairs (row, column) in the features' precision."""
        size = (len(unit), len(self._bank.features))
        starts = torch.zeros(size[0] + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(row, minlength=size[0]), 0, out=starts[1:])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            pairs = torch.sparse_csr_tensor(
                starts, column, torch.zeros(len(row), dtype=unit.dtype), size, check_invariants=False
            )
            products = torch.sparse.sampled_addmm(pairs, unit, self._bank.features.T, beta=0.0).values()
        return products * self._bank.inverse_norm[column]


def _nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of a sparse ``mask (n, m)``, m a multiple of 8: eight at a time first, as one integer."""
    row, word = mask.view(torch.int64).nonzero(as_tuple=True)
    which, byte = mask.view(len(mask), -1, 8)[row, word].nonzero(as_tuple=True)
    return row[which], word[which] * 8 + byte


def _ragged_topk(values: Tensor, row: Tensor, column: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest values of each row and their columns; rows with fewer are filled with -inf and 0."""
    count = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    width = max(k, int(count.max()))
    padded = torch.full((rows, width), -torch.inf, dtype=values.dtype)
    columns = torch.zeros(rows, width, dtype=torch.int64)
    padded[row, place], columns[row, place] = values, column
    best, where = padded.topk(k, dim=1)
    return best, columns.gather(1, where)
