"""The method as functions of tensors: priors, groups, losses, adjustments, backdoor, metrics, neighbors.

Nothing here knows files, images or models. Logits are ``(..., C)``, labels ``(...)`` integers, priors natural
logarithms. Numpy arrays and tensors are both taken, and answered in kind.
"""
