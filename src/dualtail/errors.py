"""The mistakes a user can meet: each says what is wrong, where, and what to do about it.

The command line prints such an error as one line and exits with code 2. Anything else that escapes is a
defect of dualtail and keeps its traceback.
"""

from __future__ import annotations

import re
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
        line = f"{printable(where)}: {what}" if where else what
        # What a library says may have lines; a mistake has one.
        super().__init__(printable(" ".join((f"{line}; {fix}" if fix else line).splitlines())))


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


class FileError(DataError, OSError):
    """A file or folder cannot be written or opened: no room, no permission, a disk that fails.

    ``reason`` is what the operating system says.
    """

    reason: str = ""


class Interrupted(DualtailError):
    """The user stopped the work; what was done is saved and the same command goes on.

    ``signal`` is the number of the signal that asked for it.
    """

    signal: int = 2


# What a terminal obeys rather than shows: C0, DEL and C1, line separators, what turns the direction of text around or
# has no width; and halves of characters, which cannot be written.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: object, *, keep: str = "") -> str:
    r"""Return text that a terminal shows and never obeys: control characters are written as JSON escapes them.

    Args:
        text: whatever is printed; names of classes and files may hold anything.
        keep: characters that stay, such as line breaks.

    Example:
        >>> print(printable("cat\x1b[2J\r"))
        cat\u001b[2J\u000d
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", str(text)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says; the name of its type where it says nothing.

    Example:
        >>> first_line(ValueError("no such layer\\nat line 3")), first_line(TimeoutError())
        ('no such layer', 'TimeoutError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: object, length: int = 100) -> str:
    """Return a value for a message: on one line, printable and short, whatever it is.

    Example:
        >>> shown("cat\\n"), shown(0.5), shown(list(range(1000)), length=12)
        ("'cat\\\\n'", '0.5', '[0, 1, 2, 3...')
    """
    try:
        text = repr(value)
    except Exception:  # a number of too many digits, lists too deep, an object's own
        text = f"<{type(value).__name__}>"
    text = printable(" ".join(text[: length + 1].split()))
    return f"{text[:length]}..." if len(text) > length else text


def nearest_name(name: object, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` most likely meant, or None.

    Example:
        >>> nearest_name("epohcs", ["epochs", "batch_size"])
        'epochs'
    """
    import difflib

    close = difflib.get_close_matches(
        name if isinstance(name, str) else shown(name), list(known), n=1, cutoff=0.6
    )
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
    if not isinstance(name, str) or name not in known:
        raise error(f"unknown {kind} {shown(name)}", where=where, fix=nearest_fix(name, known))
