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
from helpers.reports import MODEL, STAGES, copy_with_hostile_names, make_outcome, make_results, read_tiny
from PIL import Image
from scipy import stats

from datasets.file_names import utm_position
from model import InputError
from model.calibration import Calibration, DistanceKind, Threshold, precision_recall
from utils.cli.evaluation import FloatEvaluation
from utils.retrieval import report as report_package
from utils.retrieval.config import ReportConfig
from utils.retrieval.features import SearchResult
from utils.retrieval.metrics import paired_difference, wilson_interval
from utils.retrieval.report import report
from utils.retrieval.report.__main__ import main
from utils.retrieval.report.charts import (
    MAP_HEIGHT,
    MAP_WIDTH,
    Axis,
    MapFrame,
    line_chart,
    mirrored_histogram,
    on_map,
    round_ticks,
    success_map,
)
from utils.retrieval.report.comparison import compare, comparison_page
from utils.retrieval.report.evaluation_page import choose_queries
from utils.retrieval.report.saved_run import read_run
from utils.retrieval.report.thumbnails import thumbnails
from utils.runtime.parser import parse
from utils.runtime.run_dir import RunDir

# ---- How sure recalls and differences are


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (0, 50), (3, 7), (364, 400), (50, 50), (27_000, 27_592)])
def test_the_interval_of_a_recall_is_that_of_scipy(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson_interval(100 * hits / total, total) == pytest.approx([100 * expected.low, 100 * expected.high])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 5), (3, 3), (9, 2), (4, 20), (700, 600), (9_000, 12_000)])
def test_the_p_value_is_that_of_scipy(wins, losses):
    first, second = np.repeat([[1, 0, 1, 0], [0, 1, 1, 0]], (wins, losses, 5, 4), axis=1).astype(bool)
    found = paired_difference(first, second)
    assert (found.only_first, found.only_second) == (wins, losses)
    assert found.difference == pytest.approx(100 * (first.mean() - second.mean()))
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1
    assert found.p_value == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_the_interval_of_a_difference_is_that_of_a_naive_bootstrap():
    random = np.random.default_rng(3)
    first, second = random.random(150) < 0.8, random.random(150) < 0.7
    differences = []
    for _ in range(4000):
        drawn = random.integers(0, 150, 150)
        differences.append(100 * (first[drawn].mean() - second[drawn].mean()))
    expected = np.percentile(differences, (2.5, 97.5))
    found = paired_difference(first, second)
    assert found.interval == pytest.approx(expected, abs=0.8) and found == paired_difference(first, second)
    low, high = found.interval
    mirrored = paired_difference(second, first, seed=1)
    assert mirrored.interval == pytest.approx((-high, -low), abs=0.8) and mirrored.p_value == found.p_value


# ---- The choice of queries, charts


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


@pytest.mark.parametrize("utms", [[[5, 5]], [[0, 0], [1000, 0]], [[0, 0], [0, 1000]], [[0, 0], [1e6, 1e6]]])
def test_every_position_has_room_on_the_map(utms):
    utms = np.array(utms, float)
    frame = MapFrame(utms)
    places = frame(utms)
    assert (places >= 0).all() and (places <= [MAP_WIDTH, frame.height]).all() and frame.height <= MAP_HEIGHT


def test_unknown_and_impossible_positions_are_not_on_the_map():
    utms = np.array([[5e5, 4e6], [np.nan, np.nan], [1e308, 0], [-np.inf, 0], [0, -1e8]])
    assert on_map(utms).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_round_and_enclose_the_values(seed):
    random = np.random.default_rng(seed)
    low, high = np.sort(random.uniform(-1, 1, 2) * 10 ** random.uniform(-3, 3))
    for values, least in (((low, high), 0), ((low, low), 0), ((round(low), round(high)), 1)):
        ticks = round_ticks(*values, 12, least=least)
        steps = np.diff(ticks)
        assert ticks[0] <= values[0] + 1e-9 * abs(values[0]) and ticks[-1] > values[1] and 1 <= len(steps) <= 12
        assert steps[0] >= least and f"{steps[0]:.0e}"[0] in "125" and np.allclose(steps, float(f"{steps[0]:.0e}"))


def test_right_and_wrong_bars_have_one_scale_and_their_counts():
    counts = np.array([6, 0, 3]), np.array([0, 2, 0])
    chart = mirrored_histogram("n", ("right", counts[0]), ("wrong", counts[1]), x=Axis("x", []))
    bars = re.findall(r'class="bar (\w+)" .*?height="([\d.]+)"/><text class="count".*?>(\d+)</text>', chart)
    assert [(kind, int(count)) for kind, _, count in bars] == [("correct", 6), ("correct", 3), ("wrong", 2)]
    assert len({round(float(height) / int(count), 0) for _, height, count in bars}) == 1


def test_the_map_marks_each_query_and_a_large_database_stays_small():
    random = np.random.default_rng(0)
    database, queries, correct = (
        random.uniform(0, 999, (200_000, 2)),
        random.uniform(0, 999, (50, 2)),
        np.arange(50) < 9,
    )
    picture = success_map("map", MapFrame(database), database, right=queries[correct], wrong=queries[~correct])
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
    return report(run, benchmark, results, model=MODEL, config=ReportConfig(**options))


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
        low, high = results["recall_intervals"][n]
        assert f'<strong>{value:.1f}</strong>R@{n} <span class="soft">{low:.1f} to {high:.1f}</span>' in page
    assert f"<p>vit-tiny, two-branch (m.pth), images of 56 x 70 pixels, {results['date']}</p>" in page
    assert "<p>10 queries, 16 database images; right within 25 m</p>" in page and "Protocol" not in page
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
    expected = {"95": curve.at_precision(0.95), "99": curve.at_precision(0.99), "100": curve.at_precision(1)}
    few = {"radius": None}  # of the ten queries, less than nine are accepted
    assert first_match["at_precision"] == {name: point and {**point, **few} for name, point in expected.items()}
    assert first_match["recall_at_100_precision"] == (expected["100"] or {"recall": 0})["recall"]
    assert results["folder"] == str(benchmark.folder)


@pytest.mark.parametrize("name", ["calibration.json", "results.json"])
def test_either_file_holds_the_thresholds_for_distances_of_the_same_kind(run, tiny_benchmark, name):
    results = write_report(run, read_tiny(tiny_benchmark))
    kind = DistanceKind(**{field: {**MODEL, "metric": "l2"}[field] for field in DistanceKind._fields})
    points = results["first_match"]["at_precision"]
    thresholds = {
        name: point and Threshold(point["distance"], None, round(10 * point["accepted"]))
        for name, point in points.items()
    }
    path = str(run.folder / name)
    assert Calibration.read(path, kind) == Calibration(path, kind, thresholds)
    for field, other in (("metric", "hamming"), ("image_size", (56, 56)), ("weights_sha256", "1" * 64)):
        with pytest.raises(InputError, match=rf"{field} .* \(now .*Evaluate with the model"):
            Calibration.read(path, kind._replace(**{field: other}))


def test_the_radius_is_that_of_the_accepted_queries(run, tiny_benchmark):
    """All first matches are right, at positions that are known: the errors are those of the naive estimate."""
    benchmark = read_tiny(tiny_benchmark, threshold=1e6)
    indices = np.array([[2 * place, 2 * place + 1] for place in range(8)] * 2)[:10]
    distances = np.tile([0.5, 0.55, *[50] * 8], (10, 1)).astype(np.float32)  # the others weigh nothing
    ranks = np.hstack([indices, np.tile(np.arange(8), (10, 1))])
    report(
        run,
        benchmark,
        {"Float": SearchResult(distances, ranks, ["l2"] * 10)},
        model=MODEL,
        config=ReportConfig(page_queries=0),
    )
    content = json.loads((run.folder / "calibration.json").read_text())
    found = np.array([utm_position(path) for path in benchmark.database.paths])[indices]
    truth = np.array([utm_position(path) for path in benchmark.queries.paths])
    middle = np.average(found, axis=1, weights=[1, np.exp(-1)])  # 7 m apart; 10 % farther counts 1/e
    errors = np.sort(np.linalg.norm(middle - truth, axis=1))
    assert content["first_match"]["at_precision"]["100"]["radius"] == pytest.approx(errors[9], abs=1e-3)
    assert f"{errors[9]:.3g} m with 100% precision" in read_page(run)[0]


def test_without_labels_there_is_no_calibration(run, tiny_benchmark):
    write_report(run, read_tiny(tiny_benchmark, labels=False))
    assert not (run.folder / "calibration.json").exists() and (run.folder / "results.json").exists()


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
    assert "no recalls" in page and "R@" not in page and not re.search('class="(right|wrong)"', page)
    assert re.search(r'<path class="unknown" d="([^"]*)"', page)[1].count("M") == 10 and "query (10)" in page
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
        report(run, benchmark, stages, model=MODEL, config=ReportConfig(recall_values=(1, 5)))
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
    ((name, difference, _, _, *only),) = comparison.difference_table()[1]
    first, second = comparison.names
    assert name == f"{second} against {first}" and only == [str(won), str(lost)] and won > 0
    assert float(difference) == pytest.approx(10 * (won - lost), abs=0.06)
    for folder, row in zip(two_runs, comparison.recall_table()[1], strict=True):
        recalls = json.loads((folder / "results.json").read_text())["recalls"]
        assert row == [f"{MODEL['model']}, {folder}", *(f"{value:.1f}" for value in recalls.values())]
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
    assert "McNemar's p" in printed and printed.splitlines()[-1] == "Report: both.html"
    assert '"src":"data:image/jpeg' in (tmp_path / "both.html").read_text()


def test_a_single_run_is_shown_alone(two_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(two_runs[0])])
    main()
    assert "McNemar" not in capsys.readouterr().out
    assert "Settings that differ" not in (tmp_path / "comparison.html").read_text()
    with pytest.raises(InputError, match="comparison.html exists already. .*--overwrite"):
        main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    main()


def test_three_runs_are_told_apart(two_runs):
    first, second = map(read_run, two_runs)
    page = comparison_page(compare([first, second, second]), num_queries=4)
    tags = [query["tags"] for query in page.gallery.queries]
    assert len(tags) == 4 and all(tag in (["only 0"], ["except 0"]) for tag in tags)


def test_runs_can_be_named(two_runs):
    runs = [read_run(folder) for folder in two_runs]
    assert compare(runs, ["A", "B"]).difference_table()[1][0][0] == "B against A"
    with pytest.raises(InputError, match="--names gives 1 names for 2 runs"):
        compare(runs, ["A"])


def test_predictions_that_a_spreadsheet_sorted_are_read_by_their_ranks(two_runs):
    expected = [read_run(two_runs[0]), read_run(two_runs[0], depth=2)]
    path = two_runs[0] / "predictions.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *sorted(rows, key=lambda row: row.split(",")[2])]))
    for run, depth in zip(expected, (None, 2), strict=True):
        assert read_run(two_runs[0], depth=depth).predictions == run.predictions


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
        *(
            (lambda f, text=text: (f / "results.json").write_text(text), f"results.json{words}")
            for text, words in [
                ("{", ": Expecting"),
                ("", ": Expecting"),
                ("[" * 100_000, ": .*recursion"),
                *((text, " does not hold the results") for text in ("[]", "null", "7", "{}", '{"folder": "/"}')),
            ]
        ),
        (lambda f: (f / "predictions.csv").write_text("null"), "lacks the columns"),
        (lambda f: break_predictions(f, ",1,", ",01,", 1), "line 2: expected the predictions of a query"),
        (lambda f: break_predictions(f, ",2,", ",1,", 1), "expected the predictions of a query, with different ranks"),
        (lambda f: break_predictions(f, "queries/", "others/"), "No query is in all of"),
    ],
)
def test_runs_that_cannot_be_compared(two_runs, damage, words):
    damage(two_runs[0])
    with pytest.raises(InputError, match=words):
        compare([read_run(folder) for folder in two_runs])
