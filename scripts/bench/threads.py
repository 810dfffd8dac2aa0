"""Times the toy run on idle cores and on busy ones, with the threads that accelerator.threads=auto picks and with more.

On busy cores, threads that wait for one another in a loop take the time that those need for which they wait.

    python scripts/bench/threads.py [--repeats 5]
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measuring import in_turns, table, verdict

_CASES = {
    "one process, threads=auto": [],
    f"one process, threads={os.cpu_count()}": [f"accelerator.threads={os.cpu_count()}"],
    "ddp_cpu, 2 processes, threads=auto": ["accelerator=ddp_cpu", "accelerator.devices=2"],
}


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keeps every core busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def seconds_of_fit(overrides: list[str]) -> float:
    """Of the toy run, without what comes before and after."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "crossent.train", "hydra.run.dir=run", *overrides]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return float(json.loads((Path(folder) / "run" / "metrics.json").read_text())["seconds"])


def main() -> None:
    """Prints a table, and whether the limit holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    idle = in_turns({name: lambda each=each: seconds_of_fit(each) for name, each in _CASES.items()}, repeats)
    with busy():
        hurried = in_turns({name: lambda each=each: seconds_of_fit(each) for name, each in _CASES.items()}, repeats)
    first = next(iter(_CASES))
    for name in _CASES:
        both = {f"{name}, idle": idle[name], f"{name}, busy": hurried[name]}
        table(name, both, f"{name}, idle")
    verdict("busy over idle, threads=auto", sorted(hurried[first])[repeats // 2] / sorted(idle[first])[repeats // 2], 3)


if __name__ == "__main__":
    main()
