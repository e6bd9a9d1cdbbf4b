"""The curves of a training run. Importing this module loads matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from utils.runtime.atomic_files import atomic_write  # noqa: E402

DPI = 110


def draw_curves(path: Path, history: list[dict], losses: Sequence[float]) -> None:
    """A PNG of the loss of each step and the validation recalls, over the steps.

    history: the rows of metrics.csv, {column: value}; losses: of the last steps, NaN where the loss was not finite.
    """
    recalls = [column for column in history[-1] if column.endswith(("_R@1", "_R@5"))]
    size = (11 if recalls else 6, 4)
    figure, axes = plt.subplots(1, 2 if recalls else 1, figsize=size, squeeze=False, layout="constrained")
    last = history[-1]["step"]
    if losses:
        steps, window = np.arange(last - len(losses), last) + 1, max(1, len(losses) // 25)
        finite, kernel = np.isfinite(losses), np.ones(window)
        sums = np.convolve(np.where(finite, losses, 0), kernel, "valid")
        means = sums / np.maximum(np.convolve(finite, kernel, "valid"), 1)
        axes[0, 0].plot(steps, losses, color="C0", alpha=0.35, linewidth=0.8, label="each step")
        axes[0, 0].plot(steps[window - 1 :], means, color="C0", label=f"mean of {window}")
        axes[0, 0].legend()
    axes[0, 0].set(ylabel="loss", title="Training loss", ylim=(0, None))
    for column in recalls:
        points = [row["step"] for row in history], [row[column] for row in history]
        line = "-" if len(history) > 1 else ""  # one epoch is a point
        axes[0, 1].plot(
            *points, line, marker="o", label=column.replace("_first_stage", ", codes").replace("_R@", ", R@")
        )
    if recalls:
        axes[0, 1].set(ylabel="%", title="Validation recall", ylim=(0, 102))
        axes[0, 1].legend(loc="lower left")
    for axis in axes.flat:
        axis.set(xlabel=f"step ({len(history)} epoch{'s' * (len(history) > 1)})", xlim=(0, max(1.03 * last, 1)))
        axis.grid(alpha=0.3)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
