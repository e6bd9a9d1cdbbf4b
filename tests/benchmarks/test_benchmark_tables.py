"""The page of the benchmarks, the description of the machine, and the share of its limit."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from benchmarks import common, machine
from benchmarks.common import DEFAULT_FILE, RESULTS, Row, count_gflop, json_file, markdown_table, write_json
from benchmarks.machine import cpu_features, describe, kind, matrix_gflops
from benchmarks.readme import README, TEMPLATE, render
from model import InputError

EPYC = {"cpu": "AMD EPYC", "features": ["AVX512-BF16", "AVX2"], "gpu": None}
XEON = {"cpu": "Intel(R) Xeon(R) Processor", "features": ["AMX", "AVX512-BF16"], "gpu": None}
SETTINGS = {"cores": 2, "threads": 1, "versions": {"torch": "2.14"}}


def row(name: str, ours: float, note: str = "") -> dict:
    """A row as in a JSON file."""
    return asdict(Row(name=name, baseline=10, ours=ours, unit="ms", ratio=10 / ours, note=note))


@pytest.fixture
def results(tmp_path):
    """A folder of results: one benchmark on two machines."""
    for this, ours in ((EPYC, 5), (XEON, 2)):
        rows = [row("first", ours, f"differs: {ours}"), row("  second", 1, "the same")]
        write_json(tmp_path / kind(this) / "extract.json", "Extraction", {**this, **SETTINGS}, rows=rows)
    return tmp_path


# ---- The page


def test_the_page_is_what_the_command_writes_from_the_committed_measurements():
    assert README.read_text() == render(TEMPLATE.read_text()), "Run: python -m benchmarks.readme"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("**/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_measurements_lie_in_the_folder_of_their_kind_of_machine(path):
    assert path.parent.parent == RESULTS and path.parent.name == kind(json.loads(path.read_text())["machine"])


def test_rows_of_the_same_name_are_refused(tmp_path):
    rows = [row("attention", 1), row("attention", 2)]
    write_json(tmp_path / kind(EPYC) / "extract.json", "Extraction", {**EPYC, **SETTINGS}, rows=rows)
    with pytest.raises(InputError, match="Rows of the same name in the results for epyc-avx512bf16"):
        render("<!-- results: extract -->", tmp_path)


def test_lines_of_several_machines_are_adjacent(results):
    page = render("Text\n\n<!-- results: extract -->\n\nmore\n", results)
    lines = page.splitlines()
    names = [tuple(cell.strip() for cell in line.split("|")[1:5]) for line in lines if line.startswith("|")][2:]
    assert names == [
        ("first", "`epyc-avx512bf16`", "10 ms", "5 ms"),
        ("first", "`xeon-amx`", "10 ms", "2 ms"),
        ("&emsp;second", "`epyc-avx512bf16`", "10 ms", "1 ms"),
        ("&emsp;second", "`xeon-amx`", "10 ms", "1 ms"),
    ]
    assert "* *first* (`xeon-amx`): differs: 2" in lines and lines.count("* *second*: the same") == 1
    assert lines.count("**Extraction**") == 1 and lines[-1] == "more"


def test_other_settings_give_a_table_of_their_own_without_a_column_for_the_machine(results):
    write_json(results / "xeon-amx/extract.json", "Extraction at 224", {**XEON, **SETTINGS}, rows=[row("first", 3)])
    page = render("<!-- results: extract -->\n", results)
    assert page.index("**Extraction**") < page.index("**Extraction at 224**")
    assert "| first | 10 ms | 3 ms | 3.33 |" in page and "machine" not in page


def test_a_remark_and_the_limits_stand_beside_the_machine(results):
    path = results / "xeon-amx/extract.json"
    result = json.loads(path.read_text())
    result["machine"]["matrix_gflops"] = {"fp32": 424.2, "bf16": 2778.4}
    path.write_text(json.dumps({**result, "remark": "Other work was running."}))
    line = next(line for line in render("<!-- results: extract -->\n", results).splitlines() if "xeon" in line)
    assert line == (
        "* `xeon-amx`: Intel(R) Xeon(R) Processor, AMX; GFLOP/s of matrix products: 424 in fp32, 2,778 in bf16; "
        f"1 of 2 cores; PyTorch 2.14; {result['date'][:10]}. Other work was running."
    )


def test_measurements_that_are_neither_shown_nor_left_out_are_refused(results):
    with pytest.raises(InputError, match="extract"):
        render("No table\n", results)
    assert render("<!-- not shown: extract -->\n\nNo table\n", results).endswith("-->\n\nNo table\n")


def test_a_table_without_measurements_is_refused(results):
    with pytest.raises(InputError, match="train"):
        render("<!-- results: extract -->\n\n<!-- results: train -->\n", results)


def test_a_table_leaves_out_empty_columns_and_formats_numbers():
    rows = [{"a": "x", "b": None, "c": 1234.5}, {"a": "y", "b": None, "c": [64.0, 0.123456]}]
    assert markdown_table(rows) == "| a | c |\n| --- | --- |\n| x | 1,234 |\n| y | 64, 0.1235 |"


# ---- The machine


def test_the_features_come_from_pytorch(monkeypatch):
    capabilities = {"avx2": True, "amx_bf16": True, "avx512_f": False, "cpu_name": "avx512_bf16"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_features() == ["AMX", "AVX2"]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", ["AVX512-BF16", "AVX-512", "AVX2"]),
        ("Features\t: fp asimd bf16", ["ARM-BF16"]),
        ("flags\t\t: fpu sse2", []),
    ],
)
def test_the_features_come_from_the_system_where_pytorch_is_older(monkeypatch, tmp_path, line, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    machine.CPUINFO.write_text(f"processor\t: 0\nmodel name\t: Some CPU\n{line}\n")
    assert cpu_features() == expected
    assert machine.cpu_name() == "Some CPU"


@pytest.mark.parametrize(
    "this, expected",
    [
        (EPYC, "epyc-avx512bf16"),
        (XEON, "xeon-amx"),
        ({"cpu": "Intel(R) Xeon(R) Processor", "gpu": None}, "xeon"),
        ({"cpu": "Intel(R) Core(TM) i7-1185G7", "features": ["AVX-512"], "gpu": None}, "intel-core-i7-1185g7-avx512"),
        ({**XEON, "gpu": "NVIDIA H100 80GB HBM3"}, "nvidia-h100-80gb-hbm3"),
    ],
)
def test_a_kind_of_machine_is_named_after_cpu_and_instructions_or_gpu(this, expected):
    assert kind(this) == expected


def test_a_cpu_without_instructions_for_matrices_says_so():
    assert describe({**EPYC, "features": []}) == "AMD EPYC, neither AMX nor AVX-512"


def test_without_a_file_the_table_goes_to_the_folder_of_the_machine():
    assert json_file(DEFAULT_FILE, "input") == RESULTS / kind(machine.machine(measured=False)) / "input.json"
    assert json_file(None, "input") is None and json_file(README, "input") == README


# ---- The limit


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
