"""What the benchmarks measure with."""

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Measure = Callable[[], float]


def in_turns(cases: dict[str, Measure], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, all of them measured in every turn; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, measure in cases.items():
            seconds = measure()
            if turn:
                taken[name].append(seconds)
    return taken


def table(title: str, taken: dict[str, list[float]], base: str) -> None:
    """Prints a row a case, and its ratio to one of them."""
    print(f"\n{title}")
    print(f"{'':46}{'median s':>10}{'min':>9}{'max':>9}{'ratio':>8}")
    for name, times in taken.items():
        median = statistics.median(times)
        ratio = median / statistics.median(taken[base])
        print(f"{name:46}{median:10.3f}{min(times):9.3f}{max(times):9.3f}{ratio:8.2f}")


def verdict(what: str, found: float, limit: float, *, at_least: bool = False) -> None:
    """Says whether a limit holds."""
    holds = found >= limit if at_least else found <= limit
    print(f"{what}: {found:.2f}, {'at least' if at_least else 'at most'} {limit:g}: {'holds' if holds else 'MISSED'}")


def watched(command: Sequence[str], folder: Path) -> tuple[float, int, str]:
    """Runs a process in a folder: its seconds, the most anonymous memory in bytes, and what it printed."""
    started, peak = time.perf_counter(), 0
    with (folder / "console").open("w") as console:
        running = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, cwd=folder)
        while running.poll() is None:
            peak = max(peak, anonymous(running.pid))
            time.sleep(0.02)
    said = (folder / "console").read_text()
    if running.returncode != 0:
        raise RuntimeError(said)
    return time.perf_counter() - started, peak, said


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    with contextlib.suppress(OSError):  # it has ended
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [each for child in children for each in (child, *descendants(child))]
    return []


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory that a process has; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
