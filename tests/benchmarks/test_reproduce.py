"""benchmarks/reproduce.py end to end: stand-in weights from a local server, stand-in datasets of known recalls."""

import csv
import functools
import http.server
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
from helpers.checkpoints import save_published
from helpers.models import reference_model
from helpers.processes import start_script

from benchmarks.reproduce import ABOVE, BELOW, EQUAL, PUBLISHED, VERDICTS, verdict

BASE, LARGE, RERANK, LARGE_RERANK = NAMES = (
    *("SelaVPRplusplus_base", "SelaVPRplusplus_large"),
    *("SelaVPRplusplus_base_rerank", "SelaVPRplusplus_large_rerank"),
)
PITTS, MSLS, TOKYO = "Pitts30k test", "MSLS val, official 740 queries", "Tokyo 24/7"
# Queries are copies of database images, so that each finds its image first. Some of them claim to be 5 km away.
QUERIES = {"pitts30k/images/test": (8, 0), "msls/val": (6, 3), "tokyo247/images/test": (4, 1)}  # copies, of those moved
RECALLS = {PITTS: 100.0, MSLS: 50.0, TOKYO: 75.0}
STAND_INS = """
import os
from dataclasses import replace
import torch
import datasets.protocols.recognition as recognition
import model.zoo as zoo
from model import ModelConfig

torch.hub.set_dir(os.environ["HUB"])
configs = [ModelConfig(backbone="vit-tiny", aggregation=aggregation, hashing=two_branch, rerank=two_branch)
           for two_branch in (False, True) for aggregation in ("gem", "boq")]
zoo.MIRRORS = (os.environ["SERVER"] + "/{}",)
zoo.MODEL_ZOO[:] = [replace(entry, config=config, sha256=None)
                    for entry, config in zip(zoo.MODEL_ZOO, configs, strict=True)]
small = {"Pitts30k test": 8, "MSLS val, official 740 queries": 6, "Tokyo 24/7": 4}
recognition.PROTOCOLS = [replace(protocol, database=16, queries=small[protocol.name], keys_sha256=None)
                         for protocol in recognition.PROTOCOLS if protocol.name in small]
"""


class Server:
    """Stand-in weights, filled vit-tiny models, for all published models but the large float one.

    Attributes: address; requests, how often each file was asked for.
    """

    def __init__(self, folder: Path) -> None:
        two_branch = {"hashing": True, "rerank": True}
        for name, aggregation, flags in (
            (BASE, "gem", {}),
            (RERANK, "gem", two_branch),
            (LARGE_RERANK, "boq", two_branch),
        ):
            save_published(reference_model("vit-tiny", aggregation, **flags).state_dict(), folder / f"{name}.pth")
        self.requests: Counter[str] = Counter()
        requests = self.requests

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                requests[self.path] += 1
                super().do_GET()

            def log_message(self, *_) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("weights"))
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def datasets(tiny_benchmark, tmp_path):
    """Stand-ins with the recalls of RECALLS for pitts30k, msls and tokyo247; no nordland."""
    database = tiny_benchmark / "tiny/images/test/database"
    for folder, (copies, moved) in QUERIES.items():
        target = tmp_path / "datasets" / folder
        shutil.copytree(database, target / "database")
        (target / "queries").mkdir()
        for i, path in enumerate(sorted(database.glob("*_0@.jpg"))[:copies]):
            name = path.name.replace("@6950000.00@", "@6955000.00@") if i < moved else path.name
            (target / "queries" / name).write_bytes(path.read_bytes() + b"\0")  # equal pixels, but not the same file
    return tmp_path / "datasets"


def reproduce(server, datasets, cwd, published=()):
    """Runs the benchmark: how it ended, and the rows of reproduction.csv."""
    flags = [f"--datasets_folder={datasets}", "--resize", 28, 28, "--num_workers=0", "--device=cpu"]
    if published:
        with open(cwd / "published.csv", "w", newline="") as file:
            csv.writer(file).writerows([("model", "protocol", "N", "recall", "kind", "source", "note"), *published])
        flags += [f"--published={cwd / 'published.csv'}"]
    env = {"HUB": str(cwd / "hub"), "SERVER": server.address}
    result = start_script("benchmarks.reproduce", *flags, cwd=cwd, env=env, prelude=STAND_INS).result()
    tables = sorted((cwd / "logs/reproduce").glob("*/reproduction.csv"))
    if not tables:
        return result, []
    with open(tables[-1], newline="") as file:
        return result, list(csv.DictReader(file))


@pytest.mark.slow
def test_every_published_figure_is_met_by_a_verdict(server, datasets, tmp_path):
    server.requests.clear()
    result, rows = reproduce(server, datasets, tmp_path)
    assert result.status == 1, result.stderr
    with open(PUBLISHED, newline="") as file:
        figures = list(csv.DictReader(file))
    assert len(figures) == 31 and len(rows) == 31 + 1  # and that of the two-branch base model on Tokyo, of no figure
    for figure, row in zip(figures, rows, strict=False):
        model, protocol, published = figure["model"], figure["protocol"], float(figure["recall"])
        assert (row["model"], row["protocol"], row["recall"]) == (model, protocol, f"R@{figure['N']}")
        assert (float(row["published"]), row["published figure is"]) == (published, figure["kind"])
        if model in (BASE, RERANK, LARGE_RERANK) and protocol in RECALLS:
            measured = RECALLS[protocol]
            assert float(row["measured"]) == measured and row["difference"] == f"{measured - published:+.1f}"
            assert row["verdict"] == (ABOVE if measured > published else BELOW)
            continue
        why = next(
            text
            for applies, text in (
                (figure["note"], figure["note"]),
                (protocol.startswith("Nordland"), "nordland is missing (https://github.com/gmberton/"),
                (model == LARGE, f"the weights are missing (save {server.address}/{LARGE}.pth in {tmp_path / 'hub'}"),
            )
            if applies
        )
        assert row["verdict"].startswith(f"not compared: {why}") and row["measured"] == ""
    assert rows[-1] == {**dict.fromkeys(rows[-1], ""), "model": RERANK, "protocol": TOKYO, "recall": "R@1"} | {
        "measured": "75.0",
        "verdict": "no published figure",
    }
    counts = Counter(row["verdict"].partition(":")[0] for row in rows)
    summary = ", ".join(f"{counts[name]} {name}" for name in VERDICTS)
    assert result.stdout.splitlines()[-1] == f"31 published figures: {summary}"
    assert set(server.requests) == {f"/{name}.pth" for name in NAMES} and set(server.requests.values()) == {1}


@pytest.mark.slow
def test_equal_recalls_and_figures_that_this_script_cannot_know(server, datasets, tmp_path):
    source = ("first-hand", "somebody", "")
    published = [
        (BASE, PITTS, 1, 99.8, *source),
        (LARGE_RERANK, MSLS, 10, 50.2, *source),
        (BASE, "MSLS val, all 11,084 queries", 1, 90, *source),
        (BASE, "SPED", 1, 90, *source),
        ("Another", PITTS, 1, 90, *source),
    ]
    result, rows = reproduce(server, datasets, tmp_path, published)
    assert result.status == 0, result.stderr
    verdicts = [row["verdict"] for row in rows if row["published"]]
    assert verdicts[:2] == [EQUAL, EQUAL] and [row["difference"] for row in rows[:2]] == ["+0.2", "-0.2"]
    assert verdicts[2:] == [
        f"not compared: msls has another protocol here: {MSLS}",
        "not compared: no dataset of this script has the protocol, only pitts30k, msls, nordland, tokyo247",
        f"not compared: there is no published model of this name, only {', '.join(NAMES)}",
    ]


@pytest.mark.slow
def test_nothing_to_compare_has_a_status_of_its_own_and_downloads_nothing(server, tmp_path):
    server.requests.clear()
    (tmp_path / "empty").mkdir()
    result, rows = reproduce(server, tmp_path / "empty", tmp_path)
    assert result.status == 3, result.stderr
    assert result.stdout.splitlines()[-1] == "Nothing was compared. The verdicts say what is missing."
    assert len(rows) == 31 and {row["verdict"].partition(":")[0] for row in rows} == {"not compared"}
    assert not server.requests
    result, rows = reproduce(server, tmp_path / "absent", tmp_path / "empty")
    expected = (
        f"--datasets_folder: there is no folder {tmp_path / 'absent'}. Give the folder that holds pitts30k, msls,"
    )
    assert result.status == 2 and expected in result.stderr and not rows


@pytest.mark.parametrize(
    ("measured", "published", "expected"),
    [(90.0, 90.2, EQUAL), (90.0, 89.8, EQUAL), (90.0, 90.21, BELOW), (90.0, 89.79, ABOVE)],
)
def test_the_tolerance_is_inclusive(measured, published, expected):
    assert verdict(measured, published) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "recall", "expected"),
    [(1, "high", "line 2: recall is 'high'"), (2, 90, "line 2: n is 2. Expected one of 1, 5")],
)
def test_a_table_of_published_figures_is_refused(server, datasets, tmp_path, n, recall, expected):
    result, rows = reproduce(server, datasets, tmp_path, [("a", "b", n, recall, "first-hand", "c", "")])
    assert result.status == 2 and expected in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "logs").exists()
