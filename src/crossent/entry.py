"""How a command begins."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from crossent.stopping import Stopped, end_undisturbed, stop_when_told

if TYPE_CHECKING:
    from crossent import cli


def start(make: "Callable[[], cli.Command[Any]]", arguments: list[str] | None) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    Args:
        make: the command; called here, so that a Ctrl-C while its modules are imported is answered like any other.
        arguments: the command line without the program's name; None: that of this process.
    """
    try:
        stop_when_told()
        from crossent import cli

        code = cli.run(make(), arguments)
        end_undisturbed()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Stopped as stop:
        end_undisturbed()
        sys.stderr.write(f"{stop}\n")
        sys.stderr.flush()
        os._exit(stop.exit_code)  # a thread may be at a checkpoint still, for which nobody waits
