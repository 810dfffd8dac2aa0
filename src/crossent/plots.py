"""Pictures."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossent.writing import whole

if TYPE_CHECKING:
    from crossent.metrics import Reliability

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B0A000")
_DASHES = ("-", "--", ":", "-.")
_LONGEST_NAME = 18
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
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2, sharex=True)
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
    with whole(path, "plot") as part:
        figure.savefig(part, dpi=150, format="png")


def save_confusion(path: Path, names: Sequence[str], shares: Tensor, counts: Tensor, *, of: int) -> None:
    """Draws what the rows of each class were taken for.

    Args:
        path: of the PNG.
        names: of the columns: the classes, and perhaps one more for all others.
        shares: (classes, columns), of each class's rows.
        counts: (classes, columns), their weights.
        of: how many classes there are, of which these are those with the most mistakes.
    """
    size = max(4.5, 1.8 + 0.42 * len(names))
    figure = _figure(size + 0.8, size)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    shown = [shortened(name, _LONGEST_NAME).replace("$", r"\$") for name in names]  # or it would be a formula
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
    _save(figure, path)


def save_reliability(path: Path, curves: Mapping[str, "Reliability"]) -> None:
    """Draws how right predictions are against how sure they are, and how many there are.

    Args:
        path: of the PNG.
        curves: one or two, by their names.
    """
    figure = _figure(5.6, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as right")
    for (name, curve), colour, dash in zip(curves.items(), _COLOURS, _DASHES, strict=False):
        met = curve.weight > 0
        label = f"{name}, ECE {float(curve.error):.4f}"
        share = curve.weight / curve.weight.sum().clamp(min=1e-300)
        confidence, accuracy = curve.confidence[met].numpy(), curve.accuracy[met].numpy()
        upper.plot(confidence, accuracy, label=label, color=colour, linestyle=dash, linewidth=1.2)
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
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    upper.legend(frameon=False, loc="upper left")
    _save(figure, path)


def shortened(name: str, longest: int) -> str:
    """A name of at most so many letters, cut in the middle, since many names begin alike."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[len(name) - (longest - 1 - head) :]}"


def _save(figure: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name; classes.csv has it
        figure.savefig(path, dpi=110, format="png")


def _figure(width: float, height: float) -> Any:
    """A figure that no window knows of, so that none has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
