"""The three evaluation scripts on a tiny benchmark: what they print and write, their flags, bad input."""

import importlib.metadata
import math
import re
import shutil

import faiss
import pytest
import torch
from helpers.evaluations import SCRIPTS, Outcome, expect_refusal, flags_for, run_mode
from helpers.processes import ROOT, run_here, run_python, run_script, start_script

from utils.cli.export import COMMANDS
from utils.runtime.devices import warn_if_slow
from utils.runtime.run_dir import library_versions

pytestmark = pytest.mark.slow

VALUES = [1, 5, 10, 100]  # the default, more than the 16 database photos


@pytest.fixture(scope="module")
def outcomes(tiny_benchmark, checkpoints, tmp_path_factory):
    """One run of each script with the default values; two-branch re-ranks 4."""
    more = {"two_branch": ["--rerank_num=4"]}
    return {
        mode: run_mode(mode, tiny_benchmark, checkpoints, tmp_path_factory.mktemp(mode), *more.get(mode, []))
        for mode in SCRIPTS
    }


def is_correct(row):
    """Whether query and photo of a row are at most 25 m apart, from their names."""
    (x1, y1), (x2, y2) = ([float(text) for text in row[name].split("@")[1:3]] for name in ("query", "database_photo"))
    return math.hypot(x1 - x2, y1 - y2) <= 25


def recalls_of(rows, values, queries=10):
    """Recall@N in percent, counted from the rows of predictions.csv."""
    found = {n: {row["query"] for row in rows if is_correct(row) and int(row["rank"]) <= n} for n in values}
    return {str(n): 100 * len(found[n]) / queries for n in values}


def line_of(recalls):
    """The line that a script prints for these recalls."""
    return ", ".join(f"R@{n}: {value:.1f}" for n, value in recalls.items())


@pytest.mark.parametrize("mode", SCRIPTS)
def test_last_line_results_and_predictions_agree(outcomes, mode):
    outcome = outcomes[mode]
    results = outcome.results
    assert results["recalls"] == pytest.approx(recalls_of(outcome.rows, VALUES))
    assert list(results["recalls"]) == [str(n) for n in VALUES]
    assert outcome.lines[-1] == line_of(results["recalls"])
    assert results["recalls"]["100"] == 80  # two of the ten queries have no positive
    assert (results["database"], results["queries"], results["queries_without_positives"]) == (16, 10, 2)
    assert results["descriptor_dim"] == 512
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    assert set(results["seconds"]) == {"extraction", "search"} | ({"rerank"} if mode == "two_branch" else set())
    assert results["arguments"]["resize"] == [56, 56] and results["arguments"]["backbone"] == "vit-tiny"
    assert results["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert any("2 of" in line and "positive" in line for line in outcome.lines)
    assert outcome.lines[-1] in outcome.log


@pytest.mark.parametrize("mode", SCRIPTS)
def test_predictions(outcomes, mode, tiny_benchmark):
    rows = outcomes[mode].rows
    split = tiny_benchmark / "tiny" / "images" / "test"
    queries = sorted(f"queries/{path.name}" for path in (split / "queries").iterdir())
    database = sorted(f"database/{path.name}" for path in (split / "database").iterdir())
    assert [row["query"] for row in rows] == [query for query in queries for _ in range(16)]
    for i in range(0, len(rows), 16):
        ranked = rows[i : i + 16]
        assert [int(row["rank"]) for row in ranked] == list(range(1, 17))
        assert sorted(row["database_photo"] for row in ranked) == database
        assert [row["correct"] for row in ranked] == [str(int(is_correct(row))) for row in ranked]
        stages = [4, 12] if mode == "two_branch" else [16]
        for start, length in zip((0, 4), stages, strict=False):
            distances = [float(row["distance"]) for row in ranked[start : start + length]]
            assert distances == sorted(distances) and len(set(distances)) > 1
        if mode != "float":  # Hamming distances are whole numbers, those of unit vectors at most 2
            assert all(float(row["distance"]).is_integer() for row in (ranked[4:] if mode == "two_branch" else ranked))
        if mode != "hashing":
            assert all(0 <= float(row["distance"]) <= 2 for row in (ranked[:4] if mode == "two_branch" else ranked))


def test_the_first_stage_is_the_hashing_models_result(outcomes):
    """With the same parameters, the codes are the hashing model's, and the re-ranked photos the float model's."""
    two_branch, hashing, single = (outcomes[mode] for mode in ("two_branch", "hashing", "float"))
    first_stage = two_branch.results["first_stage_recalls"]
    assert first_stage == hashing.results["recalls"]
    assert two_branch.lines[-2].endswith(line_of(first_stage)) and two_branch.lines[-2] != two_branch.lines[-1]
    assert hashing.results["first_stage_recalls"] is None and single.results["first_stage_recalls"] is None
    lengths = {(row["query"], row["database_photo"]): float(row["distance"]) for row in single.rows}
    for i in range(0, 160, 16):
        found, ranked = (
            [row["database_photo"] for row in outcome.rows[i : i + 16]] for outcome in (hashing, two_branch)
        )
        assert ranked[4:] == found[4:] and set(ranked[:4]) == set(found[:4])
        assert [row["distance"] for row in two_branch.rows[i + 4 : i + 16]] == [
            row["distance"] for row in hashing.rows[i + 4 : i + 16]
        ]
        for row in two_branch.rows[i : i + 4]:
            assert float(row["distance"]) == pytest.approx(lengths[row["query"], row["database_photo"]], abs=1e-4)
    assert [row["database_photo"] for row in two_branch.rows] != [row["database_photo"] for row in hashing.rows]


def test_recall_values_in_any_order(outcomes, tiny_benchmark, checkpoints, tmp_path):
    outcome = run_mode("float", tiny_benchmark, checkpoints, tmp_path, "--recall_values", 3, 1, 2)
    assert outcome.results["recalls"] == pytest.approx(recalls_of(outcomes["float"].rows, [1, 2, 3]))
    assert {row["rank"] for row in outcome.rows} == {"1", "2", "3"}
    assert outcome.lines[-1] == line_of(recalls_of(outcomes["float"].rows, [1, 2, 3]))


def test_rerank_num_larger_than_the_database_gives_the_float_models_order(
    outcomes, tiny_benchmark, checkpoints, tmp_path
):
    outcome = run_mode("two_branch", tiny_benchmark, checkpoints, tmp_path, "--rerank_num=1000", "--recall_values", 5)
    first_5 = [row for row in outcomes["float"].rows if int(row["rank"]) <= 5]
    assert [row["database_photo"] for row in outcome.rows] == [row["database_photo"] for row in first_5]


def test_threshold_folder_from_the_environment_and_save_dir(outcomes, tiny_benchmark, checkpoints, tmp_path):
    flags = flags_for("", checkpoints["float"], "--val_positive_dist_threshold=5", "--save_dir=my/runs")[1:]
    outcome = Outcome(
        run_script("eval.py", *flags, cwd=tmp_path, env={"DATASETS_FOLDER": str(tiny_benchmark)}), tmp_path, "my/runs"
    )
    assert outcome.results["queries_without_positives"] == 10
    assert outcome.lines[-1] == "R@1: 0.0, R@5: 0.0, R@10: 0.0, R@100: 0.0"
    assert [row["distance"] for row in outcome.rows] == [row["distance"] for row in outcomes["float"].rows]


def test_workers_and_batch_size_change_nothing(outcomes, tiny_benchmark, checkpoints, tmp_path):
    expected = outcomes["float"].rows
    assert run_mode("float", tiny_benchmark, checkpoints, tmp_path / "workers", "--num_workers=2").rows == expected
    rows = run_mode("float", tiny_benchmark, checkpoints, tmp_path / "batch", "--infer_batch_size=5").rows
    assert [row["database_photo"] for row in rows] == [row["database_photo"] for row in expected]
    assert [float(row["distance"]) for row in rows] == pytest.approx(
        [float(row["distance"]) for row in expected], abs=1e-4
    )


@pytest.mark.parametrize("more", [["--no_antialias"], ["--precision=bf16"], ["--resize", 70, 98]])
def test_flags_that_change_the_descriptors(outcomes, tiny_benchmark, checkpoints, tmp_path, more):
    outcome = run_mode("float", tiny_benchmark, checkpoints, tmp_path, *more)
    assert re.fullmatch(r"R@1: \d+\.\d, R@5: \d+\.\d, R@10: \d+\.\d, R@100: 80\.0", outcome.lines[-1])
    changes = [
        abs(float(new["distance"]) - float(old["distance"]))
        for new, old in zip(outcome.rows, outcomes["float"].rows, strict=True)
    ]
    assert 1e-5 < max(changes) < 0.7


@pytest.mark.parametrize("capability", [{}, {"avx512_bf16": False}, {"avx512_bf16": True}, {"bf16": True}])
def test_bf16_on_a_cpu_without_instructions_for_it_warns(capability, monkeypatch, caplog):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capability, raising=False)
    for precision in ("fp32", "bf16", "fp16"):
        caplog.clear()
        warn_if_slow("cuda", precision)
        assert not caplog.records
        warn_if_slow("cpu", precision)
        assert len(caplog.records) == (precision == "fp16" or (precision == "bf16" and True not in capability.values()))


def test_a_script_started_the_way_a_user_does(outcomes, tiny_benchmark, checkpoints, tmp_path):
    """A new interpreter and no PYTHONPATH; the other tests fork one that has the libraries loaded."""
    code = "import subprocess\nsys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
    flags = flags_for(tiny_benchmark, checkpoints["float"])
    outcome = Outcome(run_python(code, ROOT / "eval.py", *flags, cwd=tmp_path, env={"PYTHONPATH": ""}), tmp_path)
    assert outcome.rows == outcomes["float"].rows


@pytest.mark.parametrize("mode", SCRIPTS)
def test_the_page_is_about_the_run(outcomes, mode):
    page = (outcomes[mode].folder / "report.html").read_text()
    for n, value in outcomes[mode].results["recalls"].items():
        assert f"<strong>{value:.1f}</strong>R@{n}" in page
    assert "vit-tiny" in page and torch.__version__ in page and page.count('"src":"data:image/jpeg') == 26


def test_pictures_instead_of_a_page(outcomes, tiny_benchmark, checkpoints, tmp_path):
    more = ["--rerank_num=4", "--num_preds_to_save=2", "--save_only_wrong_preds", "--no_report"]
    result = run_script("eval_rerank.py", *flags_for(tiny_benchmark, checkpoints["two_branch"], *more), cwd=tmp_path)
    assert result.status == 0, result.stderr
    (folder,) = (tmp_path / "logs/eval").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.json",
        "log.txt",
        "predictions.csv",
        "preds",
        "results.json",
    ]
    firsts = [row["correct"] for row in outcomes["two_branch"].rows if row["rank"] == "1"]
    wrong = [f"{i:03d}" for i, correct in enumerate(firsts) if correct == "0"]
    assert sorted(path.stem for path in (folder / "preds").glob("*.jpg")) == wrong
    assert sorted(path.stem for path in (folder / "preds").glob("*.txt")) == wrong


@pytest.fixture
def refuse(tiny_benchmark, checkpoints, tmp_path):
    """refuse(script, flags, words): expects a refusal with these words of flags added to a good command line."""

    def run(script, flags, words, datasets=tiny_benchmark, checkpoint=None):
        cwd = tmp_path / "run"
        cwd.mkdir()
        mode = next(mode for mode in SCRIPTS if SCRIPTS[mode] == script)
        command = flags_for(datasets, checkpoint or checkpoints[mode], *flags)
        expect_refusal(run_here(script, *command, cwd=cwd), cwd, *words)
        return cwd

    return run


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("eval.py", ["--datasets_folder=/nowhere"], ["/nowhere"]),
        ("eval_hashing.py", ["--dataset_name=pitts30k"], ["pitts30k", "tiny"]),
        ("eval_rerank.py", ["--split=val"], ["/val", "test"]),
    ],
)
def test_folder_or_split_missing(refuse, script, flags, words):
    cwd = refuse(script, flags, ["No folder", *words])
    assert list(cwd.iterdir()) == []


def test_no_datasets_folder_at_all(checkpoints, tmp_path):
    result = run_here("eval.py", *flags_for("", checkpoints["float"])[1:], cwd=tmp_path)
    expect_refusal(result, tmp_path, "--datasets_folder", "DATASETS_FOLDER")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image(tiny_benchmark, checkpoints, tmp_path, workers):
    shutil.copytree(tiny_benchmark, tmp_path / "copied")
    path = sorted((tmp_path / "copied/tiny/images/test/database").iterdir())[7]
    path.write_bytes(path.read_bytes()[:800])
    cwd = tmp_path / "run"
    cwd.mkdir()
    flags = flags_for(tmp_path / "copied", checkpoints["float"], f"--num_workers={workers}")
    expect_refusal(run_script("eval.py", *flags, cwd=cwd), cwd, "Cannot read the image", path)


def test_checkpoint_missing(refuse, tmp_path):
    refuse("eval.py", [], ["does not exist", tmp_path / "none.pth"], checkpoint=tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("script", "of", "words"),
    [
        ("eval.py", "salad", ["aggregation.dust_bin", "--aggregation=salad"]),
        ("eval_rerank.py", "hashing", ["backbone.adapters.0", "--hashing", "eval_hashing.py"]),
    ],
)
def test_checkpoint_for_another_model(refuse, checkpoints, script, of, words):
    refuse(script, ["--aggregation=gem"], [checkpoints[of], *words], checkpoint=checkpoints[of])


def test_the_size_of_images_is_checked_for_the_model_of_the_checkpoint(refuse, checkpoints):
    refuse("eval.py", [], ["SALAD", "4 x 4 = 16"], checkpoint=checkpoints["salad"])


def test_no_published_weights(checkpoints, tiny_benchmark, tmp_path):
    flags = [flag for flag in flags_for(tiny_benchmark, "none") if flag != "--resume=none"]
    result = run_here("eval.py", *flags, "--pretrained", cwd=tmp_path)
    expect_refusal(result, tmp_path, "vit-tiny", "dinov2-base gem float")


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("eval.py", ["--resize", 100, 322], ["100", "322", "14"]),
        ("eval_rerank.py", ["--resize", 322, 7], ["322", "7", "14"]),
        ("eval_hashing.py", ["--resize", 0, 322], ["0", "--resize"]),
        ("eval.py", ["--recall_values", 1, 0], ["--recall_values", "'0'"]),
        ("eval_rerank.py", ["--rerank_num=0"], ["--rerank_num", "'0'"]),
        ("eval.py", ["--precision=fp8"], ["--precision", "fp8", "bf16"]),
        ("eval.py", ["--backbone=resnet50"], ["--backbone", "resnet50", "dinov2-base"]),
        # Flags that a script would ignore, and branch flags that contradict it
        ("eval.py", ["--rerank_num=5"], ["--rerank_num"]),
        ("eval_hashing.py", ["--rerank_num=5"], ["--rerank_num"]),
        ("eval.py", ["--rerank"], ["--rerank", "use eval_rerank.py"]),
        ("eval.py", ["--hashing", "--rerank"], ["--hashing --rerank", "use eval_rerank.py"]),
        ("eval_hashing.py", ["--hashing", "--rerank"], ["--hashing --rerank", "use eval_rerank.py"]),
        ("eval_hashing.py", ["--aggregation=boq"], ["--aggregation", "boq", "gem"]),
    ],
)
def test_arguments(refuse, script, flags, words):
    cwd = refuse(script, flags, words)
    assert list(cwd.iterdir()) == []


def test_cuda_asked_for_and_absent(refuse, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refuse("eval.py", ["--device=cuda"], ["--device", "no device 'cuda'", "cpu"])


@pytest.mark.parametrize(
    ("mode", "flags", "words"),
    [
        ("float", [], ["predictions.csv"]),
        ("float", ["--memory_share=1e-12"], ["temporary file in logs", "--memory_share"]),
    ],
)
def test_disk_full(outcomes, tiny_benchmark, checkpoints, tmp_path, mode, flags, words):
    """As if the disk were full after 8 KiB: enough for the log, too little for descriptors and predictions.csv."""
    sizes = {path.name: path.stat().st_size for path in outcomes[mode].folder.iterdir()}
    assert sizes["log.txt"] < 8192 < sizes["predictions.csv"]
    command = flags_for(tiny_benchmark, checkpoints[mode], *flags)
    result = run_script(SCRIPTS[mode], *command, cwd=tmp_path, file_limit=8192)
    expect_refusal(result, tmp_path, *words)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["log.txt"]
    if not flags:  # the recalls are printed even so
        assert result.stdout.splitlines()[-1] == outcomes[mode].lines[-1]


def test_a_page_that_cannot_be_written_costs_nothing_else(tiny_benchmark, checkpoints, outcomes, tmp_path):
    sizes = {path.name: path.stat().st_size for path in outcomes["float"].folder.iterdir()}
    limit = 2 * sizes["predictions.csv"]
    assert limit < sizes["report.html"]
    result = run_script("eval.py", *flags_for(tiny_benchmark, checkpoints["float"]), cwd=tmp_path, file_limit=limit)
    assert result.status == 2 and "Cannot write" in result.stderr and "report.html" in result.stderr
    (folder,) = (tmp_path / "logs/eval").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.json",
        "log.txt",
        "predictions.csv",
        "results.json",
    ]
    assert result.stdout.splitlines()[-1] == outcomes["float"].lines[-1]


def test_descriptors_in_a_temporary_file_change_nothing(outcomes, tiny_benchmark, checkpoints, tmp_path):
    flags = ["--memory_share=1e-12", "--rerank_num=4"]
    assert run_mode("two_branch", tiny_benchmark, checkpoints, tmp_path, *flags).rows == outcomes["two_branch"].rows
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["eval"]


def test_faiss_need_not_come_from_the_package_faiss_cpu(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name.replace("faiss", "no such package")))
    assert library_versions()["faiss"] == faiss.__version__


SHOWS_THE_DEVICE = """
from utils.retrieval import search
search_hamming = search.search_hamming
def spy(*arguments, device="none"):
    print("device:", device)
    return search_hamming(*arguments, device=device)
search.search_hamming = spy
"""


def test_codes_are_searched_on_the_device_of_the_extraction(tiny_benchmark, checkpoints, tmp_path):
    flags = flags_for(tiny_benchmark, checkpoints["two_branch"])
    result = start_script("eval_rerank.py", *flags, cwd=tmp_path, prelude=SHOWS_THE_DEVICE).result()
    assert result.status == 0 and "device: cpu" in result.stdout.splitlines(), result


def test_help_and_unknown_flags_are_answered_at_once(tmp_path):
    """No script imports PyTorch, which takes seconds, or what it does not need, before it has parsed its flags."""
    scripts = sorted(str(path) for path in ROOT.glob("*.py") if path.name != "hubconf.py")
    commands = [[script] for script in scripts] + [[str(ROOT / "export.py"), name] for name in COMMANDS]
    slow = {"torch", "torchvision", "numpy", "faiss", "sklearn", "matplotlib", "onnx", "pymilvus", "safetensors"}
    code = f"""
import runpy
for command in {commands}:
    for flag in ("--help", "--no_such_flag"):
        sys.argv = [*command, flag]
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            print("ended:", end.code, "loaded:", *sorted({slow} & sys.modules.keys()))
"""
    result = run_python(code, cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert len(commands) >= 16 and result.stdout.count("usage: ") == len(commands)
    ends = [line for line in result.stdout.splitlines() if line.startswith("ended:")]
    assert ends == ["ended: 0 loaded:", "ended: 2 loaded:"] * len(commands)


def test_disk_full_from_the_start(tiny_benchmark, checkpoints, tmp_path):
    flags = flags_for(tiny_benchmark, checkpoints["float"])
    expect_refusal(run_script("eval.py", *flags, cwd=tmp_path, file_limit=500), tmp_path)


def test_logs_folder_that_cannot_be_made(tiny_benchmark, checkpoints, tmp_path):
    (tmp_path / "logs").write_text("a file\n")
    result = run_here("eval.py", *flags_for(tiny_benchmark, checkpoints["float"]), cwd=tmp_path)
    assert result.status == 2 and "logs" in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
