"""Training and inference: ``finetune`` trains, ``inference`` sends images through all members.

A training is a loop (``training``), a meter and a keeper; ``settings`` holds its choices, ``phases`` makes one of
several. ``integrated_gradients`` says what a model looks at. The room takes any module, loader and loss; it knows no
recipe, no run directory and no command line.
"""
