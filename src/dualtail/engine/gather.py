"""Tables of rows that several processes made, put together on each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from accelerate.utils import broadcast, gather_object
from torch import Tensor

from dualtail.process_group import ProcessGroup

Tables = dict[str, dict[str, Tensor]]
Allocate = Callable[[str, int, int, torch.dtype], Tensor]
_ENTRIES = 1 << 24


def gather_tables(
    tables: Mapping[str, Mapping[str, Tensor]],
    rows: int,
    group: ProcessGroup,
    device: torch.device,
    allocate: Allocate,
) -> Tables:
    """Return every table with the rows of all processes, one process after the other.

    The rows travel through the device in pieces of a few tens of megabytes, so that a result larger than the device's
    memory can be gathered.

    Args:
        tables: name to kind to ``(rows, columns)``; a process without rows may have none.
        rows: of this process.
        group: the processes that have a part each.
        device: what this one computes on.
        allocate: (name, rows, columns, dtype) to an empty tensor for a result.
    """
    counts: list[int] = gather_object([rows])
    layout = {
        name: {kind: (value.shape[1], value.dtype) for kind, value in table.items()}
        for name, table in tables.items()
    }
    layout = max(gather_object([layout]), key=len)
    gathered: Tables = {}
    for name, kinds in layout.items():
        gathered[name] = {}
        for kind, (columns, dtype) in kinds.items():
            mine = tables.get(name, {}).get(kind, torch.empty(0, columns, dtype=dtype))
            everything = allocate(f"all.{len(gathered)}.{kind}", sum(counts), columns, dtype)
            _gather(mine, counts, group, device, everything)
            gathered[name][kind] = everything
    return gathered


def _gather(
    mine: Tensor, counts: list[int], group: ProcessGroup, device: torch.device, everything: Tensor
) -> None:
    step = max(1, _ENTRIES // max(1, mine.shape[1]))
    start = 0
    for source, count in enumerate(counts):
        for first in range(0, count, step):
            size = min(step, count - first)
            own = source == group.rank
            piece = mine[first : first + size] if own else mine.new_empty(size, mine.shape[1])
            piece = broadcast(piece.to(device).contiguous(), from_process=source)
            everything[start + first : start + first + size].copy_(piece)
        start += count
