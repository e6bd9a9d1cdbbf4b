"""Pictures: the curves of a training run, and images with their matches. Importing this module loads matplotlib."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from datasets.images import load_image  # noqa: E402
from model.errors import InputError  # noqa: E402
from utils.runtime.atomic_files import atomic_write  # noqa: E402


def draw_curves(path: Path, history: list[dict]) -> None:
    """A PNG of losses and validation recalls over the epochs, from the rows of metrics.csv, {column: value}."""
    epochs = [row["epoch"] for row in history]
    recalls = [column for column in history[-1] if "_R@" in column]
    size = (11 if recalls else 6, 4)
    figure, axes = plt.subplots(1, 2 if recalls else 1, figsize=size, squeeze=False, layout="constrained")
    losses = {"loss": "loss"}
    if any(row["constraint"] for row in history):
        losses |= {"multi_similarity": "multi-similarity", "constraint": "similarity constraint"}
    for column, label in losses.items():
        axes[0, 0].plot(epochs, [row[column] for row in history], marker=".", label=label)
    axes[0, 0].set(xlabel="epoch", ylabel="mean over the epoch", title="Training loss", ylim=(0, None))
    for column in recalls:
        axes[0, 1].plot(epochs, [row[column] for row in history], marker=".", label=column.replace("_R@", ", R@"))
    if recalls:
        axes[0, 1].set(xlabel="epoch", ylabel="%", title="Validation recall", ylim=(0, 100))
    for axis in axes.flat:
        axis.legend()
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def draw_matches(path: Path, query: Path, matches: Sequence[str], *, captions: Sequence[str]) -> None:
    """A PNG of a query and its matches, best first, with captions. An unreadable match is an empty frame."""
    columns = min(1 + len(matches), 6)
    rows = -(-(1 + len(matches)) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    shown: list[str | Path] = [query, *matches]
    titles = (textwrap.fill(query.name, 32), *captions)
    for axis, image, title in zip(axes.flat, shown, titles, strict=False):
        axis.set_title(title, fontsize=10, parse_math=False)
        try:
            axis.imshow(load_image(image))
        except InputError:
            message = textwrap.fill(f"cannot be read: {image}", 28, break_on_hyphens=False)
            axis.text(0.5, 0.5, message, ha="center", va="center", fontsize=7, parse_math=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
