"""SIGKILL of one of two processes under torchrun, and then the same command again.

This module is also what torchrun starts: ``python -m faults.launched run ...``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from faults.command import Done
from faults.kills import SCENES, scene_operations
from faults.operations import Operations, kill_at
from faults.shop import Shop, Verdict, judge, results_of, spread

TIMEOUT = 300
_KILL = "FAULTS_KILL"  # rank:number, of an operation on the leading process, of a collective on the other
_COLLECTIVES = 40  # about as many as the other process takes part in


def launched(shop: Shop, seed: int) -> Verdict:
    """Kill one of two processes: the one that writes at an operation, the other one as they talk."""
    expected = results_of(_reference(shop))
    rank, share = seed % 2, spread(seed // 2)
    count = _COLLECTIVES if rank else len(scene_operations(shop, SCENES[0]))
    number = 1 + int(share * count)
    out = shop.fresh()
    killed = _launch(shop, out, f"{rank}:{number}")
    what = f"two processes, number {rank} killed at {'collective' if rank else 'operation'} {number}"
    if killed.hung:
        return Verdict("hung", what)
    verdict = judge(_launch(shop, out, ""), out, expected, what)
    return Verdict("lost", verdict.detail) if verdict.verdict == "refused" else verdict


def _reference(shop: Shop) -> Path:
    out = shop.root / "references" / "launched" / "run"
    if not out.exists():
        done = _launch(shop, out, "")
        assert done.code == 0, done.err
    return out


def _launch(shop: Shop, out: Path, kill: str) -> Done:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port, "-m",
               "faults.launched", "run", shop.recipe, "--out", out, "--quiet"]  # fmt: skip
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
        _KILL: kill,
        "FAULTS_OUT": str(out),
    }
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=environment, start_new_session=True)  # fmt: skip
    try:
        said, complained = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Done(None, "", "", hung=True)
    return Done(process.returncode, said, complained)


def _main() -> None:
    """Be one process of the run, with its end prepared."""
    import torch.distributed as distributed

    import dualtail.cli.main as main

    rank, _, number = os.environ.get(_KILL, "").partition(":")
    if number and os.environ["RANK"] == rank == "0":
        Operations(Path(os.environ["FAULTS_OUT"]), kill_at(int(number)))
    elif number and os.environ["RANK"] == rank:
        _count_collectives(distributed, int(number))
    main.run()


def _count_collectives(distributed: object, number: int) -> None:
    met = []
    for name in (
        "all_reduce",
        "all_gather",
        "barrier",
        "broadcast",
        "all_gather_object",
        "broadcast_object_list",
    ):
        plain = getattr(distributed, name)

        def counted(*args: object, plain: object = plain, **kwargs: object) -> object:
            met.append(1)
            if len(met) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **kwargs)  # type: ignore[operator]

        setattr(distributed, name, counted)


if __name__ == "__main__":
    _main()
