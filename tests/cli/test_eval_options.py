"""Several datasets in a run, conditions, mAP, test methods, PCA, EXIF orientation, through the scripts."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.evaluations import SCRIPTS, SIZE, Outcome, expect_refusal, flags_for, run_mode
from helpers.oracles import mapillary_apk
from helpers.photos import copy_as_phone_photos
from helpers.processes import run_here, run_script
from PIL import Image

from datasets.image_set import ImageSet
from model import GeoLocalizationNet, ModelConfig, prepare_for_inference
from model.geodesy import degrees_of_local
from model.image_files import load_image
from model.images import normalize
from model.weights import load_model
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, Forward, extract, extract_chunks, prepare
from utils.retrieval.index import Index
from utils.runtime.parser import NO_EFFECT_IN_REFERENCE

pytestmark = pytest.mark.slow


def evaluate(mode, datasets, checkpoints, cwd, *more):
    cwd.mkdir(exist_ok=True)
    return run_script(SCRIPTS[mode], *flags_for(datasets, checkpoints[mode], *more), cwd=cwd)


@pytest.fixture
def two_datasets(tiny_benchmark, tmp_path):
    """The tiny benchmark twice: as "tiny", and in the layout of MSLS, with its notes, as "msls"."""
    datasets = tmp_path / "datasets"
    shutil.copytree(tiny_benchmark, datasets)
    for part in ("database", "queries"):
        folder = datasets / "msls" / "test" / part
        shutil.copytree(tiny_benchmark / "tiny/images/test" / part, folder)
        for i, path in enumerate(sorted(folder.iterdir())):
            _, east, north, rest, _ = path.name.split("@")
            note = f"{'night' if i % 3 == 0 else 'day'}_forward_{'sf' if i < 4 else 'cph'}"
            path.rename(folder / f"@{east}@{north}@32@V@55@12@{rest}@@90@@@@201901@{note}@.jpg")
    return datasets


def test_several_datasets_end_with_a_table(two_datasets, checkpoints, tmp_path):
    result = evaluate("two_branch", two_datasets, checkpoints, tmp_path / "run", "--dataset_name", "tiny", "msls")
    assert result.status == 0, result.stderr
    (run,) = (tmp_path / "run/logs/eval").iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["log.txt", "msls", "summary.csv", "tiny"]
    recalls = {name: json.loads((run / name / "results.json").read_text())["recalls"] for name in ("tiny", "msls")}
    with open(run / "summary.csv", newline="") as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["tiny", "msls"]
    for name, row in rows.items():
        assert (row["database"], row["queries"], row["status"]) == ("16", "10", "evaluated")
        assert row["protocol"] == ""
        assert [row[f"R@{n}"] for n in recalls[name]] == [f"{value:.1f}" for value in recalls[name].values()]
    *lines, first, second = result.stdout.splitlines()
    pages = [path.relative_to(tmp_path / "run") for path in (run / "tiny/report.html", run / "msls/report.html")]
    assert [first, second] == [f"Report: {page}" for page in pages]
    assert lines[-4].startswith("| dataset | protocol | database | queries | R@1 |")
    assert lines[-2].startswith("| tiny |") and lines[-1].startswith("| msls |")
    alone = run_mode("two_branch", two_datasets, checkpoints, tmp_path / "alone", "--dataset_name=msls")
    assert alone.results["recalls"] == recalls["msls"]


@pytest.mark.parametrize("failure", ["missing", "unreadable"])
def test_a_dataset_that_fails_does_not_lose_the_others(two_datasets, checkpoints, tmp_path, failure):
    if failure == "missing":
        shutil.rmtree(two_datasets / "tiny")
    else:
        next((two_datasets / "tiny/images/test/queries").iterdir()).write_text("no image")
    result = evaluate("float", two_datasets, checkpoints, tmp_path / "run", "--dataset_name", "tiny", "msls")
    assert result.status == 2
    assert result.stderr.splitlines()[-1] == "error: 1 of 2 datasets failed: tiny. See above."
    (run,) = (tmp_path / "run/logs/eval").iterdir()
    with open(run / "summary.csv", newline="") as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file)}
    assert rows["msls"]["status"] == "evaluated" and rows["msls"]["R@1"]
    assert rows["tiny"]["status"].startswith("failed: " + ("No folder" if failure == "missing" else "Cannot read"))
    assert (run / "msls/results.json").exists() and not (run / "tiny/results.json").exists()


def test_if_all_datasets_are_missing_nothing_is_loaded(two_datasets, checkpoints, tmp_path):
    flags = flags_for(two_datasets, checkpoints["float"], "--dataset_name", "rome", "oslo")
    expect_refusal(run_here("eval.py", *flags, cwd=tmp_path), tmp_path / "none", "rome", "oslo")
    assert not (tmp_path / "logs").exists()


def test_conditions_and_map_agree_with_the_predictions(two_datasets, checkpoints, tmp_path):
    outcome = run_mode("float", two_datasets, checkpoints, tmp_path / "run", "--dataset_name=msls")
    ranked, correct = {}, {}
    for row in outcome.rows:
        ranked.setdefault(row["query"], []).append(row["database_photo"])
        correct.setdefault(row["query"], []).append(row["correct"] == "1")
    for n, value in outcome.results["mean_average_precision"].items():
        right = {query: set(itertools.compress(ranked[query], correct[query])) for query in ranked}
        scores = [mapillary_apk(ranked[query], right[query], int(n)) for query in ranked]
        assert value == pytest.approx(100 * np.mean(scores))
    conditions = outcome.results["conditions"]
    assert list(conditions) == ["day", "night", "forward", "cph", "sf"]
    for name, condition in conditions.items():
        queries = [query for query in ranked if name in query.split("@")[14].split("_")]
        assert condition["queries"] == len(queries) > 0
        assert condition["recalls"]["1"] == pytest.approx(100 * np.mean([correct[query][0] for query in queries]))
        assert any(line.startswith(f"{name} ({len(queries)} queries): R@1: ") for line in outcome.lines)
    assert len({condition["recalls"]["1"] for condition in conditions.values()}) > 1
    assert any(line.startswith("mAP@1: ") for line in outcome.lines)
    (protocol,) = (line for line in outcome.lines if line.startswith("Protocol: "))
    assert protocol.startswith(
        "Protocol: none known: 16 database images and 10 queries found, expected are 18,871 and "
    )
    assert outcome.results["protocol"] is None and outcome.results["threshold"] == 25


def test_query_folders_are_conditions_with_a_protocol_of_their_own(tiny_benchmark, checkpoints, tmp_path):
    split = tmp_path / "datasets/tiny/images/test"
    shutil.copytree(tiny_benchmark / "tiny/images/test", split)
    (split / "queries").rename(split / "queries_night")
    shutil.copytree(split / "queries_night", split / "queries_sun")
    flags = ["--queries_subfolder", "queries_sun", "queries_night"]
    outcome = run_mode("hashing", tmp_path / "datasets", checkpoints, tmp_path / "run", *flags)
    conditions = outcome.results["conditions"]
    assert outcome.results["queries"] == 20 and list(conditions) == ["queries_sun", "queries_night"]
    assert conditions["queries_sun"] == conditions["queries_night"]
    assert conditions["queries_sun"]["protocol"] is None


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        ("single_query", "float"),
        ("central_crop", "hashing"),
        *(("five_crops", mode) for mode in SCRIPTS),
        ("nearest_crop", "two_branch"),
        *(("maj_voting", mode) for mode in SCRIPTS),
    ],
)
def test_methods_run_in_every_script(tiny_benchmark, checkpoints, tmp_path, mode, method):
    """The queries are 4:3 images, so that every method sees something else than hard_resize. 5 of 16 ranks."""
    flags = [f"--test_method={method}", "--recall_values", 1, 5, *(["--rerank_num=3"] if mode == "two_branch" else [])]
    outcome = run_mode(mode, tiny_benchmark, checkpoints, tmp_path / "run", *flags)
    assert len(outcome.rows) == 50
    for i in range(0, 50, 5):
        assert len({row["database_photo"] for row in outcome.rows[i : i + 5]}) == 5
    metrics = [row["metric"] for row in outcome.rows[:5]]
    voted = method == "maj_voting"
    binary, float_ = ("hamming_voted", "squared_l2_voted") if voted else ("hamming", "l2")
    assert metrics == {"float": [float_] * 5, "hashing": [binary] * 5, "two_branch": ["l2"] * 3 + [binary] * 2}[mode]


def test_five_crops_of_a_landscape_image_cost_three_forward_passes(tiny_benchmark):
    path = next((tiny_benchmark / "tiny/images/test/queries").iterdir())
    assert Image.open(path).width > Image.open(path).height

    class Counting(torch.nn.Module):
        images = 0

        def forward(self, images, float_branch):
            self.images += len(images)
            return images.flatten(1)[:, :8]

    for method in ("five_crops", "nearest_crop", "maj_voting"):
        config = ExtractionConfig(resize=(28, 42), test_method=method)
        model = Counting()
        (features,) = extract_chunks(model, ImageSet.without_positions([path]), config)
        assert model.images == 3
        assert features.descriptors.shape == ((1, 8) if method == "five_crops" else (1, 3, 8))


def test_the_code_of_five_crops_is_the_sign_of_the_mean_logits():
    model = GeoLocalizationNet(ModelConfig(backbone="vit-tiny", hashing=True, rerank=True)).eval()
    images = torch.rand(2, 3, 3, 28, 28)
    codes, descriptors = Forward(prepare_for_inference(model), ExtractionConfig(test_method="five_crops"))(images)
    with torch.inference_mode():
        outputs = [model(normalize(images[:, crop])) for crop in (0, 0, 1, 2, 2)]
    logits = sum(output.logits for output in outputs) / 5
    bits = np.unpackbits(codes, axis=1).astype(bool)
    clear = logits.abs().numpy() > 1e-6  # rounding decides the others
    assert (bits == (logits >= 0).numpy())[clear].all() and clear.mean() > 0.99
    mean = sum(output.descriptor for output in outputs) / 5
    assert np.allclose(descriptors, mean, atol=1e-5)


@pytest.mark.parametrize("mode", ["float", "two_branch"])
def test_pca(tiny_benchmark, checkpoints, tmp_path, mode):
    flags = ["--pca_dim=6", "--pca_dataset_folder=tiny/images/test/database", "--rerank_num=16"]
    outcome = run_mode(mode, tiny_benchmark, checkpoints, tmp_path / "run", *flags[: 2 + (mode == "two_branch")])
    assert outcome.results["descriptor_dim"] == 6
    split = tiny_benchmark / "tiny/images/test"
    model = load_model(ModelConfig(backbone="vit-tiny"), checkpoints["float"])
    config = ExtractionConfig(resize=(56, 56))
    extractor = Extractor(model=prepare(model, config), config=config)
    database, queries = (
        extract(extractor, ImageSet.without_positions(sorted(map(str, (split / part).iterdir()))))
        for part in ("database", "queries")
    )
    mean = database.descriptors.mean(axis=0)
    _, _, components = np.linalg.svd(database.descriptors - mean, full_matrices=False)
    projected = [(part.descriptors - mean) @ components[:6].T for part in (database, queries)]
    distances = np.linalg.norm(projected[1][:, None] - projected[0][None], axis=2)
    for i, path in enumerate(queries.images.paths):
        rows = [row for row in outcome.rows if path.endswith(row["query"])]
        assert [float(row["distance"]) for row in rows] == pytest.approx(np.sort(distances[i]), abs=1e-5)


def test_exif_orientation_is_ignored_unless_asked_for(tmp_path):
    """Phones store the sensor's image, and how it was held: 6 means that it must be turned clockwise."""
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(tmp_path / "phone.png", exif=exif)
    assert load_image(tmp_path / "phone.png").size == (20, 40)
    assert np.array_equal(np.array(load_image(tmp_path / "phone.png", exif_orientation=True)), np.array(upright))


def test_scripts_and_exif_orientation(tiny_benchmark, checkpoints, tmp_path):
    """Queries are stored turned, with the EXIF tag that turns them back: eval.py ignores it, as does a search."""
    datasets = tmp_path / "datasets"
    shutil.copytree(tiny_benchmark, datasets)
    exif = Image.Exif()
    exif[0x0112] = 6
    queries = sorted((datasets / "tiny/images/test/queries").iterdir())
    for path in queries:
        with Image.open(path) as image:
            turned = image.rotate(90, expand=True)
        turned.save(path, quality=90, exif=exif)
    index = tmp_path / "index"
    ignored = run_mode("float", datasets, checkpoints, tmp_path / "ignored", f"--save_index={index}")
    applied = run_mode("float", datasets, checkpoints, tmp_path / "applied", "--exif_orientation")
    flags = flags_for(datasets, checkpoints["float"], f"--save_index={index}", "--append", "--exif_orientation")
    expect_refusal(run_here("eval.py", *flags, cwd=tmp_path), tmp_path / "none", "exif_orientation False (now True)")
    flags = flags_for(datasets, checkpoints["float"], f"--load_index={index}")
    refused = run_here("eval.py", *flags, "--exif_orientation", cwd=tmp_path)
    expect_refusal(refused, tmp_path / "none", "were read as they are stored, and so are queries. Leave --exif_orie")
    loaded = run_mode("float", datasets, checkpoints, tmp_path / "loaded", f"--load_index={index}")
    distance = {False: ignored.rows[0]["distance"], True: applied.rows[0]["distance"]}
    assert loaded.rows == ignored.rows and distance[False] != distance[True]
    # The index decides: it was read without orientations.
    result = run_script("search.py", queries[0], f"--index={index}", "--device=cpu", cwd=tmp_path)
    assert result.status == 0, result.stderr
    first = next(line for line in result.stdout.splitlines() if line.strip().startswith("1 "))
    assert float(first.split()[1]) == pytest.approx(float(distance[False]), abs=1e-4)
    upright = tmp_path / "upright"
    flags = flags_for(datasets, checkpoints["float"], "--exif_orientation", f"--save_index={upright}")
    assert run_script("eval.py", *flags, cwd=tmp_path).status == 0
    found = run_mode("float", datasets, checkpoints, tmp_path / "found", f"--load_index={upright}")
    assert found.rows == applied.rows and found.results["arguments"]["exif_orientation"] is True


@pytest.mark.parametrize(
    ("mode", "flags", "words"),
    [
        ("float", ["--majority_weight=0.1"], ["--test_method maj_voting"]),
        ("float", ["--pca_dim=4"], ["both --pca_dim and --pca_dataset_folder"]),
        ("float", ["--pca_dim=17", "--pca_dataset_folder=tiny/images/test/database"], ["--pca_dim 17", "16", "512"]),
        ("float", ["--pca_dim=4", "--pca_dataset_folder=nowhere"], ["No folder", "nowhere", "tiny"]),
        ("two_branch", ["--pca_dim=4", "--pca_dataset_folder=t", "--load_index=i"], ["not apply to --load_index"]),
        ("hashing", ["--pca_dim=4"], ["--pca_dim applies to float descriptors"]),
        ("float", ["--dataset_name", "tiny", "tiny"], ["more than once"]),
        ("float", ["--dataset_name", "a", "b", "--queries_subfolder=c"], ["--queries_subfolder applies to one"]),
        ("float", ["--dataset_name", "a", "b", "--save_index=index"], ["--save_index applies to one dataset"]),
        ("float", ["--database_folder=a", "--queries_folder=b"], ["--dataset_name", "--queries_folder"]),
        ("float", ["--val_positive_dist_threshold=10", "--no_labels"], ["--val_positive_dist_threshold"]),
        ("float", ["--positions_csv=/dev/null", "--no_labels"], ["--positions_csv", "--no_labels"]),
        ("float", ["--queries_list=missing.txt"], ["--queries_list: no file missing.txt"]),
        ("float", ["--positions_csv=missing.csv"], ["--positions_csv: no file missing.csv"]),
        ("float", ["--queries_subfolder", "queries_night"], ["queries_night", "queries"]),
    ],
)
def test_flags_that_make_no_sense_are_refused(tiny_benchmark, checkpoints, tmp_path, mode, flags, words):
    command = flags_for(tiny_benchmark, checkpoints[mode], *flags)
    expect_refusal(run_here(SCRIPTS[mode], *command, cwd=tmp_path), tmp_path, *words)


def test_salad_with_crops_that_have_few_patches_is_refused(tiny_benchmark, checkpoints, tmp_path):
    flags = ["--aggregation=salad", "--resize", 112, 140, "--test_method=nearest_crop"]
    command = flags_for(tiny_benchmark, checkpoints["salad"], *flags)
    expect_refusal(run_here("eval.py", *command, cwd=tmp_path), tmp_path, "SALAD", "64")


@pytest.mark.parametrize("script", ["eval.py", "eval_rerank.py", "train.py", "train_hashing.py"])
def test_flags_without_effect_in_the_reference_say_so(tmp_path, script):
    for name in NO_EFFECT_IN_REFERENCE if script == "train.py" else ["margin"]:
        result = run_here(script, f"--{name}", "0.1", cwd=tmp_path)
        assert result.status == 2
        assert result.stderr.splitlines()[-1] == f"{script}: error: --{name} had no effect in the reference; remove it."


def test_an_index_without_positions_needs_no_labels(tiny_benchmark, checkpoints, tmp_path):
    index = tmp_path / "index"
    folder, resume = tiny_benchmark / "tiny/images/test/database", f"--resume={checkpoints['hashing']}"
    flags = [resume, "--positions=none", *SIZE]
    assert run_script("build_index.py", folder, f"--index={index}", *flags, cwd=tmp_path).status == 0
    result = evaluate("hashing", tiny_benchmark, checkpoints, tmp_path / "load", f"--load_index={index}")
    expect_refusal(result, tmp_path / "load", "without positions", "--no_labels")
    flags = ["--no_labels", f"--load_index={index}"]
    outcome = run_mode("hashing", tiny_benchmark, checkpoints, tmp_path / "unlabelled", *flags)
    query = next((tiny_benchmark / "tiny/images/test/queries").iterdir())
    result = run_script("search.py", query, f"--index={index}", "--device=cpu", cwd=tmp_path)
    assert result.status == 0 and "easting" not in result.stdout and "unknown" not in result.stdout
    assert "recalls" not in outcome.results and len(outcome.rows) == 160


@pytest.mark.parametrize("origin", [(37.77, -122.42), (78.2, 21.0), (-16.8, 179.998), (90.0, 0.0)])
def test_photos_of_a_phone_are_evaluated_with_their_gps(tiny_benchmark, checkpoints, tmp_path, origin):
    """The queries lie up to 5.5 km from the origin. Results are those of the same pixels with metres in their names."""
    split = tiny_benchmark / "tiny/images/test"
    names = {}
    for part in ("database", "queries"):
        copied = copy_as_phone_photos(split / part, tmp_path / part, origin)
        names |= {f"{part}/{new}": f"{part}/{old}" for new, old in copied.items()}
    expected = run_mode("two_branch", tiny_benchmark, checkpoints, tmp_path / "names", "--recall_values", 1, 5)
    flags = ["--backbone=vit-tiny", f"--resume={checkpoints['two_branch']}", *SIZE, "--recall_values", 1, 5]
    folders = [f"--database_folder={tmp_path / 'database'}", f"--queries_folder={tmp_path / 'queries'}"]
    result = run_script("eval_rerank.py", *folders, "--positions=exif", "--save_index=index", *flags, cwd=tmp_path)
    found = Outcome(result, tmp_path)
    for row in found.rows:
        row["query"], row["database_photo"] = names[row["query"]], names[row["database_photo"]]
    assert found.rows == expected.rows and found.results["recalls"] == expected.results["recalls"]
    assert 'id="map"' in (found.folder / "report.html").read_text()
    flags += [folders[1], "--positions=auto", "--load_index=index", "--save_dir=load"]
    assert Outcome(run_script("eval_rerank.py", *flags, cwd=tmp_path), tmp_path, "load").results["recalls"]
    images = Index(tmp_path / "index").images
    assert images.degrees[0] == pytest.approx(degrees_of_local([0, 0], origin), abs=1e-5) or origin[0] == 90
    assert np.isnan(images.utms).all()


def test_evaluations_without_the_positions_of_all_images_are_refused(tiny_benchmark, checkpoints, tmp_path):
    split = tiny_benchmark / "tiny/images/test"
    folders = [f"--database_folder={tmp_path / 'photos'}", f"--queries_folder={split / 'queries'}"]
    copy_as_phone_photos(split / "database", tmp_path / "photos", (37.77, -122.42))
    shutil.copy(next((split / "queries").iterdir()), tmp_path / "photos/no_gps.jpg")
    flags = ["--backbone=vit-tiny", f"--resume={checkpoints['hashing']}", *SIZE]
    for i, (more, words) in enumerate(
        (
            (["--positions=exif"], ["1 of 17 images", "no position in their EXIF data, such as", "no_gps.jpg. Move"]),
            (["--positions=auto"], ["1 of 17 images", "no position in their names and EXIF data"]),
            ([], ["No UTM position in the file name", "--positions exif", "--no_labels"]),
            (["--positions=none"], ["--positions none leaves no recalls", "--no_labels"]),
            (["--positions=exif", "--positions_csv=/dev/null"], ["Give either that or --positions."]),
        )
    ):
        (tmp_path / str(i)).mkdir()
        result = run_here("eval_hashing.py", *folders, *flags, *more, cwd=tmp_path / str(i))
        expect_refusal(result, tmp_path / str(i), *words)
    (tmp_path / "photos/no_gps.jpg").unlink()  # then the database has degrees, and the queries metres in no zone
    (tmp_path / "zones").mkdir()
    result = run_here("eval_hashing.py", *folders, *flags, "--positions=auto", cwd=tmp_path / "zones")
    expect_refusal(result, tmp_path / "zones", "10 of 10 images are metres without a UTM zone", "--positions_csv")
    result = run_script("eval_hashing.py", *folders, *flags, "--positions=auto", "--no_labels", cwd=tmp_path)
    assert 'id="map"' in (Outcome(result, tmp_path).folder / "report.html").read_text()
