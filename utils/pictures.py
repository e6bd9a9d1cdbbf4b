"""Pictures: of a training run, of photos and their matches."""
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from datasets.photos import read_photo  # noqa: E402
from model.errors import InputError  # noqa: E402
from utils.files import atomic_write  # noqa: E402


def draw_curves(path: Path, history: list[dict]) -> None:
    """A PNG of the loss and its parts, and of the validation recalls, over the epochs: rows of metrics.csv, {column: value}."""
    epochs = [row["epoch"] for row in history]
    recalls = [column for column in history[-1] if "_R@" in column]
    figure, axes = plt.subplots(1, 2 if recalls else 1, figsize=(11 if recalls else 6, 4), squeeze=False, layout="constrained")
    parts = (("multi_similarity", "multi-similarity"), ("constraint", "similarity constraint")) if any(row["constraint"] for row in history) else ()
    for column, label in (("loss", "loss"), *parts):
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


def draw_matches(path: Path, photo: Path, matches: Sequence[str], captions: Sequence[str]) -> None:
    """A PNG of a photo and its matches, best first, each under its caption; a match that cannot be read is an empty frame that says so."""
    columns = min(1 + len(matches), 6)
    rows = -(-(1 + len(matches)) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, shown, caption in zip(axes.flat, (photo, *matches), (textwrap.fill(photo.name, 32), *captions), strict=False):
        axis.set_title(caption, fontsize=10, parse_math=False)
        try:
            axis.imshow(read_photo(shown))
        except InputError:
            message = textwrap.fill(f"cannot be read: {shown}", 28, break_on_hyphens=False)
            axis.text(0.5, 0.5, message, ha="center", va="center", fontsize=7, parse_math=False)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
