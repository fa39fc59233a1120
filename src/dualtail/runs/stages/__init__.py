"""The stages of a run in their order; a new one is one file and one line here.

The first two, ``logits`` and the last work on images; everything between and after is arithmetic on what they left on
disk.
"""

from __future__ import annotations

from dualtail.runs.stages.adjust import AdjustStage
from dualtail.runs.stages.attribution import AttributionStage
from dualtail.runs.stages.base import Stage
from dualtail.runs.stages.evaluate import EvaluateStage
from dualtail.runs.stages.finetune import FinetuneStage
from dualtail.runs.stages.logits import LogitsStage
from dualtail.runs.stages.prior import PriorStage
from dualtail.runs.stages.zero_shot import ZeroShotStage

__all__ = ["STAGES", "Stage"]

STAGES: tuple[type[Stage], ...] = (
    ZeroShotStage,
    PriorStage,
    FinetuneStage,
    LogitsStage,
    AdjustStage,
    EvaluateStage,
    AttributionStage,
)
