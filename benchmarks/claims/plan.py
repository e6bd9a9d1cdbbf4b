"""Which runs each claim needs, and the table's rows from their results."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.claims.domains import DOMAINS, TARGET
from benchmarks.claims.experiments import Laboratory
from benchmarks.claims.runs import UNTRAINED, Run, float_run, hashing_run, multiconv_run
from benchmarks.claims.variants import ADAPTERS, HASHING_LOSSES
from model import CODE_BITS

ADAPTATIONS = ("pooled", "foundation", "head", "full", "multiconv")
MakeRun = Callable[[float, int], Run]  # of a learning rate and a seed
Row = dict[str, Any]


def perform(lab: Laboratory, seeds: tuple[int, ...]) -> dict[str, list[Row]]:
    """{claim: rows of its table}. Performs the runs that are missing."""
    return {
        "adaptation": adaptation(lab, seeds),
        "adapters": [float_row(lab, name, seeds) for name in ("multiconv", *ADAPTERS)],
        "hashing": hashing_rows(lab, seeds),
        "two_stage": two_stage_rows(lab, seeds),
        "domains": domain_rows(lab, seeds),
    }


def adaptation(lab: Laboratory, seeds: tuple[int, ...]) -> list[Row]:
    """Adapters beside the frozen backbone against other ways to adapt it, or none. A row has the cost of a step too."""
    costs = lab.costs()
    return [
        float_row(lab, name, seeds[:1] if name in UNTRAINED else seeds) | costs.get(name, {}) for name in ADAPTATIONS
    ]


def float_row(lab: Laboratory, network: str, seeds: tuple[int, ...]) -> Row:
    """A float model with any adapters, or none."""
    make = partial(float_run, network)
    rate = 0.0 if network in UNTRAINED else choose_rate(lab, make)
    return {"variant": network, **summarize(lab, make, rate, seeds)}


def hashing_rows(lab: Laboratory, seeds: tuple[int, ...]) -> list[Row]:
    """The losses of the codes, at all code lengths. The learning rate is chosen at the model's own length."""
    rows = []
    for loss in HASHING_LOSSES:
        rate = hashing_rate(lab, loss)
        for bits in lab.settings.bits:
            make = partial(hashing_run, loss, bits)
            rows.append({"variant": loss, "bits": bits, **summarize(lab, make, rate, seeds)})
    return rows


def two_stage_rows(lab: Laboratory, seeds: tuple[int, ...]) -> list[Row]:
    """The search by descriptors alone, by codes alone (0 candidates), and in two stages."""
    rates = choose_rate(lab, multiconv_run), hashing_rate(lab, "both")
    results = [lab.two_stage(multiconv_run(rates[0], seed), rates[1]) for seed in seeds]
    return [
        {
            "variant": name,
            "R@1": [result["recalls"][name]["1"] for result in results],
            "ms": [result["ms"].get(name) for result in results],
            "database": results[0]["database"],
        }
        for name in results[0]["recalls"]
    ]


def domain_rows(lab: Laboratory, seeds: tuple[int, ...]) -> list[Row]:
    """Training on each domain, and on as many places of all together. R@1 is that on each domain."""
    rate = choose_rate(lab, multiconv_run)
    rows = []
    for domains in (*((name,) for name in DOMAINS), tuple(DOMAINS)):
        results = [lab.result(multiconv_run(rate, seed, domains)) for seed in seeds]
        recalls = {name: [result["recalls"][name]["1"] for result in results] for name in DOMAINS}
        rows.append({"variant": " + ".join(domains), "R@1": recalls})
    return rows


# ---- Results of the runs


def choose_rate(lab: Laboratory, make: MakeRun) -> float:
    """The learning rate with the best R@1 + R@5 on the validation places, with the first seed."""

    def score(rate: float) -> float:
        validation = lab.result(make(rate, lab.settings.seeds[0]))["validation"]
        return validation["1"] + validation["5"]

    return max(lab.settings.learning_rates, key=score)


def hashing_rate(lab: Laboratory, loss: str) -> float:
    """The learning rate of a loss of the codes."""
    return choose_rate(lab, partial(hashing_run, loss, CODE_BITS))


def summarize(lab: Laboratory, make: MakeRun, rate: float, seeds: tuple[int, ...]) -> Row:
    """Learning rate, R@1 on the target with each seed, losses of each seed's epochs, number of trained parameters."""
    results = [lab.result(make(rate, seed)) for seed in seeds]
    return {
        "learning_rate": rate,
        "R@1": [result["recalls"][TARGET]["1"] for result in results],
        "loss": [result["loss"] for result in results],
        "trained_parameters": results[0]["trained_parameters"],
        "seconds": [result["seconds"] for result in results],
    }
