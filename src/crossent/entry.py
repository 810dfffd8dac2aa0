"""How a command begins."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from crossent import cli


def start(make: "Callable[[], cli.Command[Any]]", arguments: list[str] | None) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    Args:
        make: the command; called here, so that a Ctrl-C while its modules are imported is answered like any other.
        arguments: the command line without the program's name; None: that of this process.
    """
    try:
        from crossent import cli

        command = make()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(cli.run(command, arguments))
