"""Which database images are right, as files, labels and frames say; and VPR-Bench's file, read without unpickling."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from datasets.benchmark import Benchmark
from datasets.config import GroundTruthConfig, PositionConfig
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig
from datasets.npy_files import read_npy
from model import InputError

DATABASE = ["a/s_000.jpg", "a/s_001.jpg", "a/s_002.jpg", "a/s_010.jpg"]
QUERIES = ["t_001.jpg", "t_002.jpg", "t;9.jpg"]


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def mine(tmp_path):
    """Two folders of images without positions."""
    touch(tmp_path / "mine/db", DATABASE)
    touch(tmp_path / "mine/new", QUERIES)
    return tmp_path / "mine"


def config_of(folder, text=None, **options):
    """The evaluation of the two folders with a CSV file of this text."""
    if text is not None:
        (folder / "truth.csv").write_text(text)
    truth = GroundTruthConfig(matches_csv=folder / "truth.csv" if text is not None else None, **options)
    return BenchmarkConfig(
        name="mine", database_folder=folder / "db", queries_folder=folder / "new", ground_truth=truth
    )


def right_in(folder, text=None, **options):
    """{query: names of its right images}."""
    benchmark = Benchmark(config_of(folder, text, **options))
    assert all(found.dtype == np.int64 and (np.diff(found) > 0).all() for found in benchmark.positives)
    names = [[os.path.relpath(benchmark.database.paths[i], folder / "db") for i in p] for p in benchmark.positives]
    return dict(zip((os.path.basename(path) for path in benchmark.queries.paths), names, strict=True))


def test_listed_pairs_are_right_by_any_name_of_an_image_one_or_several_in_a_row(mine):
    rows = [
        "new/t_001.jpg,a/s_002.jpg",
        f"t_001.jpg,db/a/s_000.jpg;{mine}/db/a/s_002.jpg",
        "t_002.jpg,",
        "new/t;9.jpg, ./a/s_010.jpg ;a/s_001.jpg",
        "never_taken.jpg,a/s_000.jpg",
    ]
    expected = {"t_001.jpg": [DATABASE[0], DATABASE[2]], "t_002.jpg": [], "t;9.jpg": [DATABASE[1], DATABASE[3]]}
    assert right_in(mine, "\n".join(["Query,database,note", *rows])) == expected
    touch(mine / "db", ["b;c.jpg"])
    rows = [f"{name},b;c.jpg" for name in QUERIES]
    assert right_in(mine, "\n".join(["query,database", *rows])) == {name: ["b;c.jpg"] for name in QUERIES}


def test_images_with_the_label_of_a_query_are_right_and_no_label_equals_no_other(mine):
    labels = dict(zip([*DATABASE, *QUERIES], ["hall", "", "hall", "roof", "roof", "hall", ""], strict=True))
    text = "image,label\n" + "".join(f"{name}, {label}\n" for name, label in labels.items())
    expected = {q: [d for d in DATABASE if labels[d] == labels[q] != ""] for q in QUERIES}
    assert right_in(mine, text) == expected and expected["t_002.jpg"] == [DATABASE[0], DATABASE[2]]


@pytest.mark.parametrize("tolerance", [0, 1, 8])
def test_frames_within_the_tolerance_are_right_by_names_and_by_a_column(mine, tolerance):
    number = {name: int("".join(c for c in name if c.isdigit())) for name in [*DATABASE, *QUERIES]}
    expected = {q: [d for d in DATABASE if abs(number[d] - number[q]) <= tolerance] for q in QUERIES}
    assert right_in(mine, frame_tolerance=tolerance) == expected
    text = "image,frame\n" + "".join(f"{name},{1000 + frame}\n" for name, frame in number.items())
    touch(mine / "db", [])
    assert right_in(mine, text, frame_tolerance=tolerance) == expected


@pytest.mark.parametrize(
    ("text", "tolerance", "message"),
    [
        ("query,database\nt_001.jpg,a/s_000.jpg\n", None, r"does not list the query .*t;9.jpg. Give each query a row"),
        ("query,database\nt;9.jpg,a/s_003.jpg\n", None, "a/s_003.jpg, which it lists for .* is not in the database"),
        ("query,database\n,a/s_000.jpg\n", None, "line 2: the column query is empty"),
        ("image,label\nt;9.jpg,hall\n", None, r"has no label for .*s_000.jpg. Expected one row whose column image is"),
        ("image,label\na/s_000.jpg,x\na/s_000.jpg,y\n", None, "lists a/s_000.jpg more than once"),
        ("image,frame\n", None, "has numbers of frames. Say how many .*: --frame_tolerance"),
        ("image,label\n", 1, "--frame_tolerance needs the columns image and frame"),
        ("image,frame\na/s_000.jpg,one\n", 1, "line 2: frame is 'one'. Expected a number"),
        ("image,query,database,label\n", None, "Expected those of one kind: query, database or image, label or image"),
        ("image,where\n", None, "has the columns image, where. Expected those of one kind"),
    ],
)
def test_files_that_do_not_say_what_is_right_are_refused(mine, text, tolerance, message):
    with pytest.raises(InputError, match=message):
        Benchmark(config_of(mine, text, frame_tolerance=tolerance))


def test_a_row_of_pairs_that_stands_for_two_queries_is_refused(tmp_path):
    """As one of labels or frames is."""
    touch(tmp_path / "town/test", ["database/000.jpg", "queries_day/000.jpg", "queries_night/000.jpg"])
    (tmp_path / "truth.csv").write_text("query,database\n000.jpg,000.jpg\n")
    truth = GroundTruthConfig(matches_csv=tmp_path / "truth.csv")
    config = BenchmarkConfig(
        name="town",
        datasets_folder=tmp_path,
        queries_subfolders=("queries_day", "queries_night"),
        ground_truth=truth,
    )
    with pytest.raises(
        InputError, match=r"one row stands for both .*day/000.jpg and .*night/000.jpg\. Give each its own"
    ):
        Benchmark(config)
    (tmp_path / "truth.csv").write_text("query,database\nqueries_day/000.jpg,000.jpg;\nqueries_night/000.jpg,;\n")
    assert [found.tolist() for found in Benchmark(config).positives] == [[0], []]


def test_names_in_the_database_of_a_dataset_are_those_of_its_index_too(tmp_path):
    touch(tmp_path / "town/test", ["database/a/000.jpg", "queries/000.jpg"])
    (tmp_path / "truth.csv").write_text("query,database\n000.jpg,a/000.jpg\n")
    truth = GroundTruthConfig(matches_csv=tmp_path / "truth.csv")
    config = BenchmarkConfig(name="town", datasets_folder=tmp_path, ground_truth=truth)
    database = Benchmark(config).database
    against = Benchmark(config, has_database=False).with_database(database)
    assert [found.tolist() for found in against.positives] == [[0]]


def test_frames_of_several_recordings_or_without_a_number_are_refused(mine):
    touch(mine / "db", ["b/s_000.jpg"])
    with pytest.raises(InputError, match=r"several recordings, such as .*/a/s_ and .*/b/s_.*column"):
        Benchmark(config_of(mine, frame_tolerance=1))
    (mine / "db/b/s_000.jpg").rename(mine / "new/last.jpg")
    with pytest.raises(InputError, match=r"the name of .*last.jpg has no number, its frame"):
        Benchmark(config_of(mine, frame_tolerance=1))


def test_a_number_that_all_queries_share_is_a_warning(tmp_path, caplog):
    touch(tmp_path / "mine/db", ["img0001_720p.jpg"])
    touch(tmp_path / "mine/new", ["img0705_720p.jpg", "img0706_720p.jpg"])
    Benchmark(config_of(tmp_path / "mine", frame_tolerance=1))
    assert "last number in the names of all 2 queries" in caplog.text and "is 720" in caplog.text


def test_the_images_of_an_index_are_right_by_their_paths(mine):
    config = config_of(mine, "query,database\n" + "".join(f"{name},{mine}/db/{DATABASE[2]}\n" for name in QUERIES))
    queries = Benchmark(BenchmarkConfig(**{**vars(config), "database_folder": None}), has_database=False)
    index = ImageSet.without_positions([str(mine / "db" / name) for name in DATABASE])
    assert [found.tolist() for found in queries.with_database(index).positives] == [[2]] * 3
    with pytest.raises(InputError, match="is not in the database"):
        queries.with_database(index[:2])


def test_no_labels_and_positions_that_do_not_decide_do_not_go_with_matches(mine):
    truth = GroundTruthConfig(frame_tolerance=1)
    folders = {"name": "mine", "database_folder": mine / "db", "queries_folder": mine / "new", "ground_truth": truth}
    with pytest.raises(InputError, match="--frame_tolerance says which images are right, which --no_labels ignores"):
        BenchmarkConfig(**folders, labels=False)
    none = BenchmarkConfig(**folders, positions=PositionConfig(source="none"))
    assert len(Benchmark(none).positives) == 3 and np.isnan(Benchmark(none).ground.metres(0, np.arange(2))).all()


# ---- VPR-Bench


def object_array(rows):
    """As VPR-Bench saves it: of two columns, the second of which holds lists."""
    array = np.empty((len(rows), 2), object)
    for i, row in enumerate(rows):
        array[i] = row
    return array


@pytest.fixture
def bench(tmp_path):
    """VPR-Bench's layout: three queries, four reference images."""
    folder = tmp_path / "tour"
    touch(folder, [f"ref/{i:07}.jpg" for i in range(4)] + [f"query/{i:07}.jpg" for i in range(3)])
    return folder


ROWS = [[2, np.array([3, 0])], [0, [1, np.int64(2)]], [np.int32(1), ()]]
RIGHT = [[1, 2], [], [0, 3]]


def read_bench(folder):
    config = BenchmarkConfig(datasets_folder=folder.parent, name=folder.name)
    return [found.tolist() for found in Benchmark(config).positives]


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_vpr_benchs_layout_is_recognised_and_its_lists_are_read(bench, protocol, module):
    """In every form in which NumPy has written them."""
    np.save(bench / "ground_truth_new.npy", object_array(ROWS))
    data = (bench / "ground_truth_new.npy").read_bytes()
    header = data[: data.index(b"\n") + 1]
    content = pickle.dumps(object_array(ROWS), protocol=protocol)
    content = content if protocol == 4 else content.replace(b"numpy._core.m", module.encode() + b".m")
    (bench / "ground_truth_new.npy").write_bytes(header + content)
    assert read_bench(bench) == RIGHT


def test_an_array_without_lists_is_read_too(bench):
    np.save(bench / "ground_truth_new.npy", np.array([[0, 1], [1, 1], [2, 3]], np.int16))
    assert read_bench(bench) == [[1], [1], [3]]


def test_a_distance_does_not_go_with_vpr_benchs_file(bench):
    np.save(bench / "ground_truth_new.npy", object_array(ROWS))
    with pytest.raises(InputError, match="decides in place of distances; leave --val_positive_dist_threshold out"):
        Benchmark(BenchmarkConfig(datasets_folder=bench.parent, name=bench.name, threshold=10.0))


def test_the_folder_of_datasets_may_be_relative(bench, monkeypatch):
    np.save(bench / "ground_truth_new.npy", object_array(ROWS))
    monkeypatch.chdir(bench.parent)
    assert read_bench(Path(bench.name)) == RIGHT


class Hostile:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_that_would_run_something_when_unpickled_is_refused_and_runs_nothing(bench, protocol):
    mark = bench / "was_here"
    rows = object_array([[0, Hostile(mark)], [1, [1]], [2, [2]]])
    np.save(bench / "ground_truth_new.npy", object_array(ROWS))
    header = (bench / "ground_truth_new.npy").read_bytes()
    content = pickle.dumps(rows, protocol=protocol)
    (bench / "ground_truth_new.npy").write_bytes(header[: header.index(b"\n") + 1] + content)
    with pytest.raises(InputError, match=r"Cannot read .*ground_truth_new.npy"):
        read_bench(bench)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists(), "or the test shows nothing"


NESTED = b"K\x01K\x02\x86" + b"q\x05h\x05\x86" * 20 + b"\x85"  # a tuple of few objects, and a text of 8 MB


@pytest.mark.parametrize("kind", ["copies", "shape", "no columns", "number"])
def test_a_small_file_builds_nothing_large(bench, kind):
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    objects = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00|NNNtb\x89]("
    million, digits = b"J" + (10**6).to_bytes(4, "little"), b"\x8b" + (2500).to_bytes(4, "little") + b"\x01" * 2500
    content, message = {
        "copies": (
            b"(K\x01M\xe8\x03\x85" + objects + b"N" * 1000 + b"etq\x02" + (array + b"h\x02b") * 1000,
            "more items than it has bytes",
        ),
        "shape": (array + b"(K\x01" + NESTED + objects + b"Netb", "lengths that are no integers"),
        "no columns": (array + b"(K\x01" + million + b"K\x00\x86" + objects + b"etb", "has 0 rows"),
        "number": (array + b"(K\x01K\x01\x85" + objects + digits + b"etb", "an integer of more than 64 bits"),
    }[kind]
    np.save(bench / "ground_truth_new.npy", object_array(ROWS))
    header, _, _ = (bench / "ground_truth_new.npy").read_bytes().partition(b"\n")
    (bench / "ground_truth_new.npy").write_bytes(header + b"\n\x80\x02" + content + b".")
    with pytest.raises(InputError, match=message):
        read_bench(bench)


def test_damaged_files_are_refused(bench, tmp_path):
    path = bench / "ground_truth_new.npy"
    np.save(path, object_array(ROWS))
    data, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data[: random.integers(len(data)) + 1])
        for place in random.integers(len(damaged), size=random.integers(4)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            rows = read_npy(path)
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert isinstance(rows, list)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:2], "has 2 rows, and query has 3 images"),
        ([*ROWS[:2], [3, [0]]], "about query 3, and query has 3 images, from 0"),
        ([*ROWS[:2], [2, [0]]], "about query 2, and query has 3"),
        ([*ROWS[:2], [1, [4]]], "belongs to images such as number 4, and ref has 4 images"),
        ([*ROWS[:2], [1, ["0"]]], "has a row that is not a number and a list"),
        ([*ROWS[:2], [1, [0] * 5]], "a list of at most 4 numbers.*--matches_csv"),
    ],
)
def test_ground_truth_of_other_images_is_refused(bench, rows, message):
    np.save(bench / "ground_truth_new.npy", object_array(rows))
    with pytest.raises(InputError, match=message):
        read_bench(bench)


def test_images_whose_order_is_ambiguous_are_refused(bench):
    np.save(bench / "ground_truth_new.npy", object_array(ROWS))
    for i, name in enumerate(["9.jpg", "10.jpg", "11.jpg"]):
        (bench / f"query/{i:07}.jpg").rename(bench / "query" / name)
    with pytest.raises(InputError, match="The order of the images is ambiguous"):
        read_bench(bench)
