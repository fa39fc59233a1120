"""The studies: questions about the method that only a known prior can answer, each over several worlds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dualtail.errors import InputError, RunError, nearest_fix
from dualtail.files import write_text
from dualtail.lab.bench import MOST, Bench
from dualtail.lab.studies import groups, members, priors, repairs, rules, two_by_two
from dualtail.lab.studies.common import Answer, Study
from dualtail.runs.observer import Observer

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY for module in (priors, two_by_two, repairs, members, rules, groups)
}


@dataclass(frozen=True)
class StudyResult:
    """A study that was run, with what a page says of it.

    Attributes:
        study: the question.
        answer: to its question.
        command: what repeats it.
        worlds: how many were asked.
    """

    study: Study
    answer: Answer
    command: str
    worlds: int

    def to_markdown(self, images: str | None = None) -> str:
        """Return the question, a sentence a finding, the plots that lie in ``images`` if any, the tables."""
        parts = [f"*{self.study.question}*", "\n".join(f"- {finding}" for finding in self.answer.findings)]
        if images is not None:
            for file, plot in zip(self.plot_files, self.answer.plots, strict=True):
                parts.append(f"![{plot.caption}]({images}/{file})")
        parts += [table.to_markdown() for table in self.answer.tables]
        parts += [
            "Cells: mean over worlds ± half the 95 % t-interval (standard deviation over worlds).",
            f"Made by `{self.command}` over {self.worlds} worlds.",
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def plot_files(self) -> list[str]:
        """Names of the files of the plots."""
        return [
            f"lab-{self.study.name}{f'-{index}' if index else ''}.svg"
            for index in range(len(self.answer.plots))
        ]


def get_study(name: str) -> Study:
    """Return a study by its name.

    Raises:
        InputError: there is none of that name; the nearest is named.
    """
    if name not in STUDIES:
        raise InputError(f"unknown study {name!r}", fix=nearest_fix(name, [*STUDIES, "all"]))
    return STUDIES[name]


def run_study(
    name: str, worlds: int, work: str | Path, *, most: int = MOST, observer: Observer | None = None
) -> StudyResult:
    """Answer a study's question over several worlds.

    Args:
        name: a key of ``STUDIES``.
        worlds: how many, at least 2.
        work: folder in which models and logits are kept for the next study.
        most: members of the largest ensemble, 3 to 5.
        observer: hears what is made.

    Raises:
        InputError: there is no such study, too few worlds for an interval, or ``most`` out of range.
    """
    study = get_study(name)
    if worlds < 2:
        raise InputError(f"{worlds} world", where="worlds", fix="an interval needs at least 2")
    if not 3 <= most <= MOST:
        raise InputError(f"{most} members", where="most", fix=f"3 to {MOST}")
    benches = [Bench(seed, Path(work), observer or Observer(), most) for seed in range(worlds)]
    command = f"dualtail lab study {name} --worlds {worlds}" + (f" --most {most}" if most != MOST else "")
    return StudyResult(study, study.ask(benches), command, worlds)


def find_section(page: str | Path, name: str) -> tuple[str, str]:
    """Return what stands before and after a study's section in a page, with its two markers.

    Raises:
        RunError: the page or the markers are not there.
    """
    begin, end = f"<!-- study {name} -->\n", f"<!-- end of study {name} -->"
    try:
        content = Path(page).read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot be read ({error.strerror})", where=str(page)) from None
    before, opened, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise RunError(
            f"has no lines {begin.strip()!r} and {end!r}",
            where=str(page),
            fix="add them where the study goes",
        )
    return before + begin, end + after


def write_section(page: str | Path, result: StudyResult) -> None:
    """Replace what stands between a study's markers in a page; the plots go to ``images`` beside it.

    Raises:
        RunError: the page or the markers are not there.
        InputError: matplotlib, which draws, is not installed.
    """
    page = Path(page)
    before, after = find_section(page, result.study.name)
    for file, plot in zip(result.plot_files, result.answer.plots, strict=True):
        plot.save(page.parent / "images" / file)
    write_text(page, before + result.to_markdown("images") + after)
