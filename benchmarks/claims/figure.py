"""The results as one figure. Importing this module loads matplotlib."""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.claims.tables import CODES, FLOAT, NAMES, mean_over_domains  # noqa: E402
from utils.runtime.atomic_files import atomic_write  # noqa: E402

BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#59636E", "#009E73"
COLOURS = (GREY, ORANGE, GREEN, BLUE)
MARKERS = "osD^"
LABEL_WIDTH = 22  # characters


def draw(results: dict[str, Any], path: Path) -> None:
    """A PNG with a panel for each claim, and one for times: the mean R@1, and that of each seed as a small dot."""
    claims = results["claims"]
    figure, axes = plt.subplots(2, 3, figsize=(17, 8), layout="constrained")
    draw_rows(axes[0, 0], "Adapting the backbone", claims["adaptation"])
    draw_rows(axes[0, 1], "Adapters of the same size", claims["adapters"])
    draw_hashing(axes[0, 2], claims["hashing"])
    draw_two_stage(axes[1, 0], claims["two_stage"])
    draw_times(axes[1, 1], claims["two_stage"])
    domains = [{"variant": row["variant"], "R@1": mean_over_domains(row)} for row in claims["domains"]]
    draw_rows(axes[1, 2], "Trained on, tested on all", domains)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def draw_rows(axis: Axes, title: str, rows: Sequence[dict]) -> None:
    """The mean of each row as a diamond, and each seed as a dot."""
    names = [NAMES.get(row["variant"], row["variant"]) for row in rows]
    for i, row in enumerate(rows):
        colour = BLUE if row["variant"] == "multiconv" else GREY
        axis.plot(statistics.mean(row["R@1"]), i, "D", color=colour, markersize=11, alpha=0.6)
        axis.plot(row["R@1"], [i] * len(row["R@1"]), "o", color="black", markersize=3)
    axis.set_yticks(range(len(rows)), [textwrap.fill(name, LABEL_WIDTH) for name in names])
    axis.set(title=title, xlabel="R@1", ylim=(len(rows) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)


def draw_hashing(axis: Axes, rows: Sequence[dict]) -> None:
    """R@1 of the codes over their length, a line for each loss."""
    lengths = sorted({row["bits"] for row in rows})
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    for name, colour, marker in zip(variants, COLOURS, MARKERS, strict=True):
        values = {row["bits"]: row["R@1"] for row in rows if row["variant"] == name}
        draw_line(axis, [values[bits] for bits in lengths], colour=colour, marker=marker, label=NAMES[name])
    axis.set_xticks(range(len(lengths)), [str(bits) for bits in lengths])
    axis.set(title="Training of the codes", xlabel="bits", ylabel="R@1")
    axis.legend()


def draw_two_stage(axis: Axes, rows: Sequence[dict]) -> None:
    """R@1 over the number of candidates."""
    stages = [row for row in rows if row["variant"] not in (FLOAT, CODES)]
    draw_line(axis, [row["R@1"] for row in stages], colour=BLUE, marker="o", label="two stages")
    for row in rows:
        if row["variant"] in (FLOAT, CODES):
            label, style = ("descriptors alone", "-") if row["variant"] == FLOAT else ("codes alone", ":")
            axis.axhline(statistics.mean(row["R@1"]), color=ORANGE, linestyle=style, label=label)
    axis.set_xticks(range(len(stages)), [row["variant"] for row in stages])
    axis.set(title="Two stages", xlabel="candidates that are re-ranked", ylabel="R@1")
    axis.legend()


def draw_times(axis: Axes, rows: Sequence[dict]) -> None:
    """Time per query over the number of candidates."""
    timed = [row for row in rows if row["variant"] != CODES]
    names = ["descriptors\nalone" if row["variant"] == FLOAT else row["variant"] for row in timed]
    colours = [ORANGE if row["variant"] == FLOAT else BLUE for row in timed]
    axis.bar(range(len(timed)), [statistics.mean(row["ms"]) for row in timed], color=colours, alpha=0.6)
    axis.set_xticks(range(len(timed)), names)
    axis.set(title="Two stages: time, large database", xlabel="candidates that are re-ranked", ylabel="ms per query")


def draw_line(axis: Axes, values: Sequence[Sequence[float]], *, colour: str, marker: str, label: str) -> None:
    """Means of the seeds as a line, and a faint dot for each seed."""
    axis.plot([statistics.mean(seeds) for seeds in values], color=colour, marker=marker, label=label)
    for i, seeds in enumerate(values):
        axis.plot([i] * len(seeds), seeds, marker, color=colour, alpha=0.35, markersize=4)
