"""The lab: foundation models whose label prior and whose losses of semantic factors are chosen, so known.

``world`` describes it, ``render`` and ``captions`` make its images and texts, ``corpus`` samples what a foundation
model sees, ``pretrain`` makes the model, ``task`` writes the long-tailed task, ``tune`` fine-tunes on it, ``probes``
looks for the planted loss, ``bench`` keeps models and members for the ``studies`` that ask the questions, and
``demo`` tells the ``story`` of the ``embedded`` models.
"""
