"""Where lines for the reader go."""

import logging
import sys
from typing import TextIO


class StdoutHandler(logging.StreamHandler[TextIO]):
    """A log handler that asks for ``sys.stdout`` at each line.

    A live progress bar replaces ``sys.stdout`` while it is shown, so that lines appear above it; the handler of
    the standard library keeps the stream it was made with, and would write into the bar.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # the base class sets it once
        return sys.stdout
