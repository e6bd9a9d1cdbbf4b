"""The page of the benchmarks, the description of the machine, and the share of its limit."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from helpers.processes import ROOT

from benchmarks import common, machine
from benchmarks.common import RESULTS, Row, count_gflop, write_json
from benchmarks.machine import kind, matrix_gflops
from benchmarks.plan import APPENDING
from benchmarks.readme import README, TEMPLATE, render
from model import InputError

EPYC = {"cpu": "AMD EPYC", "features": ["AVX512-BF16", "AVX2"], "gpu": None}
SETTINGS = {"cores": 2, "threads": 1, "versions": {"torch": "2.14"}}


def write_results(folder, *names):
    """Results of one benchmark, with a row of each name; the folder."""
    rows = [asdict(Row(name=name, baseline=10, ours=5, unit="ms", ratio=2)) for name in names]
    write_json(folder / kind(EPYC) / "extract.json", "Extraction", {**EPYC, **SETTINGS}, rows=rows)
    return folder


def test_the_page_is_what_the_command_writes_from_the_committed_measurements():
    assert README.read_text() == render(TEMPLATE.read_text()), "Run: python -m benchmarks.readme"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("**/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_measurements_lie_in_the_folder_of_their_kind_of_machine(path):
    assert path.parent.parent == RESULTS and path.parent.name == kind(json.loads(path.read_text())["machine"])


def test_rows_of_the_same_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="Rows of the same name in the results for epyc-avx512bf16"):
        render("<!-- results: extract -->", write_results(tmp_path, "attention", "attention"))


def test_measurements_that_are_neither_shown_nor_left_out_are_refused(tmp_path):
    results = write_results(tmp_path, "attention")
    with pytest.raises(InputError, match="extract"):
        render("No table\n", results)
    assert render("<!-- not shown: extract -->\n\nNo table\n", results).endswith("-->\n\nNo table\n")


def test_a_table_without_measurements_is_refused(tmp_path):
    with pytest.raises(InputError, match="train"):
        render("<!-- results: extract -->\n\n<!-- results: train -->\n", write_results(tmp_path, "attention"))


def test_the_share_is_that_of_the_best_matrix_product(monkeypatch):
    monkeypatch.setitem(machine.SHAPES, "cpu", ((1, 2, 3), (4, 5, 6)))
    monkeypatch.setattr(machine, "_linear_gflops", lambda shape, dtype, device: {1: 300, 4: 400}[shape[0]])
    measured = Row(name="", baseline=1, ours=250, unit="ms/image", ratio=1).with_share(50, "fp32")
    assert (measured.gflops, measured.matrix_gflops) == (200, 400)
    assert measured.cells()[common.HEADINGS.index("share of limit")] == "50 % of 400 GFLOP/s"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_of_a_matrix_product_counts_its_operations(monkeypatch, precision):
    monkeypatch.setitem(machine.SHAPES, "cpu", ((20, 30, 40),))
    monkeypatch.setattr(machine, "_shortest_seconds", lambda function, device: 1 if function().shape == (20, 40) else 0)
    assert matrix_gflops(precision) == pytest.approx(2e-9 * 20 * 30 * 40)


def test_products_of_the_attention_are_counted():
    q, k, v = torch.randn(3, 2, 4, 8, 16).unbind()  # [B, heads, tokens, dimensions]
    weight = torch.randn(10, 16)
    with torch.inference_mode():
        gflop = count_gflop(lambda: F.scaled_dot_product_attention(q, k, v) @ weight.T)
    assert gflop == pytest.approx(1e-9 * 2 * 4 * (2 * 2 * 8 * 8 * 16 + 2 * 8 * 16 * 10))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux states it")
def test_an_index_is_measured_over_time(tmp_path):
    command = [sys.executable, "-m", "benchmarks.bench_index", "--images=2000", f"--json={tmp_path / 'index.json'}"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert result.returncode == 0, result.stderr
    rows = {row["stage"]: row for row in json.loads((tmp_path / "index.json").read_text())["rows"]}
    assert {APPENDING, "merging both", "compacting", "opening, verifying all"} <= rows.keys()
    assert all(row["s"] > 0 and row["images"] > 0 for row in rows.values())
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
