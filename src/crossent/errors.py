"""The exceptions that mean: the user has to change something."""

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
