"""The mistakes a user can meet: each says what is wrong, where, and what to do about it.

The command line prints such an error as one line and exits with code 2. Anything else that escapes is a
defect of dualtail and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


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


def nearest_name(name: object, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` most likely meant, or None.

    Example:
        >>> nearest_name("epohcs", ["epochs", "batch_size"])
        'epochs'
    """
    import difflib

    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def nearest_fix(name: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return what to do about an unknown name: the nearest known one, else ``otherwise`` or all known ones.

    Example:
        >>> nearest_fix("foldr", ["folder", "table"]), nearest_fix("x", ["folder", "table"]), nearest_fix("x", [])
        ("did you mean 'folder'?", 'choose from folder, table', 'there is none to choose from')
    """
    known = list(known)
    close = nearest_name(name, known)
    if close is not None:
        return f"did you mean {close!r}?"
    return otherwise or (f"choose from {', '.join(known)}" if known else "there is none to choose from")


def check_choice(
    kind: str,
    name: object,
    known: Iterable[str],
    *,
    where: str | None = None,
    error: type[DualtailError] = InputError,
) -> None:
    """Refuse a name that is none of ``known``.

    Args:
        kind: what it names, such as "sampling".
        name: what was given.
        known: the names there are.
        where: the recipe key or argument it was found in.
        error: what is raised.

    Example:
        >>> check_choice("sampling", "instanc", ["instance", "class_balanced"])
        Traceback (most recent call last):
        dualtail.errors.InputError: unknown sampling 'instanc'; did you mean 'instance'?
    """
    known = list(known)
    if name not in known:
        raise error(f"unknown {kind} {name!r}", where=where, fix=nearest_fix(name, known))
