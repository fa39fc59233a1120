"""Training and inference: ``finetune`` is the one training loop, ``inference`` sends images through all members.

``settings`` holds the choices of a training, ``stages`` trains in several, ``launch`` knows the other processes. The
room takes any module, loader and loss; it knows no recipe, no run directory and no command line.
"""
