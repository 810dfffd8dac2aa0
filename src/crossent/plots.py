"""Pictures."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from crossent.errors import UserError

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B0A000")
_DASHES = ("-", "--", ":", "-.")


def save_losses(path: Path, gap: str, gaps: Tensor, curves: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Draws cost and slope of losses against the logit gap, one line a loss; losses that agree share a line.

    Args:
        path: of the PNG, which appears when it is whole.
        gap: what the gap is, in words.
        gaps: (points,).
        curves: cost and slope, (points,) each, by the loss's name.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharex=True)
    for index, (names, (cost, slope)) in enumerate(_sharing(curves)):
        style = {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _DASHES[index % len(_DASHES)], "linewidth": 1.8}
        left.plot(gaps.numpy(), cost.numpy(), label=", ".join(names), **style)
        right.plot(gaps.numpy(), slope.numpy(), **style)
    left.set(title="cost of a row", xlabel=gap)
    right.set(title="gradient: how the cost changes with that gap", xlabel=gap)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=150, format="png")
        part.replace(path)
    except FileExistsError as error:
        raise UserError(f"plot={path}: {path.parent} is not a directory") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"plot={path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _sharing(curves: dict[str, tuple[Tensor, Tensor]]) -> list[tuple[list[str], tuple[Tensor, Tensor]]]:
    """The curves, those that agree under all their names."""
    found: list[tuple[list[str], tuple[Tensor, Tensor]]] = []
    for name, curve in curves.items():
        for names, other in found:
            if all(torch.allclose(mine, its, atol=1e-4) for mine, its in zip(curve, other, strict=True)):
                names.append(name)
                break
        else:
            found.append(([name], curve))
    return found
