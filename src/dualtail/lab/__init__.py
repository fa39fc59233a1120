"""The lab: foundation models whose label prior and whose losses of semantic factors are chosen, so known.

``world`` describes it, ``render`` and ``captions`` make its images and texts, ``corpus`` samples what a foundation
model sees, ``pretrain`` makes the model, ``downstream`` writes the long-tailed task, ``probes`` looks for the planted
loss, ``studies`` ask the questions and ``demo`` tells the story.
"""
