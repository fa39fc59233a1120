"""Run trials, in processes of their own, and count them by kind and verdict."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from faults import changes, damage, fuzz, kills, launched
from faults.command import in_child, warm
from faults.plants import PLANTS
from faults.shop import GOOD, Shop, Verdict

Trial = Callable[[Shop, int], Verdict]
KINDS: dict[str, Trial] = {
    "kill": kills.kill,
    "error": kills.fail,
    "full": kills.full,
    "damage": damage.damage,
    "bit": damage.bit,
    "change": changes.change,
    "fuzz": fuzz.fuzz,
    "torchrun": launched.launched,
}
VERDICTS = ("equal", "refused", "read", "lost", "silently other", "traceback", "hung")
SHORT = {"kill": 5, "error": 4, "full": 1, "damage": 6, "bit": 2, "change": 4, "fuzz": 390, "torchrun": 0}
LONG = {"kill": 320, "error": 120, "full": len(kills.LIMITS), "damage": 180, "bit": 60, "change": len(changes.CASES),
        "fuzz": 20_800, "torchrun": 6}  # fmt: skip
_STRIDE = {"kill": 37, "error": 29, "damage": 41, "change": 17}
"""Steps between the short version's seeds, so that few of them lie far apart."""
_BATCH = 260  # mutations that one process reads


@dataclass(frozen=True)
class Row:
    """A trial, its verdict and what was done; ``plant`` names the defect that was planted."""

    trial: str
    verdict: str
    detail: str
    plant: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; exit with 1 if a verdict is none of those that may be."""
    asked = _arguments(arguments)
    started = time.monotonic()
    trials = asked.trial or _trials(LONG if asked.long else SHORT, asked.only, long=asked.long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warm()
    rows = run_trials(trials, asked.jobs, plants=asked.plants)
    result = {
        "command": " ".join(["python -m faults", *(sys.argv[1:] if arguments is None else arguments)]),
        "seconds": round(time.monotonic() - started),
        "counts": count(rows),
        "bad": [asdict(row) for row in rows if row.plant is None and row.verdict not in GOOD],
        "plants": [asdict(row) for row in rows if row.plant is not None],
    }
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1, ensure_ascii=True) + "\n")
    print(table(result["counts"]))
    for row in rows if asked.trial else [row for row in rows if row.verdict not in GOOD or row.plant]:
        planted = f" ({row.plant} planted)" if row.plant else ""
        print(f"{row.trial}{planted}: {row.verdict}: {row.detail}")
    return 1 if result["bad"] else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m faults", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the long version")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--trial", nargs="+", metavar="KIND/SEED", help="repeat single trials")
    parser.add_argument("--plants", action="store_true", help="plant defects too, which must be seen")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts and what is bad")
    return parser.parse_args(arguments)


def _trials(counts: dict[str, int], only: Sequence[str] | None, *, long: bool) -> list[str]:
    chosen = {kind: number for kind, number in counts.items() if not only or kind in only}
    return [
        f"{kind}/{seed * (1 if long else _STRIDE.get(kind, 1))}"
        for kind, number in chosen.items()
        for seed in range(number)
    ]


def run_trials(trials: Sequence[str], jobs: int, *, plants: bool = False) -> list[Row]:
    """Run trials in ``jobs`` processes, each with a shop of its own; plants after them."""
    # A disk would take longer over the flushing than the trials take.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=memory))
    children: list[int] = []
    try:
        for job in range(jobs):
            child = os.fork()
            if not child:
                _be_worker(
                    folder / str(job), list(trials)[job::jobs], list(PLANTS)[job::jobs] if plants else []
                )
            children.append(child)
        failed = []
        while children:
            failed.append(os.waitpid(children[0], 0)[1])
            children.pop(0)
        rows = [Row(**json.loads(line)) for path in sorted(folder.glob("*.rows")) for line in path.open()]
        if any(failed):
            raise RuntimeError(f"a worker of the harness failed after {len(rows)} trials")
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)  # those that are not waited for, where this process is stopped
        shutil.rmtree(folder, ignore_errors=True)
    return sorted(
        rows, key=lambda row: (row.plant or "", row.trial.partition("/")[0], int(row.trial.split("/")[1]))
    )


def _be_worker(root: Path, trials: Sequence[str], plants: Sequence[str]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        shop = Shop(root)
        with open(f"{root}.rows", "w", buffering=1) as rows:
            for row in _worked(shop, trials, plants):
                rows.write(json.dumps(asdict(row)) + "\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _worked(shop: Shop, trials: Sequence[str], plants: Sequence[str]) -> Iterable[Row]:
    mutations = [trial for trial in trials if trial.startswith("fuzz/")]
    for trial in trials:
        kind, _, seed = trial.partition("/")
        if kind != "fuzz":
            yield Row(trial, **asdict(_tried(KINDS[kind], shop, int(seed))))
    for start in range(0, len(mutations), _BATCH):
        yield from _mutations(shop, mutations[start : start + _BATCH])
    for name in plants:
        yield from _planted(shop, name)


def _tried(trial: Trial, shop: Shop, seed: int) -> Verdict:
    try:
        return trial(shop, seed)
    except Exception as error:  # the other trials go on
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict("traceback", f"the harness itself: {error!r:.300} [{place.filename}:{place.lineno}]")


def _mutations(shop: Shop, trials: Sequence[str]) -> Iterable[Row]:
    """Read many mutations in one child; one that ends it is told, and the rest are read in another."""
    assert shop.finished
    assert shop.unfinished
    trials = list(trials)
    while trials:
        done = in_child(partial(_read_all, shop, trials), timeout=120 + 2 * len(trials))
        lines = done.out.splitlines()
        found = [Row(**json.loads(line)) for line in lines if line.startswith('{"trial"')]
        yield from found
        trials = trials[len(found) :]
        if trials and (done.code != 0 or not found):
            yield Row(
                trials.pop(0), "hung" if done.hung else "traceback", f"ended the process: {done.last_line}"
            )


def _read_all(shop: Shop, trials: Sequence[str]) -> None:
    fuzz.limit_memory()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the life of this child)
    for trial in trials:
        row = Row(trial, **asdict(fuzz.fuzz(shop, int(trial.partition("/")[2]))))
        out.write(json.dumps(asdict(row)) + "\n")


def _planted(shop: Shop, name: str) -> Iterable[Row]:
    """Try a plant's trial without it, which also makes the references, and then with it."""
    plant = PLANTS[name]
    sound = _tried(plant.trial, shop, plant.seed)
    yield Row(f"plant/{plant.seed}", **asdict(sound), plant=f"{name}, not")

    def tried() -> None:
        plant.plant()
        print(json.dumps(asdict(_tried(plant.trial, shop, plant.seed))))

    done = in_child(tried, timeout=200)
    found = json.loads(done.out) if done.code == 0 else asdict(Verdict("traceback", done.err[-600:]))
    yield Row(f"plant/{plant.seed}", **found, plant=name)


def count(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Return how often each kind had each verdict, without what was planted."""
    kinds = dict.fromkeys(row.trial.partition("/")[0] for row in rows if row.plant is None)
    counts = {kind: Counter(row.verdict for row in rows if row.plant is None and row.trial.startswith(kind + "/"))
              for kind in kinds}  # fmt: skip
    return {kind: {verdict: counts[kind][verdict] for verdict in VERDICTS} for kind in kinds}


def table(counts: dict[str, dict[str, int]]) -> str:
    """Return the counts as a table in Markdown."""
    lines = [f"| kind | trials | {' | '.join(VERDICTS)} |", "|---" * (len(VERDICTS) + 2) + "|"]
    for kind, found in counts.items():
        numbers = [sum(found.values()), *(found[verdict] for verdict in VERDICTS)]
        lines.append(f"| {kind} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
