"""A checksum over every byte of a zip archive, which PyTorch's checkpoints are, in the archive's own comment.

The checksums that archives have are each of one record. One wrong bit beside those, in what the archive says of a
record, lets PyTorch read memory that nobody has written to. Imports no torch.
"""

import hashlib
import re
from pathlib import Path
from typing import IO

_COMMENT = re.compile(rb"crossent sha256 ([0-9a-f]{64})")
_LENGTH = 16 + 64  # of the comment
_END_MARK, _END = b"PK\5\6", 22  # what an archive's last record begins with, and its bytes without a comment
_NO_COMMENT = b"\0\0"  # its length, which ends an archive that has none
_AT_A_TIME = 2**20


class SealedFile:
    """A file that an archive is written to, from its first byte to its last one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Writes the next bytes."""
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hands all bytes to the system."""
        self._file.flush()

    def seal(self) -> None:
        """Adds the checksum; the archive is complete."""
        self._file.seek(-len(_NO_COMMENT), 2)
        self._file.write(_LENGTH.to_bytes(2, "little") + b"crossent sha256 " + self._hash.hexdigest().encode())


def seal_of(path: Path) -> bytes:
    """The end of a file, in which its checksum is; two files with the same one are the same."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _END - _LENGTH))
        return file.read()


def is_broken(path: Path) -> bool:
    """Whether a file ends elsewhere than it says, or has a checksum that is not its own; it need not have one."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END - _LENGTH))
        _, found, end = file.read().rpartition(_END_MARK)
        said, comment = end[_END - 6 : _END - 4], end[_END - 4 :]
        if not found or int.from_bytes(said, "little") != len(comment):
            return True
        seal = _COMMENT.fullmatch(comment)
        if seal is None:
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - _LENGTH - len(_NO_COMMENT)
        while left:
            part = file.read(min(_AT_A_TIME, left))
            digest.update(part)
            left -= len(part)
        digest.update(_NO_COMMENT)
        return digest.hexdigest().encode() != seal[1]
