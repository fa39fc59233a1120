"""The demo's wall time and processor time, and what the lab's pieces cost: rendering, pre-training, fine-tuning.

    python benchmarks/demo.py [--threads 2] [--steps 20]

The demo runs as a user runs it, in a fresh process and an empty folder, and chooses its threads itself; its last
chapter has the cost of each stage.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dualtail.lab.corpus import draw
from dualtail.lab.embedded import embedded_world
from dualtail.lab.pretrain import pretrain
from dualtail.lab.world import World


def time_demo() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from dualtail.cli.main import run; run()", "demo", "--quiet"]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, str(Path(folder) / "demo")],
            check=True,
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(done.stdout)
    print(f"demo: {wall:.1f} s wall, {used.ru_utime + used.ru_stime:.1f} s of processor")


def time_rendering(world: World, count: int = 4000) -> None:
    labels = np.arange(count) % world.classes
    started = time.process_time()
    draw(world, labels, np.random.default_rng(0))
    print(f"rendering: {1e3 * (time.process_time() - started) / count:.3f} ms an image")


def time_pretraining(world: World, steps: int) -> None:
    shorter = world.pretraining.model_copy(update={"steps": steps, "images": 1000})
    small = world.model_copy(update={"pretraining": shorter})
    foundation = next(iter(world.foundations.values()))
    pretrain(small, foundation)  # warm up
    started = time.process_time()
    pretrain(small, foundation)
    seconds = (time.process_time() - started) / steps
    whole = world.pretraining
    print(f"pre-training: {1e3 * seconds:.0f} ms of processor a step of {whole.batch} images")
    print(f"              {whole.steps * seconds:.0f} s for an embedded model's {whole.steps} steps")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of rendering and pre-training")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    world = embedded_world()
    time_rendering(world)
    time_pretraining(world, arguments.steps)
    time_demo()


if __name__ == "__main__":
    main()
