"""What all pictures have in common. Imports no torch."""

import io
import warnings
from typing import Any

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B0A000")
DASHES = ("-", "--", ":", "-.")


def figure(width: float, height: float) -> Any:
    """A figure that no window knows of, so that none has to be closed.

    Args:
        width: inches.
        height: inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def png(drawn: Any, dots: int = 110) -> bytes:
    """A figure as a PNG file.

    Args:
        drawn: the figure.
        dots: per inch.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name, which other files have
        drawn.savefig(file, dpi=dots, format="png")
    return file.getvalue()


def open_frame(axes: Any) -> None:
    """Gives axes a light grid, and no lines above and to the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def shortened(name: str, longest: int) -> str:
    """A name of at most so many letters, cut in the middle, since many names begin alike."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[len(name) - (longest - 1 - head) :]}"


def label(name: str, longest: int) -> str:
    """A shortened name as matplotlib shows it; a $ would begin a formula."""
    return shortened(name, longest).replace("$", r"\$")
