"""Event files hold whole records whatever happens, and readers take them in the order they were written in."""

import errno
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator

from conftest import curves
from crossent.errors import CannotWriteError
from crossent.event_file import Writer


class FullAfter:
    """A file on a disk with room for so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 30, 75])
def test_a_full_disk_leaves_whole_records_and_loses_none(room: int, tmp_path: Path) -> None:
    writer = Writer(tmp_path, None)
    writer.add_scalar("train/cost", 1.0, 0)
    writer.sync()
    events = writer.file_writer.event_writer
    file = events._file
    events._file = FullAfter(file, room)
    for step in range(1, 4):
        writer.add_scalar("train/cost", 1.0 + step, step)

    with pytest.raises(CannotWriteError, match="cannot be written: No space left on device"):
        writer.sync()
    then = curves(tmp_path)
    events._file = file
    writer.close()

    assert then == {"train/cost": {0: 1.0}}
    assert curves(tmp_path) == {"train/cost": {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}}


def test_a_later_file_is_read_later_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for index, clock in enumerate((now, now, now - 3600)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        writer = Writer(tmp_path, None if index == 0 else 2 * index)
        for step in range(2 * index, 2 * index + 4):
            writer.add_scalar("train/cost", float(index), step)
        writer.close()

    assert curves(tmp_path)["train/cost"] == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2}


def test_much_is_written_before_anybody_asks(tmp_path: Path) -> None:
    writer = Writer(tmp_path, None)
    for step in range(20_000):
        writer.add_scalar("train/cost", 0.0, step)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_size
    writer.close()

    assert written > 2**19


def test_tensorboards_server_forgets_what_a_resumed_run_takes_again(tmp_path: Path) -> None:
    """It takes the first start of a session for the run's beginning, and forgets points at later ones alone."""
    for start, steps in ((None, range(0, 6)), (3, range(3, 9))):
        writer = Writer(tmp_path, start)
        for step in steps:
            writer.add_scalar("train/cost", float(step), step)
        writer.close()

    events = plugin_event_accumulator.EventAccumulator(str(tmp_path), tensor_size_guidance={"scalars": 0})
    events.Reload()

    assert [point.step for point in events.Tensors("train/cost")] == list(range(9))
