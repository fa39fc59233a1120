"""No tuner: the backbone stays as it is."""

from __future__ import annotations

from dualtail.models.tuners.base import EVERY, Tuner


class NoTuner(Tuner):
    """Trains nothing in the backbone; with a head on top, a linear probe.

    Args:
        site: where nothing goes.
    """

    name = "none"
    families = EVERY
