"""Extract ``data/metrics.safetensors`` and ``data/metrics.json`` from the reference evaluator's files.

    python tests/parity/make_metrics.py DIRECTORY

DIRECTORY holds ``metrics.npz`` (random logits, labels, counts, features, and the votes that the reference's kNN gave
them) and ``metrics.json`` (what its evaluator said of the logits). The second set of logits, with one class never
right, differs from the first in one entry a row: only these are kept.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

KEPT = (
    "logits",
    "gt",
    "counts",
    "many",
    "med",
    "few",
    "knn_bank",
    "knn_bank_labels",
    "knn_query",
    "knn_scores",
)


def extract(directory: Path) -> dict[str, np.ndarray]:
    arrays = np.load(directory / "metrics.npz", allow_pickle=False)
    kept = {name: arrays[name] for name in KEPT}
    changed = np.flatnonzero(arrays["logits"] != arrays["easy_logits"])
    kept["never_right.place"], kept["never_right.value"] = changed, arrays["easy_logits"].ravel()[changed]
    return kept


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data = Path(__file__).parent / "data"
    save_file(extract(Path(sys.argv[1])), data / "metrics.safetensors")
    shutil.copyfile(Path(sys.argv[1]) / "metrics.json", data / "metrics.json")
