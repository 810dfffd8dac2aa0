"""Writes files that appear when they are whole, or not at all. Imports no torch."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from crossent import runs
from crossent.errors import UserError


@contextlib.contextmanager
def whole(path: Path, key: str) -> Iterator[Path]:
    """Gives a temporary name in the same folder to write to, which becomes ``path`` when all has gone well.

    If it has not, neither the file nor a folder that was made for it is left behind.

    Args:
        path: of the file; folders that are missing are made.
        key: what named the path, for messages.

    Raises:
        UserError: the file cannot be written.
    """
    with _beside(path, key) as part:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # or a crash could leave the name without the rows
        part.replace(path)


@contextlib.contextmanager
def whole_folder(path: Path, key: str, replaced: Sequence[Path] = ()) -> Iterator[Path]:
    """Gives a temporary folder to write to, whose files are in ``path`` when all has gone well.

    Args:
        path: of the folder; files of the same names that are there already are replaced, others stay.
        key: what named the path, for messages.
        replaced: files in it that go when the new ones come.

    Raises:
        UserError: a file cannot be written.
    """
    with _beside(path, key) as part:
        part.mkdir()
        yield part
        if not path.exists():
            part.rename(path)
            return
        for old in replaced:
            old.unlink()
        for file in part.iterdir():
            file.replace(path / file.name)
        part.rmdir()


@contextlib.contextmanager
def _beside(path: Path, key: str) -> Iterator[Path]:
    """Gives a hidden name beside a path; what is there is gone when it fails, and so are folders made for it."""
    made: list[Path] = []
    part = path.with_name(f".{path.name}.{runs.short_id()}.part")
    try:
        for folder in [*reversed(path.parent.parents), path.parent]:
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        yield part
    except BaseException as error:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
            for folder in reversed(made):
                folder.rmdir()
        if isinstance(error, OSError) and _is_about(error, part):
            reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
            raise UserError(f"{key}={path}: cannot be written: {reason}") from error
        raise


def _is_about(error: OSError, part: Path) -> bool:
    """Whether an error is about what is written, and not about a file that is read."""
    named = error.filename
    return named is None or Path(named).is_relative_to(part) or Path(named) in part.parents


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Writes numbers under their names; what is not finite becomes null, since JSON has no other word for it."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    with whole(path, "file") as part:
        part.write_text(json.dumps(finite, indent=2) + "\n")
