"""Search city by city, and the subtasks of MSLS, against naive loops over made-up cities."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.evaluations import run_mode
from helpers.msls import make_msls
from helpers.oracles import mapillary_apk
from PIL import Image

from datasets.benchmark import Benchmark
from datasets.config import PositionConfig
from datasets.layouts import BenchmarkConfig
from datasets.msls import SUBTASKS, cities_of
from datasets.msls_layout import TEST_CITIES
from datasets.protocols.recognition import keys_sha256, recognise
from datasets.protocols.table import PROTOCOLS
from model import InputError
from utils.integrations.msls import export_msls
from utils.integrations.pairs import predicted_pairs
from utils.retrieval.cities import SUBTASK_VALUES, evaluate_subtasks, search_by_city
from utils.retrieval.config import IVFConfig
from utils.retrieval.evaluation import Pipeline
from utils.retrieval.features import Features
from utils.retrieval.search import search

DEPTH = 5


def of_msls(folder, split="test", **options):
    return BenchmarkConfig(datasets_folder=folder, name="msls", split=split, **options)


def make_features(images, random):
    """Codes of which many are equal or nearly so."""
    return Features(images, random.integers(0, 2, (len(images), 64)).astype(np.uint8), None)


def hamming(a, b):
    return sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def cities(tmp_path_factory):
    """The test cities; benchmark, features of database and queries, and what the images are."""
    folder = tmp_path_factory.mktemp("cities")
    made = make_msls(folder / "msls/test", TEST_CITIES, database=30, queries=20)
    benchmark, random = Benchmark(of_msls(folder)), np.random.default_rng(1)
    return benchmark, make_features(benchmark.database, random), make_features(benchmark.queries, random), made


def codes_by_key(features):
    return {Path(path).stem: code for path, code in zip(features.images.paths, features.codes, strict=True)}


def ranked(query, keys, order, codes):
    """Keys from the nearest code to the most distant one; of equal ones, in the order of the database."""
    return sorted(keys, key=lambda key: (hamming(query, codes[key]), order[key]))


def test_subtasks_are_those_of_a_naive_evaluation_of_each_city(cities):
    benchmark, database, queries, made = cities
    found = evaluate_subtasks(lambda d, q: {"Hamming": search(d, q, 20)}, database, queries, benchmark)
    codes, asked = codes_by_key(database), codes_by_key(queries)
    order = {key: i for i, key in enumerate(codes)}
    for subtask in SUBTASKS:
        recalls, precisions = {n: [] for n in SUBTASK_VALUES}, {n: [] for n in SUBTASK_VALUES}
        for city in TEST_CITIES:
            members = {key: x for key, (x, names) in made[city, "database"].items() if subtask in names}
            for key, (place, names) in made[city, "query"].items():
                right = {other for other, x in members.items() if abs(x - place) <= 25}
                if subtask not in names or not right:
                    continue
                predictions = ranked(asked[key], members, order, codes)
                for n in SUBTASK_VALUES:
                    recalls[n].append(any(other in right for other in predictions[:n]))
                    precisions[n].append(mapillary_apk(predictions, right, n))
        assert found[subtask]["queries"] == len(recalls[1]) > 5
        figures = found[subtask]["stages"]["Hamming"]
        for name, expected in (("recalls", recalls), ("mean_average_precision", precisions)):
            means = {n: 100 * np.mean(values) for n, values in expected.items()}
            assert figures[name] == pytest.approx(means) and 0 < means[5] < 100, (subtask, name)


def test_a_query_is_never_matched_outside_its_city_even_if_the_nearest_image_lies_there(cities):
    benchmark, database, queries, _ = cities
    copies = database._replace(codes=database.codes.copy())
    home = [Path(path).parts[-4] for path in benchmark.database.paths]
    own = [Path(path).parts[-4] for path in benchmark.queries.paths]
    for i, city in enumerate(own):
        away = next(j for j in range(i, len(home)) if home[j] != city)
        copies.codes[away] = queries.codes[i]  # of queries with the same place, the last one
    everywhere = search(copies, queries, DEPTH)
    assert sum(home[everywhere.indices[i, 0]] != own[i] for i in range(len(own))) > len(own) / 2
    result = search_by_city(
        lambda d, q: {"Hamming": search(d, q, DEPTH)}, copies, queries, benchmark.cities, depth=DEPTH
    )["Hamming"]
    for i, city in enumerate(own):
        mine = [j for j, other in enumerate(home) if other == city]
        nearest = sorted(mine, key=lambda j: (hamming(queries.codes[i], copies.codes[j]), j))[:DEPTH]
        assert result.indices[i].tolist() == nearest
        assert result.distances[i].tolist() == [hamming(queries.codes[i], copies.codes[j]) for j in nearest]


def test_positives_lie_in_the_city_of_their_query(cities):
    benchmark, *_, made = cities
    for path, positives in zip(benchmark.queries.paths, benchmark.positives, strict=True):
        city, place = Path(path).parts[-4], made[Path(path).parts[-4], "query"][Path(path).stem][0]
        right = {key for key, (x, _) in made[city, "database"].items() if abs(x - place) <= 25}
        assert {Path(benchmark.database.paths[i]).stem for i in positives} == right


def test_a_city_with_fewer_images_than_results_is_refused(cities):
    benchmark, database, queries, _ = cities
    with pytest.raises(InputError, match=r"has 26 images of \w+, where each query needs 27"):
        search_by_city(lambda d, q: {}, database, queries, benchmark.cities, depth=27)


def test_the_paths_of_a_database_are_read_only_if_the_queries_have_cities():
    """Those of a search engine are asked for one by one."""
    read = []

    def paths(names):
        for name in names:
            read.append(name)
            yield name

    assert cities_of(paths(["a.jpg"] * 100_000), ["q.jpg"] * 3) is None and not read
    query = "@0@0@@@@@q@@@@@@@day_forward_miami@.jpg"
    assert cities_of(paths([query, "a.jpg", "b.jpg"]), [query]) is None and len(read) == 2


def test_subtasks_of_an_index_are_those_of_the_images_on_disk(cities):
    benchmark, *_ = cities
    queries = Benchmark(benchmark.config, has_database=False)
    against = queries.with_database(benchmark.database)
    np.testing.assert_array_equal(against.subtasks(against.database), benchmark.subtasks(benchmark.database))


def test_queries_of_mslss_own_folders_are_selected_and_recognised_by_their_keys(cities, tmp_path, monkeypatch):
    benchmark, *_ = cities
    keys = sorted(Path(path).stem for path in benchmark.queries.paths)[::3]
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    chosen = Benchmark(replace(benchmark.config, queries_list=tmp_path / "keys.txt"))
    assert sorted(Path(path).stem for path in chosen.queries.paths) == keys
    official = replace(PROTOCOLS[0], name="MSLS, ours", database=len(chosen.database), queries=len(keys))
    official = replace(official, threshold=25, keys_sha256=keys_sha256(keys), frames=None, seasons=None)
    monkeypatch.setattr("datasets.protocols.recognition.PROTOCOLS", (official,))
    assert recognise(chosen.database, chosen.queries, 25).name == "MSLS, ours"


# ---- What may be wrong with the folder


@pytest.mark.parametrize(
    "options",
    [
        {"queries_subfolders": ("queries_night",)},
        {"positions": PositionConfig(source="exif")},
        {"positions": PositionConfig(source="csv", csv=Path("positions.csv"))},
    ],
)
def test_what_msls_as_it_is_published_would_ignore_is_refused(cities, options):
    with pytest.raises(InputError, match="does not apply to MSLS as it is published"):
        Benchmark(replace(cities[0].config, **options))


def test_an_inverted_file_is_refused_before_the_extraction(cities):
    """Where queries are searched city by city."""
    config = SimpleNamespace(search=SimpleNamespace(ivf=IVFConfig(nlist=2, nprobe=1)))
    pipeline = Pipeline(SimpleNamespace(), config, search=None)
    with pytest.raises(InputError, match="--ivf searches the whole database"):
        pipeline.evaluate(cities[0], run=None)


@pytest.fixture
def msls(tmp_path):
    make_msls(tmp_path / "msls/test", TEST_CITIES)
    return tmp_path


def test_a_city_that_is_missing_is_named(msls, caplog):
    shutil.rmtree(msls / "msls/test/kampala")
    assert Benchmark(of_msls(msls)).cities.names == sorted({*TEST_CITIES} - {"kampala"})
    assert "lacks kampala of the six cities" in caplog.text
    shutil.rmtree(msls / "msls/test/athens/query")
    assert "athens" not in Benchmark(of_msls(msls)).cities.names and "lacks athens, kampala of" in caplog.text


def test_without_ground_truth_the_images_can_be_searched_but_not_scored(msls):
    for part in ("query", "database"):
        for name in ("postprocessed", "subtask_index"):
            (msls / "msls/test/miami" / part / f"{name}.csv").unlink()
    with pytest.raises(InputError, match=r"No file .*miami/database/postprocessed.csv.*public since 2026-04-13"):
        Benchmark(of_msls(msls))
    benchmark = Benchmark(of_msls(msls, labels=False))
    assert len(benchmark.database) == 6 * 12 and benchmark.cities and benchmark.subtasks(benchmark.database) is None


def test_images_that_the_csv_files_do_not_name_and_images_without_a_file_are_refused(msls):
    images = msls / "msls/test/athens/query/images"
    (images / "more.jpg").touch()
    with pytest.raises(InputError, match=r"1 of 8 images in .*athens/query are not in .*raw.csv, such as .*more.jpg"):
        Benchmark(of_msls(msls))
    (images / "more.jpg").unlink()
    panorama = (images.parent / "raw.csv").read_text().splitlines()[4].split(",")[1]
    (images / f"{panorama}.jpg").unlink()
    assert len(Benchmark(of_msls(msls)).queries) == 6 * 6
    min(images.iterdir()).unlink()
    with pytest.raises(InputError, match=r"lists 1 images that are not in .*athens/query/images"):
        Benchmark(of_msls(msls))


def test_the_validation_cities_are_searched_together_unless_one_asks(tmp_path):
    make_msls(tmp_path / "msls/train_val", ("cph", "sf", "tokyo"))
    assert Benchmark(of_msls(tmp_path, "val")).cities is None
    assert Benchmark(of_msls(tmp_path, "val", per_city=True)).cities.names == ["cph", "sf"]
    split = tmp_path / "town/test"
    for part in ("database", "queries"):
        (split / part).mkdir(parents=True)
        (split / part / "@1@2@.jpg").touch()
    with pytest.raises(InputError, match="--per_city needs the cities of all images"):
        Benchmark(BenchmarkConfig(datasets_folder=tmp_path, name="town", per_city=True))


def test_cities_in_the_names_of_the_downloader_are_searched_one_by_one_too(tmp_path):
    for part, cities in (("database", ("miami", "athens")), ("queries", ("athens", "miami", "miami"))):
        folder = tmp_path / "msls/test" / part
        folder.mkdir(parents=True)
        for i, city in enumerate(cities):
            (folder / f"@{i}@0@@@@@{part}{i}@@@@@@@day_forward_{city}@.jpg").touch()
    benchmark = Benchmark(of_msls(tmp_path))
    assert benchmark.cities.names == ["athens", "miami"]
    assert [found.tolist() for found in benchmark.positives] == [[1], [0], [0]]
    (tmp_path / "msls/test/queries/@0@0@@@@@q@@@@@@@day_forward_kampala@.jpg").touch()
    with pytest.raises(InputError, match="There are queries of kampala, but the database has no image of it"):
        Benchmark(of_msls(tmp_path))


def test_the_script_evaluates_the_test_cities(tmp_path, checkpoints):
    """End to end: no prediction lies in another city, and the figures are in results.json."""

    def draw(path, random):
        Image.fromarray(random.integers(0, 255, (56, 56, 3), np.uint8)).save(path)

    datasets = tmp_path / "datasets"
    make_msls(datasets / "msls/test", TEST_CITIES, database=8, queries=4, write=draw)
    stranger = min((datasets / "msls/test/miami/query/images").iterdir())
    for path in (datasets / "msls/test/athens/database/images").iterdir():  # the nearest images of this query
        shutil.copy(stranger, path) if path.name < "athd_8" else None
    flags = ["--dataset_name=msls", "--recall_values", 1, 5, "--report_queries=2"]
    outcome = run_mode("two_branch", datasets, checkpoints, tmp_path / "run", *flags)
    assert {(row["query"].split("/")[0] == row["database_photo"].split("/")[0]) for row in outcome.rows} == {True}
    assert outcome.results["per_city"] and list(outcome.results["subtasks"])[0] == "all"
    assert list(outcome.results["conditions"]) == sorted(TEST_CITIES)
    figures = outcome.results["subtasks"]["all"]["stages"]["Re-ranked"]
    assert list(figures["recalls"]) == list(figures["mean_average_precision"]) == ["1", "5", "10", "20"]
    assert any(line.startswith("Subtask all (") and "Re-ranked: R@1: " in line for line in outcome.lines)
    assert not any(line.startswith("Protocol of") for line in outcome.lines)
    assert any("searched in its city alone: athens, bengaluru" in line for line in outcome.lines)
    output = tmp_path / "keys.txt"
    export_msls(predicted_pairs(outcome.folder, 5), output)
    lines = [line.split() for line in output.read_text().splitlines()]
    assert [Path(row["query"]).stem for row in outcome.rows[::5]] == [query for query, *_ in lines]
    assert [len(line) for line in lines] == [6] * outcome.results["queries"]
