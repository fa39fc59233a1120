"""Checks for a loss, tuner, head, backbone, reader or augmentation of one's own: those that dualtail's own pass.

Each raises an AssertionError that says which promise is broken. The page "Extend dualtail" shows them at work.
"""

from dualtail.testing.backbones import check_backbone
from dualtail.testing.data import check_augmentation, check_reader
from dualtail.testing.heads import check_head
from dualtail.testing.losses import check_loss
from dualtail.testing.tuners import check_tuner

__all__ = [
    "check_augmentation",
    "check_backbone",
    "check_head",
    "check_loss",
    "check_reader",
    "check_tuner",
]
