"""Where results come from: versions, machine, commit and command."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dualtail.files import read_json, reading, write_json

FORMAT_VERSION = 1
"""Of a run directory."""
_PACKAGES = (
    "dualtail", "torch", "torchvision", "open_clip_torch", "timm", "accelerate", "peft", "numpy",
)  # fmt: skip


def write_provenance(path: Path, **facts: Any) -> None:
    """Record versions, machine, command and the given facts; earlier facts are kept."""
    before = read_json(path, dict) if path.exists() else {"started": now(), "commands": []}
    command = " ".join(sys.argv)
    with reading(path):
        commands = before["commands"] if command in before["commands"] else [*before["commands"], command]
    write_json(path, {**before, **_environment(), **facts, "commands": commands, "updated": now()})


def now() -> str:
    """Return the time in UTC as ISO 8601 has it, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return package to version, of those that are installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version(), **versions_of(_PACKAGES)}
    cuda = torch.cuda.is_available()
    return {
        "format_version": FORMAT_VERSION,
        "versions": versions,
        "commit": _commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "cuda": torch.version.cuda if cuda else None,
        },
    }


def _commit() -> str | None:
    """Return the commit of the dualtail checkout in use, or None for an installed package."""
    source = Path(__file__).resolve().parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
        tracked = subprocess.run(
            ["git", "-C", str(source), "ls-files", "--error-unmatch", __file__],
            capture_output=True,
            timeout=5,
        )
        return answer.stdout.strip() if tracked.returncode == 0 else None
    return None
