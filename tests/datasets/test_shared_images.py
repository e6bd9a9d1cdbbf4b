"""Queries that are database images too: which are found, what they cost, and what evaluations then say."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluations import run_mode

from datasets import shared_images
from datasets.benchmark import Benchmark
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig
from datasets.shared_images import find_shared
from model import InputError


def test_what_two_sets_share_is_what_a_naive_comparison_finds(tmp_path):
    """Of random files of few sizes, many equal in their middle; copies, links; empty and absent files equal none."""
    random = np.random.default_rng(0)
    folders = [tmp_path / name for name in ("images", "database")]
    for folder in folders:
        folder.mkdir()
        for i in range(60):
            content = bytearray(
                random.integers(3, size=1, dtype=np.uint8).tobytes() * int(random.choice([0, 1, 9, 20_000]))
            )
            if content and random.random() < 0.5:
                content[0] = 7  # equal in the middle, and yet another file
            (folder / f"{i:02d}.jpg").write_bytes(content)
    os.link(folders[0] / "01.jpg", folders[1] / "linked.jpg")
    (folders[1] / "symbolic.jpg").symlink_to(folders[0] / "02.jpg")
    images, database = ([str(path) for path in sorted(folder.iterdir())] for folder in folders)
    contents = {Path(path).read_bytes() for path in database} - {b""}
    expected = [i for i, path in enumerate(images) if Path(path).read_bytes() in contents]
    found = find_shared(images, [*database, str(tmp_path / "absent.jpg")])
    assert found.indices.tolist() == expected and found.absent == 1
    assert {1, 2} <= set(expected) | {i for i in (1, 2) if not os.path.getsize(images[i])} and 5 < len(expected) < 60


def test_files_of_other_sizes_are_not_read(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i}").write_bytes(b"x" * (i + 1))
    paths = [str(tmp_path / f"{i}") for i in range(20)]
    monkeypatch.setattr(shared_images, "_middle", None)  # calling it would raise TypeError
    assert find_shared(paths[:10], paths[10:]).indices.tolist() == []
    with pytest.raises(TypeError):
        find_shared(paths[:11], paths[10:])


@pytest.fixture
def folders(tmp_path):
    """Two images in a map, and three new ones, with positions in their names."""
    for folder, count in (("map", 2), ("new", 3)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"@{500_000 + i}@6000000@{folder}{i}@.jpg").write_text(f"{folder} {i}")
    return tmp_path


def benchmark_of(database, queries, **options):
    return Benchmark(BenchmarkConfig(name="mine", database_folder=database, queries_folder=queries, **options))


@pytest.mark.parametrize("how", ["nested", "identical", "linked", "copied"])
def test_queries_that_are_all_in_the_database_are_an_error(folders, how, caplog):
    database = {"nested": folders, "identical": folders / "new"}.get(how, folders / "map")
    if how == "linked":
        (database / "more").symlink_to(folders / "new")
    elif how == "copied":
        for i, path in enumerate(sorted((folders / "new").iterdir())):
            shutil.copy(path, database / f"@9@9@{i}@.jpg")
    with pytest.raises(InputError, match=r"3 of 3 queries are also database images, such as .*new0@\.jpg\. Each finds"):
        benchmark_of(database, folders / "new")
    assert benchmark_of(database, folders / "new", labels=False).queries_in_database.tolist() == [0, 1, 2]
    assert "3 of 3 queries are also database images" in caplog.text  # predictions are no recalls


def test_some_are_a_warning_and_an_index_is_compared_too(folders, caplog):
    assert benchmark_of(folders / "map", folders / "new").queries_in_database.tolist() == []
    assert not caplog.records
    shutil.copy(folders / "new" / "@500001@6000000@new1@.jpg", folders / "map" / "@9@9@other@.jpg")
    benchmark = benchmark_of(folders / "map", folders / "new")
    assert benchmark.queries_in_database.tolist() == [1]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "1 of 3 queries are also database images" in caplog.text and "also given without them" in caplog.text
    same = ImageSet.at_utms(list(benchmark.database.paths), benchmark.database.utms)
    assert benchmark.with_database(same).queries_in_database.tolist() == [1] and len(caplog.records) == 1
    with pytest.raises(InputError, match="3 of 3 queries"):
        benchmark.with_database(ImageSet.at_utms([*same.paths, *benchmark.queries.paths], np.zeros((6, 2))))
    caplog.clear()
    gone = ImageSet.at_utms(["/nowhere/a.jpg", *same.paths], np.zeros((4, 2)))
    assert benchmark.with_database(gone).queries_in_database.tolist() == [1]
    assert "1 of 4 database images are no longer at their paths" in caplog.text


def recalls_of(rows, values):
    """The percentage of queries with a correct row among their first n."""
    queries = {row["query"] for row in rows}
    hits = {n: {row["query"] for row in rows if row["correct"] == "1" and int(row["rank"]) <= n} for n in values}
    return {str(n): 100 * len(hits[n]) / len(queries) for n in values}


@pytest.mark.slow
def test_evaluations_give_recalls_with_and_without_them(tiny_benchmark, checkpoints, tmp_path):
    """Of queries 8 and 9 copies lie in the database, with other positions: they find themselves, which is wrong."""
    datasets = tmp_path / "datasets"
    shutil.copytree(tiny_benchmark, datasets)
    split = datasets / "tiny" / "images" / "test"
    shared = sorted((split / "queries").iterdir())[8:]
    for i, path in enumerate(shared):
        shutil.copy(path, split / "database" / f"@{100_000 + i}@6000000@@.jpg")
    index = tmp_path / "index"
    built = run_mode("two_branch", datasets, checkpoints, tmp_path / "built", f"--save_index={index}")
    loaded = run_mode("two_branch", datasets, checkpoints, tmp_path / "loaded", f"--load_index={index}")
    others = [row for row in built.rows if not row["query"].endswith(tuple(path.name for path in shared))]
    assert len(others) == len(built.rows) * 8 // 10
    for outcome in (built, loaded):
        assert outcome.results["queries_in_database"] == 2
        without = outcome.results["recalls_without_queries_in_database"]
        assert without == pytest.approx(recalls_of(others, [int(n) for n in without]))
        assert without != outcome.results["recalls"]
        assert any(line.startswith("Without the 2 queries that are also database") for line in outcome.lines)
    page = (loaded.folder / "report.html").read_text()
    assert "2 queries are also database images. Without them: R@1" in page
    for path in split.glob("queries/*"):
        shutil.copy(path, split / "database")
    with pytest.raises(AssertionError, match="10 of 10 queries are also database images"):
        run_mode("two_branch", datasets, checkpoints, tmp_path / "all")
    assert json.dumps(built.results["recalls"]) == json.dumps(loaded.results["recalls"])
