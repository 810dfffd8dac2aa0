"""Writes files that appear when they are whole, or not at all. Imports no torch."""

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from crossent.console import shown
from crossent.errors import CannotWriteError

#: Ends the hidden names of files that are not whole yet, which `clear_parts` removes.
PART = ".part"


@contextlib.contextmanager
def whole(path: Path, key: str | None = None, *, new: bool = False) -> Iterator[Path]:
    """Gives a temporary name in the same folder to write to, which becomes ``path`` when all has gone well.

    If it has not, neither the file nor a folder that was made for it is left behind.

    Args:
        path: of the file; folders that are missing are made.
        key: what named the path, for messages; None: nobody has.
        new: whether there may be no such file yet.

    Raises:
        CannotWriteError: the file cannot be written.
        FileExistsError: there is one, and it was to be a new one.
    """
    with _beside(path, key) as part:
        yield part
        sync(part)  # or a crash could leave the name without what is in it
        if new:
            _name(part, path)
        else:
            part.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path, key: str, replaced: Sequence[Path] = ()) -> Iterator[Path]:
    """Gives a temporary folder to write to, whose files are in ``path`` when all has gone well.

    Args:
        path: of the folder; files of the same names that are there already are replaced, others stay.
        key: what named the path, for messages.
        replaced: files in it that go when the new ones come.

    Raises:
        CannotWriteError: a file cannot be written.
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


def _name(part: Path, path: Path) -> None:
    """Gives a file a name that no other has, which replacing cannot promise."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a system without such links
        with path.open("xb") as file:
            file.write(part.read_bytes())
    part.unlink()


def sync(path: Path) -> None:
    """Has the system bring a file, or the names in a folder, to disk.

    Raises:
        OSError: it cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some systems have folders that
            raise  # cannot be brought to disk
    finally:
        os.close(descriptor)


def clear_parts(directory: Path) -> None:
    """Removes what a process that was killed has left in a folder of files that it had not finished."""
    for part in directory.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def cannot_write(path: Path, error: OSError, key: str | None = None) -> CannotWriteError:
    """What the system's refusal to write a file means for the user."""
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            folder = next(folder for folder in path.parents if folder.exists())
            reason += f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB are left in {shown(folder)})"
    named = f"{key}={path}" if key else shown(path)
    return CannotWriteError(f"{named}: cannot be written: {reason}", path)


@contextlib.contextmanager
def _beside(path: Path, key: str | None) -> Iterator[Path]:
    """Gives a hidden name beside a path; what is there is gone when it fails, and so are folders made for it."""
    made: list[Path] = []
    part = path.with_name(f".{path.name}.{secrets.token_hex(3)}{PART}")
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
        refused = _system_error(error)
        if refused is not None and not isinstance(refused, FileExistsError) and _is_about(refused, part):
            raise cannot_write(path, refused, key) from error
        raise


def _system_error(error: BaseException) -> OSError | None:
    """The system's refusal that an error is, or that led to it: PyTorch goes on to one of its own."""
    found: BaseException | None = error
    while isinstance(found, RuntimeError):
        found = found.__cause__ or found.__context__
    return found if isinstance(found, OSError) else None


def _is_about(error: OSError, part: Path) -> bool:
    """Whether an error is about what is written, and not about a file that is read."""
    named = error.filename
    return named is None or Path(named).is_relative_to(part) or Path(named) in part.parents


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Writes numbers under their names; what is not finite becomes null, since JSON has no other word for it."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    with whole(path) as part:
        part.write_text(json.dumps(finite, indent=2) + "\n")
