"""One Accelerator for each piece of work, whatever was used in this process before."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from dualtail.engine.precision import resolve_precision
from dualtail.process_group import join_processes, resolve_device


def make_accelerator(device: str = "auto", precision: str = "auto") -> Accelerator:
    """Return an Accelerator for ``device`` and ``precision``.

    Accelerate keeps one state a process and refuses a second precision or device; members of a run may differ in
    both, so that state is forgotten first (never the process group of a distributed run).

    Example:
        >>> make_accelerator("cpu", "fp32").device
        device(type='cpu')
    """
    AcceleratorState._reset_state()
    if join_processes(device).device != resolve_device(device) and PartialState().num_processes == 1:
        PartialState._reset_state()
    resolved = resolve_precision(precision, join_processes(device).device)
    return Accelerator(mixed_precision="no" if resolved == "fp32" else resolved)
