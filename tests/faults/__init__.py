"""A harness that breaks runs on purpose and judges what is left: see docs/reliability.md.

``python -m faults`` (in ``tests``) runs it; ``python -m faults --trial kill/17`` repeats one trial.
"""
