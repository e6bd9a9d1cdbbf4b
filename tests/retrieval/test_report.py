"""What an evaluation writes beside its recalls: precision over the match distance, report.html, comparisons."""

import base64
import csv
import hashlib
import html
import io
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
from helpers.reports import STAGES, copy_with_hostile_names, make_outcome, make_results, read_tiny
from PIL import Image
from sklearn.metrics import auc, precision_recall_curve

from datasets.file_names import utm_position
from model import InputError
from utils.cli.evaluation import FloatEvaluation
from utils.retrieval import report as report_package
from utils.retrieval.config import ReportConfig
from utils.retrieval.metrics import precision_recall
from utils.retrieval.report import report
from utils.retrieval.report.__main__ import main
from utils.retrieval.report.charts import Axis, MapFrame, line_chart, success_map
from utils.retrieval.report.comparison import compare, comparison_page
from utils.retrieval.report.evaluation_page import choose_queries
from utils.retrieval.report.saved_run import read_run
from utils.retrieval.report.thumbnails import thumbnails
from utils.runtime.parser import parse
from utils.runtime.run_dir import RunDir


def random_matches(seed):
    """Distances, with ties, and whether they are correct: more often if near."""
    random = np.random.default_rng(seed)
    distances = random.integers(0, 30, 200).astype(float)
    return distances, random.uniform(0, 30, 200) > distances


@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_are_those_counted_at_each_threshold(seed):
    distances, correct = random_matches(seed)
    curve = precision_recall(distances, correct)
    assert curve.distance.tolist() == sorted(set(distances))
    for i, threshold in enumerate(curve.distance):
        accepted = [bool(c) for d, c in zip(distances, correct, strict=True) if d <= threshold]
        assert curve.precision[i] == pytest.approx(sum(accepted) / len(accepted))
        assert curve.recall[i] == pytest.approx(sum(accepted) / sum(correct))
        assert curve.accepted[i] == pytest.approx(len(accepted) / 200)


@pytest.mark.parametrize("seed", range(4))
def test_curve_and_area_are_those_of_scikit_learn(seed):
    distances, correct = random_matches(seed)
    curve = precision_recall(distances, correct)
    precision, recall, thresholds = precision_recall_curve(correct, -distances)
    assert curve.auc == pytest.approx(auc(recall, precision))
    by_threshold = dict(zip(-thresholds, zip(precision, recall, strict=False), strict=False))
    for threshold, *expected in zip(curve.distance, curve.precision, curve.recall, strict=True):
        if threshold in by_threshold:  # older versions leave out those beyond full recall
            assert by_threshold[threshold] == pytest.approx(tuple(expected))


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95, 0.99])
def test_the_threshold_is_the_largest_distance_that_keeps_the_precision(precision):
    for seed in range(6):
        distances, correct = random_matches(seed)
        good = [t for t in distances if correct[distances <= t].mean() >= precision]
        point = precision_recall(distances, correct).at_precision(precision)
        assert (point["distance"] == max(good)) if good else point is None


def test_without_a_correct_match_there_is_no_area_and_no_threshold():
    curve = precision_recall(np.array([0.1, 0.2]), np.array([False, False]))
    assert curve.auc is None and curve.at_precision(0.95) is None


@pytest.mark.parametrize(
    ("failures", "successes", "count", "expected"),
    [(3, 5, 10, (3, 5)), (3, 50, 10, (3, 7)), (50, 50, 10, (8, 2)), (50, 1, 10, (9, 1)), (50, 0, 10, (10, 0))],
)
def test_failures_come_first_and_leave_a_share_to_successes(failures, successes, count, expected):
    correct = np.random.default_rng(0).permutation(np.arange(failures + successes) < successes)
    chosen = choose_queries(correct, count)
    assert tuple(map(len, chosen)) == expected
    assert not correct[chosen[0]].any() and correct[chosen[1]].all()
    assert all(len(set(part)) == len(part) and list(part) == sorted(part) for part in chosen)


def test_the_map_has_one_scale_and_north_is_up():
    utms = np.array([[500.0, 100.0], [900.0, 100.0], [500.0, 300.0]])
    frame = MapFrame(utms)
    origin, east, north = frame(utms)
    assert east[0] > origin[0] and east[1] == pytest.approx(origin[1])
    assert north[1] < origin[1] and north[0] == pytest.approx(origin[0])
    assert math.dist(east, origin) == pytest.approx(2 * math.dist(north, origin))
    length, text = frame.scale_bar()
    assert text == "100 m" and length == pytest.approx(math.dist(east, origin) / 4)


def test_the_map_marks_each_query_and_a_large_database_stays_small():
    random = np.random.default_rng(0)
    database, queries, correct = (
        random.uniform(0, 999, (200_000, 2)),
        random.uniform(0, 999, (50, 2)),
        np.arange(50) < 9,
    )
    picture = success_map("map", MapFrame(database), database, queries=queries, correct=correct)
    paths = dict(re.findall(r'class="(right|wrong)" d="([^"]*)"', picture))
    assert paths["right"].count("M") == 9 and paths["wrong"].count("M") == 41
    assert len(picture) < 1_000_000


def test_a_chart_escapes_its_texts():
    axis = Axis("<x>", [(0.5, "<t>")])
    lines = {"<a>": (np.array([0, 1]), np.array([0, 1])), "b": (np.array([0.5]), np.array([0.5]))}
    chart = line_chart("<n>", lines, x=axis, y=axis)
    assert not re.search(r"<[xtan]>", chart) and chart.count("&lt;") == 6


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return RunDir("eval", {"resize": [56, 56], "exif_orientation": False})


def write_report(run, benchmark, **config):
    options = {"page_queries": 100, "recall_values": (1, 5), **config}
    results = make_results(benchmark if benchmark.config.labels else read_tiny(benchmark.config.datasets_folder))
    return report(run, benchmark, results, descriptor_dim=512, config=ReportConfig(**options))


def read_page(run):
    """The page's text and its data."""
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    return page, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_shows_each_query_as_predictions_csv_does(run, tiny_benchmark):
    benchmark = read_tiny(tiny_benchmark)
    write_report(run, benchmark)
    page, data = read_page(run)
    with open(run.folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["rank"]) <= 5]
    assert len(data["queries"]) == 10 and len(rows) == 50
    shown = {data["images"][query["image"]]["name"]: query for query in data["queries"]}
    for i, row in enumerate(rows):
        cell = shown[row["query"]]["rows"][1][i % 5]
        assert data["images"][cell["image"]]["name"] == row["database_photo"]
        assert cell["captions"][0] == f"{float(row['distance']):.4g}" and cell["correct"] == (row["correct"] == "1")
        metres = math.dist(utm_position(row["query"]), utm_position(row["database_photo"]))
        assert float(cell["captions"][1].removesuffix(" m").replace(",", "")) == pytest.approx(metres, abs=0.51)
    outcomes = [("wrong" in query["tags"], "right" in query["tags"]) for query in data["queries"]]
    assert outcomes == sorted(outcomes, reverse=True) and set(outcomes) == {(True, False), (False, True)}
    without = [query for query in data["queries"] if "none" in query["tags"]]
    assert len(without) == 2 and all(query["positive"]["image"] is None for query in without)
    results = json.loads((run.folder / "results.json").read_text())
    for n, value in results["recalls"].items():
        assert f"<strong>{value:.1f}</strong>R@{n}" in page
    for name in STAGES:
        assert f"{html.escape(name)}</th>" in page


def test_corrected_and_spoilt_queries_are_those_whose_first_prediction_changes(run, tiny_benchmark):
    outcome = make_outcome(tiny_benchmark)
    write_report(run, read_tiny(tiny_benchmark))
    before, after = (outcome.correct[name][:, 0] for name in STAGES)
    _, data = read_page(run)
    for query in data["queries"]:
        i = query["number"]
        assert ("corrected" in query["tags"]) == (after[i] and not before[i])
        assert ("spoilt" in query["tags"]) == (before[i] and not after[i])


def test_the_nearest_positive_is_the_nearest_on_the_ground(tiny_benchmark):
    outcome = make_outcome(tiny_benchmark)
    benchmark = outcome.benchmark
    for query, path in enumerate(benchmark.queries.paths):
        metres = [math.dist(utm_position(path), utm_position(other)) for other in benchmark.database.paths]
        nearest = outcome.nearest_positive(query)
        if min(metres) > 25:
            assert nearest is None
            continue
        assert (nearest.image, nearest.metres) == (metres.index(min(metres)), pytest.approx(min(metres)))
        ranks = outcome.last.indices[query].tolist()
        assert nearest.rank == (ranks.index(nearest.image) + 1 if nearest.image in ranks else None)


def test_results_hold_the_thresholds_of_the_last_stage(run, tiny_benchmark):
    benchmark = read_tiny(tiny_benchmark)
    results = write_report(run, benchmark)
    outcome = make_outcome(tiny_benchmark)
    curve = precision_recall(outcome.last.distances[:, 0], outcome.last_correct[:, 0])
    first_match = results["first_match"]
    assert (first_match["metric"], first_match["auc"]) == ("l2", curve.auc)
    assert first_match["at_precision"] == {"95": curve.at_precision(0.95), "99": curve.at_precision(0.99)}
    assert results["folder"] == str(benchmark.folder)


def test_the_page_loads_nothing_and_runs_its_own_script_only(run, tiny_benchmark):
    write_report(run, read_tiny(tiny_benchmark))
    page, _ = read_page(run)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "img-src data:" in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (code,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    for address in re.findall(r"[a-z]+://[^\"' ]+", page):
        assert address == "http://www.w3.org/2000/svg"  # the name of a format, which nothing loads
    assert re.findall(r'(?:src|href)="([^#d][^"]*)"', page) == [] and " style=" not in page


@pytest.mark.slow  # such names do not exist on Windows
def test_file_names_are_never_markup(run, tiny_benchmark, tmp_path):
    datasets = copy_with_hostile_names(tiny_benchmark, tmp_path / "hostile <b>")
    write_report(run, read_tiny(datasets))
    page, data = read_page(run)
    names = [image["name"] for image in data["images"] if "owned" in image["name"]]
    assert names and all(r"\x1b[31m&amp;\u202e{{data}}" in name for name in names)
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "<!--" not in page
    assert "<b>" not in page and "\x1b" not in page and "\u202e" not in page
    assert len(data["queries"]) == 10  # {{data}} in a name was not replaced again


def test_an_unreadable_image_is_a_placeholder(run, tiny_benchmark, tmp_path):
    shutil.copytree(tiny_benchmark, tmp_path / "copy")
    benchmark = read_tiny(tmp_path / "copy")
    (tmp_path / "gone.jpg").write_bytes(b"")
    for path in (benchmark.queries.paths[0], benchmark.database.paths[0]):
        shutil.move(path, tmp_path / "gone.jpg")
    write_report(run, benchmark, num_pictures=3)
    _, data = read_page(run)
    problems = [image["problem"] for image in data["images"] if "src" not in image]
    assert len(problems) == 2 and all("no such file" in problem for problem in problems)
    assert len(list((run.folder / "preds").glob("*.jpg"))) == 10
    assert "no such file" in (run.folder / "log.txt").read_text()


def test_thumbnails_are_small_and_each_image_is_there_once(run, tiny_benchmark):
    write_report(run, read_tiny(tiny_benchmark))
    _, data = read_page(run)
    names = [image["name"] for image in data["images"]]
    assert len(set(names)) == len(names)
    for image in data["images"]:
        with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as picture:
            assert picture.format == "JPEG" and max(picture.width, picture.height * 4 / 3) <= 160


@pytest.mark.parametrize(("turn", "size"), [(False, (160, 80)), (True, (60, 120))])
def test_thumbnails_are_turned_as_the_evaluation_turns_images(tmp_path, turn, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (600, 300)).save(tmp_path / "phone.jpg", exif=exif, comment=b"x" * 60_000)
    (thumbnail,) = thumbnails([tmp_path / "phone.jpg"], exif_orientation=turn)
    content = base64.b64decode(thumbnail["src"].split(",")[1])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == size
    assert len(content) < 2000  # without the comment


def test_at_most_so_many_queries_have_pictures(run, tiny_benchmark):
    write_report(run, read_tiny(tiny_benchmark), page_queries=4)
    page, data = read_page(run)
    assert len(data["queries"]) == 4 and "3 of 5 failures and 1 of 5 successes" in page


def test_without_labels_the_page_shows_predictions_only(run, tiny_benchmark):
    write_report(run, read_tiny(tiny_benchmark, labels=False), num_pictures=2)
    page, data = read_page(run)
    assert "no recalls" in page and "R@" not in page and 'id="map"' not in page
    assert len(data["queries"]) == 10 and not data["filters"]
    assert {cell["correct"] for query in data["queries"] for row in query["rows"] for cell in row} == {None}
    assert "Positives" not in (run.folder / "preds" / "000.txt").read_text()


def test_the_page_is_written_last_and_only_if_wanted(run, tiny_benchmark, monkeypatch):
    benchmark = read_tiny(tiny_benchmark)
    write_report(run, benchmark, page_queries=None)
    assert not (run.folder / "report.html").exists()
    for name in ("results.json", "predictions.csv"):
        (run.folder / name).unlink()

    def fail(*_, **__):
        raise InputError("Cannot write report.html.")

    monkeypatch.setattr(report_package, "evaluation_page", fail)
    with pytest.raises(InputError):
        write_report(run, benchmark, num_pictures=1)
    assert {"results.json", "predictions.csv", "preds"} <= {path.name for path in run.folder.iterdir()}


def parsed(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["eval.py", "--datasets_folder=d", "--resume=m", "--device=cpu", *map(str, flags)])
    return parse(FloatEvaluation, "").report


def test_flags_become_settings(monkeypatch):
    assert parsed(monkeypatch) == ReportConfig(page_queries=100)
    assert parsed(monkeypatch, "--no_report") == ReportConfig(no_page=True)
    expected = ReportConfig(num_pictures=7, only_wrong=True, page_queries=3, exif_orientation=True)
    flags = ["--num_preds_to_save=7", "--save_only_wrong_preds", "--report_queries=3", "--exif_orientation"]
    assert parsed(monkeypatch, *flags) == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save_only_wrong_preds"], "--num_preds_to_save"),
        (["--save_only_wrong_preds", "--num_preds_to_save=1", "--no_labels"], "--no_labels"),
        (["--num_preds_to_save=11", "--recall_values", 1, 10], "each query has 10 predictions"),
        (["--no_report", "--report_queries=3"], "--no_report"),
    ],
)
def test_flags_without_effect_are_refused(monkeypatch, capsys, flags, words):
    with pytest.raises(SystemExit) as caught:
        parsed(monkeypatch, *flags)
    assert caught.value.code == 2 and words in capsys.readouterr().err


@pytest.fixture
def two_runs(tiny_benchmark, tmp_path, monkeypatch):
    """Folders of evaluations of the tiny benchmark: one of the first stage, and one of both."""
    monkeypatch.chdir(tmp_path)
    benchmark, folders = read_tiny(tiny_benchmark), []
    results = make_results(benchmark)
    for i, stages in enumerate(({STAGES[0]: results[STAGES[0]]}, results)):
        run = RunDir(f"run{i}", {"rerank_num": 100 * i, "seed": 0})
        report(run, benchmark, stages, descriptor_dim=512, config=ReportConfig(recall_values=(1, 5)))
        folders.append(run.folder)
    return folders


def test_wins_are_queries_that_one_finds_first_and_the_other_does_not(two_runs):
    firsts = []
    for folder in two_runs:
        with open(folder / "predictions.csv", newline="") as file:
            firsts.append({row["query"]: row["correct"] == "1" for row in csv.DictReader(file) if row["rank"] == "1"})
    lost = sum(a and not b for a, b in zip(*(first.values() for first in firsts), strict=True))
    won = sum(b and not a for a, b in zip(*(first.values() for first in firsts), strict=True))
    comparison = compare([read_run(folder) for folder in two_runs])
    assert [row[1:] for row in comparison.win_table()[1]] == [["0", str(lost)], [str(won), "0"]] and won > 0
    for folder, row in zip(two_runs, comparison.recall_table()[1], strict=True):
        recalls = json.loads((folder / "results.json").read_text())["recalls"]
        assert row == [str(folder), *(f"{value:.1f}" for value in recalls.values())]
    page = comparison_page(comparison, num_queries=100)
    expected = {(1, 1): "all", (0, 0): "none", (1, 0): "only 0", (0, 1): "only 1"}
    data = page.gallery.data(exif_orientation=False)
    assert len(data["queries"]) == 10
    for query in data["queries"]:
        name = data["images"][query["image"]]["name"]
        assert query["tags"] == [expected[firsts[0][name], firsts[1][name]]]
        assert [row[0]["correct"] for row in query["rows"]] == [firsts[0][name], firsts[1][name]]
    assert "rerank_num" in page.after[0].content and "seed" not in page.after[0].content


def test_the_command_prints_tables_and_writes_a_page(two_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, two_runs), "--output=both.html"])
    main()
    printed = capsys.readouterr().out
    assert "10 queries that all runs have" in printed and "| run | R@1 | R@5 |" in printed
    assert '"src":"data:image/jpeg' in (tmp_path / "both.html").read_text()


def test_a_single_run_is_shown_alone(two_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(two_runs[0])])
    main()
    assert "right where another is wrong" not in capsys.readouterr().out
    assert "Settings that differ" not in (tmp_path / "comparison.html").read_text()


def test_three_runs_are_told_apart(two_runs):
    first, second = map(read_run, two_runs)
    page = comparison_page(compare([first, second, second]), num_queries=4)
    tags = [query["tags"] for query in page.gallery.queries]
    assert len(tags) == 4 and all(tag in (["only 0"], ["except 0"]) for tag in tags)


def break_predictions(folder, old, new, count=-1):
    path = folder / "predictions.csv"
    path.write_text(path.read_text().replace(old, new, count))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "predictions.csv").unlink(), "No predictions in .*Expected logs/<save_dir>/<time>"),
        (
            lambda f: shutil.move(f / "predictions.csv", (f / "msls").mkdir() or f / "msls"),
            "Choose one of its folders: msls",
        ),
        (lambda f: break_predictions(f, "correct", "right"), "lacks the columns correct"),
        (lambda f: break_predictions(f, ",0,hamming", ",,hamming"), "no labels"),
        (
            lambda f: break_predictions(f, ",0,hamming", ",2,hamming", 1),
            "line [0-9]+: expected the predictions of a query",
        ),
        (
            lambda f: break_predictions(f, ",hamming\n", ",hamming\nqueries/x,1,y,0.5,1,l2\n", 1),
            "same number of rows",
        ),
        (lambda f: (f / "results.json").unlink(), "Cannot read .*results.json"),
        (lambda f: (f / "results.json").write_text("{"), "Cannot read .*results.json"),
        (lambda f: break_predictions(f, "queries/", "others/"), "No query is in all of"),
    ],
)
def test_runs_that_cannot_be_compared(two_runs, damage, words):
    damage(two_runs[0])
    with pytest.raises(InputError, match=words):
        compare([read_run(folder) for folder in two_runs])
