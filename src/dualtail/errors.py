"""The mistakes a user can meet: each says what is wrong, where, and what to do about it.

The command line prints such an error as one line and exits with code 2. Anything else that escapes is a
defect of dualtail and keeps its traceback.
"""

from __future__ import annotations


class DualtailError(Exception):
    """A mistake that the user can mend.

    Args:
        what: what is wrong, as a short clause without a full stop.
        where: the file, recipe key or argument it was found in.
        fix: what to do next.

    Example:
        >>> print(DualtailError("unknown label 'cta'", where="train.csv, line 7", fix="did you mean 'cat'?"))
        train.csv, line 7: unknown label 'cta'; did you mean 'cat'?
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        line = f"{where}: {what}" if where else what
        super().__init__(f"{line}; {fix}" if fix else line)


class InputError(DualtailError, ValueError):
    """An argument of a function has the wrong shape, type or value."""


class DataError(DualtailError):
    """An image, a manifest or a split cannot be used."""


class BackboneError(DualtailError):
    """A foundation model or its weights cannot be used, or a tuner or head does not fit it."""


class RecipeError(DualtailError):
    """A recipe has keys or values that cannot be used; ``faults`` has a line for each."""

    faults: tuple[str, ...] = ()


class RunError(DualtailError):
    """A run directory cannot be used as asked."""


class TrainingError(DualtailError):
    """Training cannot go on: a loss that is not finite, or too little memory."""


class Interrupted(DualtailError):
    """The user stopped the work; what was done is saved and the same command goes on."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str | None:
    """Return the member of ``known`` that ``name`` most likely meant, or None.

    Example:
        >>> nearest("epohcs", ["epochs", "batch_size"])
        'epochs'
    """
    import difflib

    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None
