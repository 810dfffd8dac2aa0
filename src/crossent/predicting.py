"""Predicts the rows of a file, from a checkpoint alone. Imports no torch."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from crossent import checkpoints, config, outputs, runs
from crossent.console import progress, shown
from crossent.data.arrow import MisfitError, TableFile, number_array, text_array
from crossent.data.csv import CsvFile
from crossent.data.inputs import ArrayInput, Input, NewRows, TableInput, Wanted
from crossent.data.parquet import ParquetFile
from crossent.errors import UserError
from crossent.trained import TrainedClassifier
from crossent.writing import whole

log = logging.getLogger(__name__)

_MANY_ROWS = 10_000  # of which it is worth saying how fast they went
# Probabilities that wait to be written.
_PROBABILITIES = 2**22


def predict(chosen: config.PredictConfig) -> Path:
    """Predicts all rows of the input, and writes the output when it is whole.

    Returns:
        The path of the output.

    Raises:
        UserError: something that the user has to change; nothing is left behind.
    """
    started = time.perf_counter()
    run = runs.find_trained(chosen.run, "run")
    checkpoint = checkpoints.read(run, f"run={chosen.run}")
    path = _output_path(chosen, run)
    model = TrainedClassifier(checkpoint)
    kind = config.output_kind(path.name) or ".csv"
    source = _open(chosen, checkpoint, verbatim=kind == ".csv")
    log.info("run     %s, %d steps", shown(checkpoint.path), checkpoint.steps)
    log.info("input   %s, %d features, %d classes", chosen.input, len(model.feature_names_), len(model.classes_))
    with whole(path, "output") as part:
        rows = _write(chosen, source, model, part, kind)
    if source.unseen:
        log.warning(
            "%s: %d values of text columns were not among the training rows; all their features are 0",
            chosen.input,
            source.unseen,
        )
    seconds = time.perf_counter() - started
    rate = f", {rows / seconds:,.0f} a second" if rows >= _MANY_ROWS else ""
    log.info("output  %s: %s row%s in %.2f s%s", shown(path), f"{rows:,}", "s" * (rows != 1), seconds, rate)
    return path


def _output_path(chosen: config.PredictConfig, run: runs.StoredRun) -> Path:
    """Where the predictions go, after a look at what is there."""
    if chosen.output is None:
        kind = config.input_kind(chosen.input)
        name = f"predictions{'.npz' if kind == '.npy' else kind}"
        return runs.folder_in(run, "predict") / name
    path = Path(chosen.output)
    try:
        there = path.exists()
    except OSError as error:
        raise UserError(f"output={path}: {error.strerror}") from error
    if there:
        if path.is_dir():
            raise UserError(f"output={path}: a directory; expected a file")
        if path.samefile(chosen.input):
            raise UserError(f"output={path}: the same file as the input; choose another name")
        if not chosen.overwrite:
            raise UserError(f"output={path}: exists; overwrite=true replaces it")
    return path


def _open(chosen: config.PredictConfig, checkpoint: checkpoints.Checkpoint, *, verbatim: bool) -> Input:
    wanted = Wanted(
        checkpoint.facts,
        [str(name) for name in chosen.keep],
        known=checkpoint.known_columns,
        surplus_allowed=chosen.surplus == "ignore" or not checkpoint.facts.all_columns,
        missing_allowed=chosen.missing == "empty",
        verbatim=verbatim,
    )
    path, kind = Path(chosen.input), config.input_kind(chosen.input)
    if kind in (".npy", ".npz"):
        return ArrayInput(path, wanted)
    file: TableFile = _csv(path, chosen.csv, checkpoint) if kind == ".csv" else ParquetFile(path)
    return TableInput(file, wanted, texts=kind == ".csv")


def _csv(path: Path, chosen: config.CsvOptions, checkpoint: checkpoints.Checkpoint) -> CsvFile:
    """A CSV file, to be read as it was chosen, or as the run read its own, or as usual."""
    options = {key: value for key, value in msgspec.structs.asdict(chosen).items() if value is not None}
    data = checkpoint.config["data"]
    if data.get("name") == "csv":
        try:
            stored = msgspec.convert({key: data.get(key) for key in chosen.__struct_fields__}, config.CsvOptions)
        except msgspec.ValidationError as error:
            raise UserError(f"run: {shown(checkpoint.path)} has no way to read a CSV file: {error}") from error
        options = {key: value for key, value in msgspec.structs.asdict(stored).items() if value is not None} | options
    return CsvFile(path, **options, keys="csv")


def _write(chosen: config.PredictConfig, source: Input, model: TrainedClassifier, part: Path, kind: str) -> int:
    """Writes all predictions, and returns how many rows there were."""
    while True:
        outputs.check(source.kept, kind)
        writer = _Writer(source.kept, model, probabilities=chosen.probabilities)
        try:
            with outputs.opened(part, kind, writer.schema) as output, progress("predicting", "rows") as advance:
                return writer.write(source.rows(), output, advance)
        except MisfitError as misfit:
            # What looked like a number further up is a text here: once more, with texts in that column.
            if not source.widen(misfit.column):
                raise


class _Writer:
    """Predicts rows and makes columns of what comes out.

    Args:
        kept: the columns that are carried over.
        model: what predicts.
        probabilities: whether the probabilities of all classes get columns.
    """

    def __init__(self, kept: pa.Schema, model: TrainedClassifier, *, probabilities: bool) -> None:
        self._model = model
        self._all = probabilities
        labels = model.classes_
        self._classes = text_array(labels.tolist()) if labels.dtype.kind == "U" else number_array(labels)
        fields = [*kept, ("prediction", self._classes.type), ("probability", pa.float32())]
        if probabilities:
            fields += [(f"probability_{name}", pa.float32()) for name in model.facts.classes]
        self.schema = pa.schema(fields)
        name, count = Counter(self.schema.names).most_common(1)[0]
        if count > 1:
            raise UserError(f"keep={name}: the output would have two columns of that name")

    def write(
        self, rows: Iterator[NewRows], output: outputs.Output, advance: Callable[[int, float | None], None]
    ) -> int:
        """Writes the predictions of all rows, and returns how many there were."""
        count = 0
        step = max(1, _PROBABILITIES // len(self._classes)) if self._all else 2**62
        for new in rows:
            for start in range(0, len(new.features), step):
                output.write(self._batch(new, slice(start, min(start + step, len(new.features)))))
            count += len(new.features)
            advance(count, new.done)
        return count

    def _batch(self, new: NewRows, part: slice) -> pa.RecordBatch:
        size, step = part.stop - part.start, self._model.rows_at_a_time
        codes, probability = np.empty(size, np.int64), np.empty(size, np.float32)
        probabilities = np.empty((len(self._classes) if self._all else 0, size), np.float32)
        features = new.features[part]
        for start in range(0, size, step):
            here = slice(start, start + step)
            found = self._model.predictions(features[here], probabilities=self._all)
            codes[here], probability[here] = found.codes, found.probability
            if found.probabilities is not None:
                probabilities[:, here] = found.probabilities
        missing = None if new.missing is None else new.missing[part]
        columns = [each.slice(part.start, size).combine_chunks() for each in new.kept]
        predicted = self._classes.take(number_array(codes, missing))
        columns += [predicted, *(number_array(each, missing) for each in (probability, *probabilities))]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)
