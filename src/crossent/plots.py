"""Pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crossent.figure_style import COLOURS, DASHES, label, open_frame, png
from crossent.figure_style import figure as new_figure
from crossent.writing import whole

if TYPE_CHECKING:
    from crossent.confusion import Confusion
    from crossent.metrics import Reliability

_LONGEST_NAME = 18
_GRID = 240  # points across the picture, and up
_IN_LEGEND = 16  # classes, at most
_FITS = 5  # letters of a name that need not stand upright


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
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2, sharex=True)
    for index, (names, (cost, slope)) in enumerate(_sharing(curves)):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.8}
        left.plot(gaps.numpy(), cost.numpy(), label=", ".join(names), **style)
        right.plot(gaps.numpy(), slope.numpy(), **style)
    left.set(title="cost of a row", xlabel=gap)
    right.set(title="gradient: how the cost changes with that gap", xlabel=gap)
    for axes in (left, right):
        open_frame(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    with whole(path, "plot") as part:
        figure.savefig(part, dpi=150, format="png")


def confusion_matrix(confusion: "Confusion", classes: tuple[str, ...]) -> bytes:
    """Draws what the rows of each class were taken for, as a PNG file.

    Args:
        confusion: of all classes, or of those with the most mistakes.
        classes: the names of all of them.
    """
    names, shares, counts, of = confusion.names(classes), confusion.shares, confusion.counts, len(classes)
    size = max(4.5, 1.8 + 0.42 * len(names))
    figure = new_figure(size + 0.8, size)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    shown = [label(name, _LONGEST_NAME) for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=90 if max(map(len, shown)) > _FITS else 0)
    axes.set_yticks(range(len(shares)), shown[: len(shares)])
    which = "rows of each class"
    if len(shares) < of:
        which = f"the {len(shares)} classes with the most mistakes, of {of}"
    axes.set(xlabel="taken for", ylabel="class", title=which)
    letters = 7 if len(names) > 12 else 10
    for row, column in counts.nonzero().tolist():
        count, dark = float(counts[row, column]), shares[row, column] > 0.5
        axes.text(
            column, row, _short(count), ha="center", va="center", fontsize=letters, color="white" if dark else "black"
        )
    bar = figure.colorbar(image, ax=axes, fraction=0.046)
    bar.set_label("share of the class's rows")
    return png(figure)


def reliability(curves: Mapping[str, "Reliability"]) -> bytes:
    """Draws how right predictions are against how sure they are, and how many there are, as a PNG file.

    Args:
        curves: one or two, by their names.
    """
    figure = new_figure(5.6, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as right")
    for (name, curve), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
        weight = curve.weight.cpu()
        met = weight > 0
        named = f"{name}, ECE {float(curve.error):.4f}"
        share = weight / weight.sum().clamp(min=1e-300)
        confidence, accuracy = (each.cpu()[met].numpy() for each in (curve.confidence, curve.accuracy))
        upper.plot(confidence, accuracy, label=named, color=colour, linestyle=dash, linewidth=1.2)
        upper.scatter(confidence, accuracy, s=(6 + 120 * share[met]).numpy(), color=colour)  # by the rows behind it
        lower.stairs(
            share.numpy(),
            torch.linspace(0, 1, len(share) + 1).numpy(),
            color=colour,
            linestyle=dash,
            fill=False,
            linewidth=1.5,
        )
    upper.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02), title="how sure, and how right")
    lower.set(xlabel="probability of the predicted class", ylabel="share of rows", ylim=(0, None))
    for axes in (upper, lower):
        open_frame(axes)
    upper.legend(frameon=False, loc="upper left")
    return png(figure)


def decision_regions(
    rows: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, classes: Sequence[str], columns: Sequence[str]
) -> bytes:
    """Draws which class a classifier of two features takes each point for, and some rows, as a PNG file.

    Args:
        rows: (rows, 2), as they are in the data.
        targets: (rows,), from 0 to classes - 1.
        weight: (classes, 2), of such rows.
        bias: (classes,).
        classes: their names.
        columns: the names of the two features.
    """
    figure = new_figure(6.4, 4.8)
    axes = figure.subplots()
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    margin = ((high - low) * 0.06).clamp(min=1e-6)
    (left, right), (bottom, top) = torch.stack([low - margin, high + margin], dim=1).tolist()
    across, up = torch.linspace(left, right, _GRID).double(), torch.linspace(bottom, top, _GRID).double()
    points = torch.stack([across.repeat(_GRID), up.repeat_interleave(_GRID)], dim=1)
    taken_for = (points @ weight.double().T + bias.double()).argmax(dim=1).view(_GRID, _GRID)
    colours = _colours(len(classes))
    axes.imshow(
        colours[taken_for],
        extent=(left, right, bottom, top),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        alpha=0.3,
    )
    for index, name in enumerate(classes):
        mine = (rows[targets == index]).numpy()
        shown = label(name, _LONGEST_NAME) if len(classes) <= _IN_LEGEND else None
        axes.scatter(*mine.T, s=18, color=colours[index], edgecolor="white", linewidth=0.5, label=shown)
    names = [label(column, 3 * _LONGEST_NAME) for column in columns]
    axes.set(xlabel=names[0], ylabel=names[1], title="what each point is taken for", xlim=(left, right))
    axes.set_ylim(bottom, top)
    axes.spines[["top", "right"]].set_visible(False)
    if len(classes) <= _IN_LEGEND:
        figure.legend(loc="outside right upper", frameon=False)
    return png(figure)


def _colours(count: int) -> Any:
    """So many colours, (count, 3)."""
    import matplotlib as mpl
    from matplotlib.colors import to_rgb

    if count <= len(COLOURS):
        return np.array([to_rgb(colour) for colour in COLOURS[:count]])
    return mpl.colormaps["turbo"](np.linspace(0, 1, count))[:, :3]


def _short(count: float) -> str:
    """A number of rows in at most four characters or so."""
    if count >= 10_000:
        return f"{count / 1000:.0f}k"
    return f"{count:.0f}" if count == round(count) else f"{count:.3g}"


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
