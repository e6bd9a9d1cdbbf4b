"""The curves of a training run. Importing this module loads matplotlib."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from utils.runtime.atomic_files import atomic_write  # noqa: E402

DPI = 110


def draw_curves(path: Path, history: list[dict]) -> None:
    """A PNG of losses and validation recalls over the epochs, from the rows of metrics.csv, {column: value}."""
    losses = {"loss": "loss"}
    if any(row["constraint"] for row in history):
        losses |= {"multi_similarity": "multi-similarity", "constraint": "similarity constraint"}
    recalls = {column: column.replace("_R@", ", R@") for column in history[-1] if "_R@" in column}
    plots = [("Training loss", "mean over the epoch", losses, None), ("Validation recall", "%", recalls, 100)]
    plots = [plot for plot in plots if plot[2]]
    figure, axes = plt.subplots(1, len(plots), figsize=(1 + 5 * len(plots), 4), squeeze=False, layout="constrained")
    for axis, (title, unit, columns, top) in zip(axes.flat, plots, strict=True):
        for column, label in columns.items():
            axis.plot([row["epoch"] for row in history], [row[column] for row in history], marker=".", label=label)
        axis.set(xlabel="epoch", ylabel=unit, title=title, ylim=(0, top))
        axis.legend()
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
