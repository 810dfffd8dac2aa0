"""Summarises the runs in a folder: on the console, and in files for a spreadsheet, a page and a paper.

Imports no torch.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len

from crossent import comparison, config, cost_curves, hyperparameters, run_records
from crossent.comparison import Comparison, Row, Statistic
from crossent.console import as_typed, shown
from crossent.errors import UserError
from crossent.figure_style import shortened
from crossent.run_records import RunRecord
from crossent.writing import whole_folder

_FILES = ("summary.csv", "runs.csv", "summary.md", "curves.png")
_FOLDER = "summary"
# What the tables for people show, of each split, where runs have it; the files for machines have all.
_SHOWN = ("cost", "accuracy", "nll")
_LISTED = 30  # rows, and runs that have not finished, on the console
_LONGEST_CELL = 40


def summarize(chosen: config.SummarizeConfig) -> Comparison:
    """Reads the runs, prints what came of them, and writes it.

    Args:
        chosen: the configuration.

    Returns:
        The runs that have finished, compared.

    Raises:
        UserError: there are no runs, or none has the metric, or the output cannot be written.
    """
    folder = Path(chosen.folder)
    if not folder.is_dir():
        raise UserError(f"folder={folder}: {'a file; expected a folder' if folder.exists() else 'no such folder'}")
    return _summarize(folder, _output_folder(chosen, folder), metric=chosen.metric, plots=chosen.plot)


def _summarize(folder: Path, output: Path, *, metric: str | None, plots: bool) -> Comparison:
    records = list(run_records.find(folder))
    if not records:
        raise UserError(f"folder={folder}: there is no run in it")
    finished = [record for record in records if record.status == "finished"]
    compared = comparison.compare(finished, metric)
    if finished and metric is not None and compared.best is None:
        there = sorted({tag for record in finished for tag in record.metrics})
        raise UserError(f"metric={metric}: no run has it; there are {', '.join(there)}")
    picture = cost_curves.draw(compared) if plots and finished else None
    _print(folder, records, compared)
    with whole_folder(output, "output", [path for name in _FILES if (path := output / name).exists()]) as part:
        _write_rows(part / "summary.csv", compared)
        _write_runs(part / "runs.csv", records)
        (part / "summary.md").write_text(_markdown(compared, has_picture=picture is not None), encoding="utf8")
        if picture is not None:
            (part / "curves.png").write_bytes(picture)
    written = [name for name in _FILES if picture is not None or name != "curves.png"]
    print(f"\nwritten: {shown(output.absolute())} ({', '.join(written)})")
    return compared


def compare_sweep(directory: Path) -> None:
    """Prints and writes what came of a sweep, where any run has finished, and how to look at its curves."""
    if any(record.status == "finished" for record in run_records.find(directory)):
        print()
        _summarize(directory, directory / _FOLDER, metric=None, plots=True)
        print(f"curves: {as_typed('tensorboard')} --logdir {shown(directory.absolute())}")


def _output_folder(chosen: config.SummarizeConfig, folder: Path) -> Path:
    if chosen.output is None:
        return folder / _FOLDER
    output = Path(chosen.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output}: a file; expected a folder")
    there = next((name for name in _FILES if (output / name).exists()), None)
    if there is not None and not chosen.overwrite:
        raise UserError(f"output={output}: has {there}; overwrite=true replaces a summary")
    return output


def _print(folder: Path, records: Sequence[RunRecord], compared: Comparison) -> None:
    counts = Counter(record.status for record in records)
    order: tuple[run_records.Status, ...] = ("finished", "running", "stopped", "broken")
    print(f"runs  {shown(folder.absolute())}: {', '.join(f'{counts[s]:,} {s}' for s in order if counts[s])}")
    same = ", ".join(f"{key}={comparison.cell(value)}" for key, value in compared.same.items())
    if same:
        print(f"same  {same}")
    header, rows = _table(compared)
    if rows:
        print()
        cut = [[shortened(cell, _LONGEST_CELL) for cell in row] for row in [header, *rows[:_LISTED]]]
        for line in _aligned(cut, right=len(compared.keys)):
            print(line)
        if len(rows) > _LISTED:
            print(f"and {len(rows) - _LISTED} more rows, which summary.csv has")
    if compared.best is not None:
        print(f"\nbest by {compared.metric}: {_described(compared.best)}")
        print(f"repeat: {comparison.command(compared.best)}")
    _print_unfinished([record for record in records if record.status != "finished"])


def _print_unfinished(records: Sequence[RunRecord]) -> None:
    if not records:
        return
    print("\nnot in the table:")
    for record in records[:_LISTED]:
        print(f"  {shown(record.directory.absolute())}: {record.reason}")
    if len(records) > _LISTED:
        print(f"  and {len(records) - _LISTED} more, which runs.csv has")


def _described(row: Row) -> str:
    pairs = zip(row.values, comparison.cells(row), strict=True)
    return ", ".join(f"{key}={cell}" for key, cell in pairs if cell) or shown(row.runs[0].directory.absolute())


def _table(compared: Comparison) -> tuple[list[str], list[list[str]]]:
    """The table for people: its header, and a line for each row."""
    tags = [f"{split}/{name}" for split in ("val", "test", "train") for name in _SHOWN]
    wanted = [compared.metric, *tags] if compared.metric is not None else tags
    there = [tag for tag in dict.fromkeys(wanted) if any(tag in row.metrics for row in compared.rows)]
    header = [*compared.keys, "runs", *there]
    rows = [
        [*comparison.cells(row), str(len(row.runs)), *(_number(row.metrics.get(tag)) for tag in there)]
        for row in compared.rows
    ]
    return header, rows


def _number(statistic: Statistic | None) -> str:
    if statistic is None:
        return ""
    mean, deviation = statistic.mean, statistic.deviation
    form = ".4f" if 1e-3 <= abs(mean) < 1e4 or mean == 0 else ".3g"
    return f"{mean:{form}}" if deviation is None else f"{mean:{form}} ± {deviation:{form}}"


def _aligned(table: Sequence[Sequence[str]], *, right: int) -> list[str]:
    """Lines of columns, of which those from a place on are aligned to the right."""
    widths = [max(cell_len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if index >= right else cell + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def _markdown(compared: Comparison, *, has_picture: bool) -> str:
    header, rows = _table(compared)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    rule = ["---"] * len(compared.keys) + ["---:"] * (len(header) - len(compared.keys))
    parts = ["\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])] if rows else []
    if compared.best is not None:
        parts.append(f"Best by {compared.metric}: {_described(compared.best)}.")
        parts.append(f"    {comparison.command(compared.best)}")
    if has_picture:
        parts.append("![the curves, with bands over seeds](curves.png)")
    return "\n\n".join(parts) + "\n"


def _write_rows(path: Path, compared: Comparison) -> None:
    """Writes a CSV file with a line for each row: mean and standard deviation of every metric."""
    tags = sorted({tag for row in compared.rows for tag in row.metrics})
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*compared.keys, "runs", *(f"{tag} {what}" for tag in tags for what in ("mean", "sd"))])
        for row in compared.rows:
            found = [row.metrics.get(tag) for tag in tags]
            numbers = [each for one in found for each in ((None, None) if one is None else (one.mean, one.deviation))]
            exact = ["" if each is None else f"{each:.10g}" for each in numbers]
            writer.writerow([*comparison.cells(row), len(row.runs), *exact])


def _write_runs(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes a CSV file with a line for each run, whatever has become of it."""
    tags = sorted({tag for record in records for tag in record.metrics})
    keys = list(dict.fromkeys(key for record in records for key in hyperparameters.keys(record.overrides)))
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "status", "reason", *keys, "steps", "seconds", *tags])
        for record in records:
            values = [hyperparameters.value(record.config, key) for key in keys]
            measured = [record.steps, f"{record.seconds:.10g}"] if record.status == "finished" else ["", ""]
            metrics = [f"{record.metrics[tag]:.10g}" if tag in record.metrics else "" for tag in tags]
            writer.writerow([record.directory, record.status, record.reason, *values, *measured, *metrics])
