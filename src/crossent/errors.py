"""The exceptions that mean: the user has to change something."""

import errno
from pathlib import Path


class UserError(Exception):
    """A mistake of the user's, in one line that says what to change.

    Commands print it as ``error: <message>`` and exit with code 2. The message names the key, the file,
    the row or the column, what was found and what is allowed.
    """


class CannotWriteError(UserError):
    """The system does not let a file be written: the disk is full, or nothing may be written there.

    Attributes:
        path: of the file.
    """

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class Fault(RuntimeError):  # noqa: N818  # it is the message that counts
    """What should not have happened has, in another process; the message has its traceback and what to do."""


def about_a_file(error: OSError) -> UserError:
    """What the system has to say of a file, for the user; other errors of the system are raised."""
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    reason = UserError(f"{error.filename or 'a file of the run cannot be written'}: {error.strerror}")
    reason.__cause__ = error
    return reason
