"""An event file that TensorBoard reads, of which every byte is known to be on disk when it has to be."""

import contextlib
import io
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter
from typing_extensions import override

from crossent.errors import CannotWriteError
from crossent.writing import cannot_write, sync

_PENDING_BYTES = 2**18  # that are written before anybody asks for it


class EventFile:
    """An event file, with the methods of TensorBoard's ``EventFileWriter``.

    That one hands every record to a thread, which takes longer than a small step, prints a traceback where the disk is
    full, leaves a torn record there behind which readers see nothing, and cannot bring the file to disk.

    Args:
        directory: of the run.
        start: the step that a resumed run goes on from; readers forget earlier points from there on. None: a new run.
    """

    def __init__(self, directory: Path, start: int | None) -> None:
        self._path = directory / _name(directory)
        self._file = self._path.open("xb", buffering=0)
        self._written = self._synced = 0  # bytes, in whole records
        self._pending = io.BytesIO()
        self._records = RecordWriter(self._pending)
        writer = SourceMetadata(writer="crossent.event_file")
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=writer))
        # TensorBoard's server takes the first of these in a run for the beginning, whatever its step is, and forgets
        # points at the later ones alone.
        session = SessionLog(status=SessionLog.START)
        self.add_event(Event(wall_time=time.time(), step=start or 0, session_log=session))
        try:
            self.flush()
        except CannotWriteError:
            self._file.close()
            self._path.unlink()
            raise

    def get_logdir(self) -> str:
        """The directory of the run."""
        return str(self._path.parent)

    def add_event(self, event: Event) -> None:
        """Takes in an event; it is written with the next ones.

        Raises:
            CannotWriteError: the disk is full, or the file may not be written any more.
        """
        self._records.write(event.SerializeToString())
        if self._pending.tell() >= _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what has been taken in, for readers to see; whole records or none.

        Raises:
            CannotWriteError: the disk is full, or the file may not be written any more.
        """
        data, done = self._pending.getvalue(), 0
        try:
            while done < len(data):
                done += self._file.write(data[done:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._written)  # readers give a file up at a torn record
                self._file.seek(self._written)
            raise cannot_write(self._path, error) from error
        self._written += len(data)
        self._pending.seek(0)
        self._pending.truncate()

    def sync(self) -> None:
        """Brings all that has been taken in to disk.

        Raises:
            CannotWriteError: the disk is full, or the file may not be written any more.
        """
        self.flush()
        if self._synced == self._written:
            return
        try:
            sync(self._path)
            sync(self._path.parent)
            self._synced = self._written
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Brings all to disk and ends the file."""
        if not self._file.closed:
            with self._file:
                self.sync()

    def reopen(self) -> None:
        """Goes on where it was; TensorBoard's own begins another file."""


class Writer(SummaryWriter):
    """PyTorch's ``SummaryWriter``, for an `EventFile` in the directory of a run."""

    def __init__(self, directory: Path, start: int | None) -> None:
        self._start = start
        super().__init__(str(directory))

    @override
    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer: FileWriter = _FileWriter(Path(self.log_dir), self._start)
            self.all_writers: dict[str, FileWriter] = {self.log_dir: self.file_writer}
        return self.file_writer

    @override
    def close(self) -> None:
        """Brings all to disk and ends the file, which stays open if PyTorch's own finds the disk full."""
        if self.file_writer is not None:
            self.file_writer.close()

    def add_points(self, points: Mapping[str, float], step: int) -> None:
        """Takes in a point of several curves, by their tags, in half of the time of as many ``add_scalar``."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()])
        writer: EventFile = self._get_file_writer().event_writer
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def describe(self, hyperparameters: dict[str, Any], metrics: dict[str, float]) -> None:
        """Says what the run is known by, for TensorBoard's HPARAMS, and which curves tell how good it is.

        PyTorch's ``add_hparams`` writes points of the metrics as well, and into a run of their own.

        Args:
            hyperparameters: their values.
            metrics: by the curves' tags; their last points count, and not what is given here.
        """
        experiment, start, _ = hparams(hyperparameters, metrics)
        for summary in (experiment, start):
            self._get_file_writer().add_summary(summary)

    def describe_end(self) -> None:
        """Says that the run has ended well; see `describe`."""
        self._get_file_writer().add_summary(hparams({}, {})[2])

    def add_png(self, tag: str, png: bytes, step: int) -> None:
        """Takes in a picture; PyTorch's ``add_image`` wants its pixels, and ``add_figure`` all of pyplot.

        Args:
            tag: of the picture.
            png: the file.
            step: x.
        """
        width, height = struct.unpack(">II", png[16:24])  # the header comes first in any PNG file
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def sync(self) -> None:
        """Brings all that has been written to disk.

        Raises:
            CannotWriteError: the disk is full, or the file may not be written any more.
        """
        self._get_file_writer().event_writer.sync()


class _FileWriter(FileWriter):
    def __init__(self, directory: Path, start: int | None) -> None:
        self.event_writer: Any = EventFile(directory, start)


def _name(directory: Path) -> str:
    """A name behind those of the event files that are there, since readers take them in the order of their names.

    A name tells the second that the file was made in; where an earlier file has a later one (of a machine whose clock
    was ahead, or of this very second), the one after that.
    """
    seconds = [int(time.time())]
    for path in directory.glob("events.out.tfevents.*"):
        second = path.name.split(".")[3]
        seconds += [int(second) + 1] if second.isdigit() else []
    return f"events.out.tfevents.{max(seconds):010d}.{socket.gethostname()}.{os.getpid()}.0"
