"""What it costs to tell images by content: reading them for the first time, and looking whether they have changed.

The files are in the operating system's cache, so that this is the cost of the work itself; a disk or a network may be
slower.

    python benchmarks/contents.py [--images 20000] [--kilobytes 110]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from dualtail.data.contents import SETTLED_NS, read_contents


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument(
        "--kilobytes", type=int, default=110, help="of a file; ImageNet's have 110 on average"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        os.environ["DUALTAIL_CACHE"] = str(Path(folder) / "cache")
        paths = [f"{number}.jpg" for number in range(arguments.images)]
        for path in paths:
            (root / path).write_bytes(os.urandom(1000 * arguments.kilobytes))
        time.sleep(SETTLED_NS / 1e9 + 0.1)
        for name in ("first time", "unchanged"):
            start = time.perf_counter()
            read_contents(root, paths)
            seconds = time.perf_counter() - start
            files = arguments.images / seconds
            rate = f", {files * arguments.kilobytes / 1000:,.0f} MB/s" if name == "first time" else ""
            print(f"{name}: {seconds:.2f} s, {files:,.0f} files/s{rate}")


if __name__ == "__main__":
    main()
