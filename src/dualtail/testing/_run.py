"""How checks are run: one after the other, each fault named by the promise that it breaks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from dualtail.errors import check_choice


def demand(holds: object, otherwise: str) -> None:
    """Raise AssertionError with ``otherwise`` unless something holds; unlike ``assert`` also under ``python -O``."""
    if not holds:
        raise AssertionError(otherwise)


def run_checks(
    what: str, checks: Sequence[Callable[..., None]], subject: Any, except_for: Collection[str] = ()
) -> None:
    """Run checks on a subject.

    Args:
        what: names it, in messages.
        checks: functions of the subject; the first line of the docstring is the promise.
        subject: what they check.
        except_for: names of the checks to leave out.

    Raises:
        AssertionError: a promise is broken, or the check met an error.
        InputError: there is no check of a name in ``except_for``.
    """
    names = [check.__name__ for check in checks]
    for name in except_for:
        check_choice("check", name, names, where="except_for")
    for check in checks:
        if check.__name__ in except_for:
            continue
        promise = (check.__doc__ or "").splitlines()[0].rstrip(".")
        try:
            check(subject)
        except Exception as error:  # whatever a stranger's code does is a broken promise
            fault = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(f"{what}, {check.__name__} ({promise}): {fault}{error}") from error
