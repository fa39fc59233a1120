"""The pages in ``docs/`` do what they say: blocks marked ``python run`` are run, and print the ``text`` after them.

The blocks of a page share one namespace, in order. Printed words and whole numbers must be those of the page; fractions
may differ by 2 per cent or 3 units in their last digit, since processors round differently. After changing a page:

    python tests/test_docs.py         # writes what the blocks print into the pages
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python run\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
PAGES = sorted(page for page in DOCS.glob("*.md") if "```python run" in page.read_text(encoding="utf-8"))


def run_blocks(page: Path) -> list[tuple[re.Match[str], str]]:
    """Return each block of the page with what it printed."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    results = []
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        source = "\n" * line + block[1]  # so that a traceback names the line of the page
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(page), "exec"), namespace)
        results.append((block, printed.getvalue()))
    return results


def differs(found: str, shown: str) -> bool:
    if NUMBER.sub("#", found) != NUMBER.sub("#", shown):
        return True
    for number, expected in zip(NUMBER.findall(found), NUMBER.findall(shown), strict=True):
        decimals = len(expected.partition(".")[2])
        allowed = max(0.02 * abs(float(expected)), 3.01 * 10**-decimals) if decimals else 0
        if abs(float(number) - float(expected)) > allowed:
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_prints_what_it_shows(page):
    for block, printed in run_blocks(page):
        shown = block[2] or ""
        assert not differs(printed.strip(), shown.strip()), (
            f"{page.name} prints\n{printed}\nbut shows\n{shown}"
        )


def test_there_are_pages_and_a_difference_is_seen():
    assert {"bring-your-own-logits", "pitfalls"} <= {page.stem for page in PAGES}
    assert not differs("macro 0.512", "macro 0.511")
    assert differs("macro 0.612", "macro 0.511")
    assert differs("[1, 3, 4]", "[1, 3, 3]")
    assert differs("a", "")
    assert differs("macro 0.51", "micro 0.51")


def write(page: Path) -> None:
    """Put what the blocks print into the page."""
    text = page.read_text(encoding="utf-8")
    for block, printed in reversed(run_blocks(page)):
        shown = f"\n```text\n{printed.rstrip()}\n```\n" if printed else ""
        text = f"{text[: block.start()]}```python run\n{block[1]}```\n{shown}{text[block.end() :]}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for each in PAGES:
        write(each)
