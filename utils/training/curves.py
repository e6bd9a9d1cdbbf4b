"""The curves of a training run. Importing this module loads matplotlib."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from utils.runtime.atomic_files import atomic_write  # noqa: E402

DPI = 110


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
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
