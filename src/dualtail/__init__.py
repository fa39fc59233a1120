"""Find and remove the two imbalances of a classifier fine-tuned from foundation models.

The names below are loaded on first use, so that ``import dualtail`` and ``dualtail --help`` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it.
_PUBLIC: dict[str, str] = {
    "LabelPrior": "dualtail.logits.prior",
    "estimate_label_prior": "dualtail.logits.prior",
    "estimate_target_prior": "dualtail.logits.prior",
    "ClassGroups": "dualtail.logits.groups",
    "compare_groups": "dualtail.logits.groups",
    "compare_priors": "dualtail.logits.groups",
    "cross_table": "dualtail.logits.groups",
    "membership_probabilities": "dualtail.logits.groups",
    "LOSSES": "dualtail.logits.losses",
    "build_loss": "dualtail.logits.losses",
    "ADJUSTMENTS": "dualtail.logits.adjust",
    "adjust_logits": "dualtail.logits.adjust",
    "RULES": "dualtail.logits.backdoor",
    "adjust_subsets": "dualtail.logits.backdoor",
    "all_subsets": "dualtail.logits.backdoor",
    "backdoor_adjust": "dualtail.logits.backdoor",
    "evaluate_subsets": "dualtail.logits.backdoor",
    "MemberPrior": "dualtail.logits.member_prior",
    "fit_member_prior": "dualtail.logits.member_prior",
    "Evaluation": "dualtail.logits.metrics",
    "evaluate": "dualtail.logits.metrics",
    "expected_calibration_error": "dualtail.logits.calibration",
    "reliability_curve": "dualtail.logits.calibration",
    "paired_test": "dualtail.logits.comparison",
    "summarize_seeds": "dualtail.logits.comparison",
    "disagreement": "dualtail.logits.neighbors",
    "error_correlation": "dualtail.logits.neighbors",
    "knn_accuracy": "dualtail.logits.neighbors",
    "knn_predict": "dualtail.logits.neighbors",
    "knn_scores": "dualtail.logits.neighbors",
    "linear_cka": "dualtail.logits.neighbors",
    "load_backbone": "dualtail.models.backbone",
    "build_classifier": "dualtail.models.classifier",
    "load_classifier": "dualtail.models.classifier",
    "read_manifest": "dualtail.data.readers",
    "predict_images": "dualtail.runs.predict",
    "run_pipeline": "dualtail.runs.pipeline",
    "read_recipe": "dualtail.runs.recipe",
    "DualtailError": "dualtail.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dualtail' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
