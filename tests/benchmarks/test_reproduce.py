"""benchmarks/reproduce.py end to end: stand-in weights from a local server, small stand-in datasets, all verdicts."""

import csv
import functools
import http.server
import shutil
import threading

import pytest
from helpers.checkpoints import save_published
from helpers.models import reference_model
from helpers.processes import start_script

from benchmarks.reproduce import DIFFERS, NO_FIGURE, NOT_COMPARABLE, REPRODUCED, verdict

NAMES = ("SelaVPRplusplus_base", "SelaVPRplusplus_large", "SelaVPRplusplus_base_rerank", "SelaVPRplusplus_large_rerank")
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
small = {"Pitts30k test": (16, 10), "MSLS val, all 11,084 queries": (10, 16)}
recognition.PROTOCOLS = [replace(protocol, database=small[protocol.name][0], queries=small[protocol.name][1])
                         for protocol in recognition.PROTOCOLS if protocol.name in small]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of stand-in weights, filled vit-tiny models, for all models but the last."""
    folder = tmp_path_factory.mktemp("weights")
    kinds = (("gem", {}), ("boq", {}), ("gem", {"hashing": True, "rerank": True}))
    for name, (aggregation, flags) in zip(NAMES, kinds, strict=False):
        save_published(reference_model("vit-tiny", aggregation, **flags).state_dict(), folder / f"{name}.pth")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()


@pytest.fixture
def datasets(tiny_benchmark, tmp_path):
    """Stand-ins for pitts30k and, with database and queries exchanged, msls; no nordland."""
    shutil.copytree(tiny_benchmark / "tiny", tmp_path / "datasets/pitts30k")
    images = tiny_benchmark / "tiny/images/test"
    shutil.copytree(images / "database", tmp_path / "datasets/msls/val/queries")
    shutil.copytree(images / "queries", tmp_path / "datasets/msls/val/database")
    return tmp_path / "datasets"


def reproduce(server, datasets, cwd, published):
    """The exit status, and {(model, dataset): row of reproduction.csv}."""
    with open(cwd / "published.csv", "w", newline="") as file:
        csv.writer(file).writerows([("model", "protocol", "R@1"), *published])
    flags = [f"--datasets_folder={datasets}", f"--published={cwd / 'published.csv'}", "--resize", 28, 28]
    flags += ["--num_workers=0", "--device=cpu"]
    env = {"HUB": str(cwd / "hub"), "SERVER": server}
    result = start_script("benchmarks.reproduce", *flags, cwd=cwd, env=env, prelude=STAND_INS).result()
    runs = sorted((cwd / "logs/reproduce").iterdir())
    with open(runs[-1] / "reproduction.csv", newline="") as file:
        rows = {(row["model"], row["dataset"]): row for row in csv.DictReader(file)}
    return result, rows


@pytest.mark.slow
def test_all_verdicts(server, datasets, tmp_path):
    result, rows = reproduce(server, datasets, tmp_path, [])
    assert result.status == 0, result.stderr
    measured = {key: float(row["measured R@1"]) for key, row in rows.items() if row["measured R@1"]}
    assert len(rows) == 12 and len(measured) == 6  # three models on two datasets

    base, large, rerank, missing = NAMES
    pitts, msls = "Pitts30k test", "MSLS val, all 11,084 queries"
    published = [
        (base, pitts, measured[base, "pitts30k"] + 0.2),
        (base, "MSLS val, official 740 queries", 90.0),
        (large, pitts, measured[large, "pitts30k"] - 0.3),
        (large, msls, measured[large, "msls"]),
    ]
    result, rows = reproduce(server, datasets, tmp_path, published)
    assert result.status == 1, result.stderr
    verdicts = {key: row["verdict"] for key, row in rows.items()}
    assert verdicts[base, "pitts30k"] == REPRODUCED and rows[base, "pitts30k"]["difference"] == "-0.2"
    assert verdicts[base, "msls"] == NOT_COMPARABLE and rows[base, "msls"]["protocol"] == msls
    assert verdicts[large, "pitts30k"] == DIFFERS and rows[large, "pitts30k"]["difference"] == "+0.3"
    assert verdicts[large, "msls"] == REPRODUCED
    assert verdicts[rerank, "pitts30k"] == verdicts[rerank, "msls"] == NO_FIGURE
    assert verdicts[missing, "pitts30k"].startswith("missing (weights: save http")
    assert all(verdicts[name, "nordland"].startswith("missing (dataset: ") for name in NAMES)
    assert "| SelaVPRplusplus_base | pitts30k | Pitts30k test |" in result.stdout
    assert result.stdout.splitlines()[-1] == "3 of 12 figures compared with published ones; 1 differ"


@pytest.mark.parametrize(
    ("measured", "published", "expected"),
    [(90.0, 90.2, REPRODUCED), (90.0, 89.8, REPRODUCED), (90.0, 90.21, DIFFERS), (90.0, 89.79, DIFFERS)],
)
def test_the_tolerance_is_inclusive(measured, published, expected):
    assert verdict(measured, published, has_other_protocol=True) == expected
