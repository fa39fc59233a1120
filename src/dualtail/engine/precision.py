"""Which arithmetic a device does well, and how to switch it on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import get_args

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualtail.engine.settings import Precision
from dualtail.errors import InputError, check_choice

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@lru_cache
def cpu_has_bf16() -> bool:
    """Say whether this CPU multiplies matrices in bfloat16 (Intel AMX); without it bf16 is slower than fp32."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return bool(capabilities().get("amx_bf16", False))
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " amx_bf16 " in cpuinfo.read_text(errors="replace").replace("\n", " ")


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return ``"fp32"``, ``"bf16"`` or ``"fp16"``; ``"auto"`` is bf16 where the device computes in it.

    Raises:
        InputError: an unknown precision, or fp16 on a CPU, where torch has no loss scaling for it.

    Example:
        >>> resolve_precision("fp32", torch.device("cpu"))
        'fp32'
    """
    check_choice("precision", precision, get_args(Precision))
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else False
        return "bf16" if has_bf16 or (device.type == "cpu" and cpu_has_bf16()) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("fp16 needs a GPU", where="precision", fix="use 'auto', 'bf16' or 'fp32'")
    return precision


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes in ``precision`` (a resolved one).

    Example:
        >>> with autocast(torch.device("cpu"), "bf16"):
        ...     print((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        torch.bfloat16
    """
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, _DTYPES[precision])


@contextmanager
def training_attention(device: torch.device, precision: str) -> Iterator[None]:
    """Let scaled-dot-product attention use the kernel whose backward pass is the quicker one.

    On a CPU in bf16 that is plain matrix products: the backward pass of torch's fused kernel does not use the
    matrix units there (at 65 tokens it takes four times as long as all of the plain kernel). Elsewhere, and in
    inference, the fused kernels win and nothing is changed.
    """
    if device.type != "cpu" or precision != "bf16":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the plain kernel's switch, on every device
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
