"""The results as Markdown."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.claims.domains import HOME, TARGET
from benchmarks.common import markdown_table
from model import CODE_BITS

NAME = "claims"  # of the JSON file
NAMES = {
    "pooled": "no training: the backbone's tokens, pooled",
    "foundation": "no training: the foundation's own head",
    "head": "head only",
    "full": "full fine-tuning",
    "multiconv": "MultiConv adapters",
    "bottleneck": "plain bottleneck adapters",
    "conv3": "adapters with 3 x 3 convolutions only",
    "multiconv_random": "MultiConv, convolutions initialised at random",
    "conv3_random": "3 x 3 only, convolutions initialised at random",
    "sign_after": "sign after training",
    "straight_through": "straight-through estimator",
    "constraint": "similarity constraint",
    "both": "both",
}
FLOAT, CODES = "float", "0"  # variants of the two-stage table: descriptors alone, codes alone


class Comparison(NamedTuple):
    """A statement of the paper: how many points of R@1 the first variant is above the second."""

    above: str
    below: str
    paper: str


ADAPTATION = (
    Comparison("multiconv", "pooled", "above"),
    Comparison("multiconv", "head", "above"),
    Comparison("multiconv", "full", "near or above"),
)
ADAPTERS = (
    Comparison("multiconv", "bottleneck", "+6.0"),
    Comparison("multiconv", "conv3", "+2.1"),
    Comparison("conv3", "bottleneck", "+3.9"),
)
HASHING = (
    Comparison("both", "sign_after", "+3.7"),
    Comparison("straight_through", "sign_after", "+2.9"),
    Comparison("constraint", "sign_after", "+2.6"),
    Comparison("both", "straight_through", "+0.8"),
    Comparison("both", "constraint", "+1.1"),
)


def tables(results: dict[str, Any]) -> str:
    """The content of claims.json as Markdown: what was done, and for each claim a table and a comparison."""
    claims = results["claims"]
    parts = [introduction(results), adaptation(claims["adaptation"]), adapters(claims["adapters"])]
    parts += [hashing(claims["hashing"]), two_stage(claims["two_stage"]), domains(claims["domains"])]
    return "\n\n".join(parts) + "\n"


def introduction(results: dict[str, Any]) -> str:
    """What all tables have in common."""
    settings, machine = results["settings"], results["machine"]
    height, width = settings["image_size"]
    queries = settings["test_places"] * settings["queries"]
    rates = " or ".join(f"{rate:g}" for rate in settings["learning_rates"])
    home, target = (results["foundation"]["recalls"][name]["1"] for name in (HOME, TARGET))
    return (
        f"A vit-tiny is trained on {settings['foundation_places']} synthetic places in {HOME}: this is the foundation, "
        f"with an R@1 of {home:.1f} in {HOME} and {target:.1f} in {TARGET}. Its backbone is adapted to another domain: "
        f"other buildings, in {TARGET}, also by night and in snow. Every variant is trained on {settings['places']} "
        f"places there, {settings['epochs']} epochs with batches of {settings['batch_size']} places, and with the "
        f"learning rate ({rates}) that is best on the validation places. R@1 is that of {queries} queries of other "
        f"places, at {height} x {width} pixels: mean and standard deviation over {len(results['seeds'])} seeds of "
        "training, on the same queries. The paper's figures are those of large models on real images: only directions "
        "can be compared. A direction agrees if the difference has its sign with every seed.\n\n"
        f"Measured on {machine['cpu']}, with {machine['threads']} thread(s)."
    )


# ---- The claims


def adaptation(rows: list[dict]) -> str:
    """Adapters beside the frozen backbone against other ways of adapting it."""
    full = next(row for row in rows if row["variant"] == "full")
    cells = [
        [
            NAMES[row["variant"]],
            spread(row["R@1"]),
            f"{row['trained_parameters']:,}",
            *(f"{row[key]:.0f} ({row[key] / full[key]:.0%})" if key in row else "" for key in ("step_mb", "step_ms")),
            *training_cells(row),
        ]
        for row in rows
    ]
    header = ["", "R@1", "trained parameters", "MB per step", "ms per step", "learning rate", "loss"]
    return section(
        "Adapters beside the frozen backbone",
        "Percentages are relative to full fine-tuning. MB: what a step adds to the process's memory. Loss: mean of the "
        "first and of the last epoch. The paper reports 11.5 % of the memory of full fine-tuning with a large model.",
        markdown(header, cells),
        comparisons(rows, ADAPTATION),
    )


def adapters(rows: list[dict]) -> str:
    """MultiConv against other adapters of the same size."""
    cells = [
        [NAMES[row["variant"]], spread(row["R@1"]), f"{row['trained_parameters']:,}", *training_cells(row)]
        for row in rows
    ]
    return section(
        "MultiConv against other adapters of the same size",
        "In the paper, R@1 on Nordland is 75.2 with MultiConv, 73.1 with one size of convolution, and 69.2 with plain "
        "adapters. All convolutions start at 1e-5, as the reference's do, but for the last two rows.",
        markdown(["", "R@1", "trained parameters", "learning rate", "loss"], cells),
        comparisons(rows, ADAPTERS),
    )


def hashing(rows: list[dict]) -> str:
    """The losses of the codes, at several lengths."""
    lengths = sorted({row["bits"] for row in rows})
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    by_key = {(row["variant"], row["bits"]): row for row in rows}
    cells = [
        [
            NAMES[name],
            *(spread(by_key[name, bits]["R@1"]) for bits in lengths),
            *training_cells(by_key[name, CODE_BITS]),
        ]
        for name in variants
    ]
    return section(
        "Training of the codes",
        "R@1 of the codes alone, found by Hamming distance. In the paper it is 78.3 (sign after training), 81.2 "
        "(straight-through), 80.9 (constraint) and 82.0 (both) with 512 bits. The losses are of different "
        "kinds. Learning rate and loss are those of 512 bits.",
        markdown(["", *(f"{bits} bits" for bits in lengths), "learning rate", "loss"], cells),
        comparisons([row for row in rows if row["bits"] == CODE_BITS], HASHING),
    )


def two_stage(rows: list[dict]) -> str:
    """Recall and time over the number of candidates."""
    names = {FLOAT: "descriptors alone", CODES: "codes alone"}
    cells = [
        [names.get(row["variant"], f"{row['variant']} candidates"), spread(row["R@1"]), spread(row["ms"], digits=2)]
        for row in rows
    ]
    last = [row for row in rows if row["variant"] not in names]
    flat = [row for row in last if int(row["variant"]) >= 100]
    changes = [spread([b - a for a, b in zip(flat[0]["R@1"], row["R@1"], strict=True)]) for row in flat[1:]]
    by_name = {row["variant"]: row for row in rows}
    notes = [
        f"* {row['variant']} candidates in place of {flat[0]['variant']} change R@1 by {change} points; paper: flat."
        for row, change in zip(flat[1:], changes, strict=True)
    ]
    notes.append(compare(by_name, Comparison(last[-1]["variant"], FLOAT, "near")))
    return section(
        "Two stages",
        f"The database holds {rows[0]['database']:,} images: those of the test, and the training images. ms: per "
        "query, of the search and re-ranking among the same features, repeated to fill a large database.",
        markdown(["", "R@1", "ms"], cells),
        "\n".join(notes),
    )


def domains(rows: list[dict]) -> str:
    """One domain against several in training."""
    tested = list(rows[0]["R@1"])
    means = {row["variant"]: mean_over_domains(row) for row in rows}
    cells = [
        [row["variant"], *(spread(row["R@1"][name]) for name in tested), spread(means[row["variant"]])] for row in rows
    ]
    several = rows[-1]["variant"]
    best = max(list(means)[:-1], key=lambda name: statistics.mean(means[name]))
    text = f"* all domains against {best} alone, mean of the domains: {verdict(means[several], means[best], 'above')}"
    return section(
        "One domain against several in training",
        "R@1 on the test places of each domain. All rows train on the same number of places.",
        markdown(["trained on", *tested, "mean"], cells),
        text,
    )


# ---- Comparisons


def comparisons(rows: list[dict], statements: Sequence[Comparison]) -> str:
    """A line for each statement of the paper."""
    by_name = {row["variant"]: row for row in rows}
    return "\n".join(compare(by_name, statement) for statement in statements)


def compare(rows: dict[str, dict], statement: Comparison) -> str:
    """A line for a statement of the paper."""
    above, below = (NAMES.get(name, f"{name} candidates") for name in statement[:2])
    below = "descriptors alone" if statement.below == FLOAT else below
    differences = rows[statement.above]["R@1"], rows[statement.below]["R@1"]
    return f"* {above} against {below}: {verdict(*differences, statement.paper)}"


def verdict(above: Sequence[float], below: Sequence[float], paper: str) -> str:
    """How the R@1 of two variants differ with each seed, beside what the paper says. One value goes with all seeds."""
    if len(below) == 1:
        below = list(below) * len(above)
    differences = [a - b for a, b in zip(above, below, strict=True)]
    text = f"{spread(differences, sign=True)} points; paper: {paper}."
    if paper.startswith("near"):
        return text
    if len(differences) == 1:
        return f"{text} One seed only."
    if all(difference > 0 for difference in differences):
        return f"{text} The direction agrees with every seed."
    if all(difference < 0 for difference in differences):
        return f"{text} **The direction is the opposite with every seed.**"
    return f"{text} **The seeds do not agree on a direction.**"


# ---- Text


def section(title: str, caption: str, *parts: str) -> str:
    """A heading, a caption, a table, lines below it."""
    return "\n\n".join([f"### {title}", caption, *parts])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return markdown_table([dict(zip(header, row, strict=True)) for row in rows])


def spread(values: Sequence[float | None], *, digits: int = 1, sign: bool = False) -> str:
    """Mean and, of several values, their standard deviation; "" if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = round(statistics.mean(known), digits) + 0.0  # no "-0.0"
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def training_cells(row: dict) -> list[str]:
    """Learning rate, and the first and the last epoch's loss, mean over the seeds."""
    losses = [epochs for epochs in row["loss"] if epochs]
    if not losses:
        return ["", ""]
    first, last = (statistics.mean(epochs[i] for epochs in losses) for i in (0, -1))
    return [f"{row['learning_rate']:g}", f"{first:.2f} to {last:.2f}"]


def mean_over_domains(row: dict) -> list[float]:
    """The mean R@1 of a row over the domains, with each seed."""
    return [statistics.mean(values) for values in zip(*row["R@1"].values(), strict=True)]
