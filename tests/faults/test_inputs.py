"""Made-up inputs of every kind: they are read, or refused with a message; nothing else happens."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from helpers.indexes import content, features_of, make_chunk, writer_of
from outcomes import REFUSALS, problems_of_an_end
from processes import start_forked
from trials import TRIALS, trials

from datasets.benchmark import Benchmark
from datasets.cities import COLUMNS
from datasets.config import PlacesConfig
from datasets.gsv_cities import GSVCities
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig, is_system_name
from datasets.positions import PositionTable
from utils.cli.evaluation import FloatEvaluation, TwoBranchEvaluation
from utils.cli.search import BuildIndexArguments, SearchArguments
from utils.cli.training import FloatTraining, HashingTraining
from utils.retrieval.index import Index
from utils.runtime.atomic_files import atomic_write
from utils.runtime.parser import parse

hypothesis = pytest.importorskip("hypothesis", reason="the tests of made-up inputs need hypothesis")
st = pytest.importorskip("hypothesis.strategies")

EXAMPLES, FIXED_EXAMPLES = 100, 25  # per trial
NUMBERS = [*"0 -1 nan inf -inf 1e400 1_0 0x10 ٣ 1.5".split(), "", " ", "9" * 26, "-" + "9" * 26, "9" * 5000]
TEXTS = st.text(max_size=30) | st.sampled_from(
    [*NUMBERS, "\0", "\ud800", "\r", "\n", '"', "a,b", "é", "\ufeff", "x" * 200_000]
)
NAMES = st.binary(min_size=1, max_size=245).filter(lambda name: not {0, ord("/")} & set(name))
ODD = st.sampled_from([10**400, -1, 2**63])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def explore(rng, tally, request):
    """explore(what, strategy, check): calls check(value) for made-up values, which may refuse them."""

    count = FIXED_EXAMPLES if "fixed" in request.node.callspec.id else EXAMPLES

    def run(what: str, strategy: st.SearchStrategy, check: Callable[[Any], object]) -> None:
        failures: list[str] = []

        @hypothesis.seed(rng.randrange(2**32))
        @hypothesis.settings(
            max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(strategy)
        def examples(value: Any) -> None:
            failures.clear()
            try:
                check(value)
            except REFUSALS:
                return
            except Exception as error:  # the last failure is that of the simplest value
                text = str(error).splitlines()[0][:120] if str(error) else ""
                failures.append(f"{type(error).__name__}: {text} for {value!r:.200}")
                raise

        tally.tries += count - 1
        try:
            examples()
        except Exception:  # noqa: BLE001 - `failures` describes it, unless the harness itself failed
            if not failures:
                raise
        tally.add(what, failures)

    return run


@trials(-(-TRIALS // 4), fixed=1)
def test_names_of_images(explore, tally, tiny_benchmark, metadata, tmp_path):
    """They are listed, evaluated, written to an index and to a CSV file."""
    folder, queries = tmp_path / "images", tmp_path / "queries"
    photo, other = sorted((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())[:2]

    def check(value: tuple[list[bytes], bool]) -> None:
        names, labels = value
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        for target, source in ((folder, photo), (queries, other)):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            for name in names:
                os.link(source, os.fsencode(target) + b"/" + name + b".jpg")
        config = BenchmarkConfig(name="made up", database_folder=folder, queries_folder=queries, labels=labels)
        benchmark = Benchmark(config)
        visible = [name for name in names if not is_system_name(os.fsdecode(name) + ".jpg")]
        assert len(benchmark.database) == len(visible), "images are missing"
        assert str(benchmark) and isinstance(benchmark.conditions, dict)
        if labels:
            assert len(benchmark.positives) == len(benchmark.queries)
        paths = list(benchmark.database.paths)
        with writer_of(tmp_path / "index", metadata) as writer:
            chunk = make_chunk(0, len(paths))
            writer.append(chunk._replace(images=ImageSet.at_utms(paths, chunk.images.utms)))
            writer.features()
        assert list(Index(tmp_path / "index").images.paths) == paths
        with atomic_write(tmp_path / "predictions.csv") as file:
            csv.writer(file).writerows([[path] for path in paths])

    fields = st.lists(st.sampled_from(["5e5", "6.95e6", *NUMBERS[:12]]) | st.text("abc é.-", max_size=5), max_size=16)
    utm_names = fields.map(lambda parts: os.fsencode("@".join(["", *parts, ""]).replace("/", ""))[:245])
    names = st.lists(NAMES | utm_names, min_size=1, max_size=4, unique=True)
    explore("names of images", st.tuples(names, st.booleans()), check)
    tally.finish()


TABLE = st.lists(st.lists(TEXTS | st.sampled_from(["a.jpg", "1", "500000.5", "12.5"]), max_size=9), max_size=5)


def as_csv(header: list[str], rows: list[list[str]]) -> bytes:
    lines = [",".join(header), *(",".join(row) for row in rows)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def files_with(headers: list[list[str]]) -> st.SearchStrategy[bytes]:
    """Files of tables with one of these headers, and of anything else, in several encodings."""
    tables = st.builds(as_csv, st.sampled_from(headers), TABLE)
    others = tables.map(lambda data: data.decode("utf-8", "replace").encode("utf-16"))
    return tables | others | st.binary(max_size=200) | st.tuples(tables, st.binary(max_size=9)).map(b"".join)


@trials(-(-TRIALS // 4), fixed=1)
def test_files_with_positions(explore, tally, tmp_path):
    def check(data: bytes) -> None:
        (tmp_path / "positions.csv").write_bytes(data)
        PositionTable(tmp_path / "positions.csv", tmp_path).locate([str(tmp_path / "a.jpg")], tmp_path)

    metres = ["image", "easting", "northing"]
    headers = [metres, [*metres, "zone"], ["image", "latitude", "longitude"], ["image", "image", "easting"], []]
    explore("--positions_csv", files_with(headers), check)
    tally.finish()


@trials(-(-TRIALS // 4))
def test_files_with_training_places(explore, tally, tmp_path):
    for name in ("Dataframes", "Images/Made"):
        (tmp_path / name).mkdir(parents=True)
    row = st.tuples(*[st.sampled_from([*NUMBERS, "1", "2", "Made", "é"])] * len(COLUMNS)).map(list)
    tables = st.lists(row, max_size=5).map(lambda rows: as_csv(list(COLUMNS), rows))

    def check(data: bytes) -> None:
        (tmp_path / "Dataframes" / "Made.csv").write_bytes(data)
        GSVCities(tmp_path, PlacesConfig(cities=("Made",), image_size=(56, 56), images_per_place=2))

    explore(
        "Dataframes/<City>.csv", tables | files_with([list(COLUMNS), [*COLUMNS, "more"], list(COLUMNS[:-1])]), check
    )
    tally.finish()


@trials(-(-TRIALS // 4))
@pytest.mark.parametrize("name", ["queries_list", "database_images_paths.txt"])
def test_lists_of_images(explore, tally, name, tiny_benchmark, tmp_path):
    source = tiny_benchmark / "tiny" / "images" / "test"
    for folder in ("database", "queries"):
        shutil.copytree(source / folder, tmp_path / "data" / folder)
    names = [path.name for path in (source / ("queries" if name == "queries_list" else "database")).iterdir()]
    path = tmp_path / "list" if name == "queries_list" else tmp_path / "data" / name
    folders = {f"{part}_folder": tmp_path / "data" / part for part in ("database", "queries")}
    config = BenchmarkConfig(name="tiny", **folders)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        Benchmark(replace(config, queries_list=path if name == "queries_list" else None))

    lines = st.lists(st.sampled_from([*names, ".", "..", "/", ""]) | TEXTS, max_size=5)
    files = lines.map(lambda parts: "\n".join(parts).encode("utf-8", "surrogatepass")) | st.binary(max_size=100)
    explore(name, files, check)
    tally.finish()


@trials(-(-TRIALS // 2))
@pytest.mark.parametrize("verify", [True, False])
def test_changed_headers_of_an_index(explore, tally, verify, metadata, tmp_path):
    """metadata.json and manifest.jsonl, of which values are replaced, removed, added."""
    folder = tmp_path / "index"
    with writer_of(folder, metadata) as writer:
        writer.append(make_chunk(0, 3))
        writer.append(make_chunk(3, 2))
        writer.features()
    files, original = content(folder), features_of(folder)
    header = json.loads(files["metadata.json"])
    entries = [json.loads(line) for line in files["manifest.jsonl"].splitlines()]

    def check(change: tuple[str, str, object]) -> None:
        target, key, value = change
        for name, data in files.items():
            (folder / name).write_bytes(data)
        if target == "metadata":
            (folder / "metadata.json").write_text(json.dumps({**header, key: value}))
        elif target == "manifest":
            changed = [{**entries[0], key: value}, *entries[1:]]
            (folder / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in changed))
        else:
            text = json.dumps(value) if key != "deep" else "[" * 100_000
            with open(folder / target, "a") as file:
                file.write(text + "\n")
        features = features_of(folder, verify=verify)
        assert not verify or features == original, "other features are loaded without a word"

    targets = st.sampled_from(["metadata", "manifest", "metadata.json", "manifest.jsonl"])
    keys = st.sampled_from([*header, *entries[0], "complete", "deep", "more"])
    values = JSON | st.integers(-2, 6) | st.sampled_from(["published", "fp16", True, 3.0, {"complete": 5}, entries[0]])
    explore(f"a changed header, verify={verify}", st.tuples(targets, keys, values), check)
    tally.finish()


COMMANDS: dict[str, type] = {
    "eval.py": FloatEvaluation,
    "eval_rerank.py": TwoBranchEvaluation,
    "train.py": FloatTraining,
    "train_hashing.py": HashingTraining,
    "build_index.py": BuildIndexArguments,
    "search.py": SearchArguments,
}
NUMERIC = {
    "eval.py": (
        "infer_batch_size num_workers memory_share seed recall_values val_positive_dist_threshold resize pca_dim "
        "sequence"
    ).split(),
    "train.py": (
        "epochs_num patience train_batch_size images_per_place randaugment_ops lr warmup_steps ema weight_decay seed "
        "num_workers infer_batch_size memory_share recall_values val_positive_dist_threshold image_size resize"
    ).split(),
    "build_index.py": "infer_batch_size num_workers resize".split(),
    "search.py": "results rerank_num infer_batch_size sequence".split(),
}
NUMERIC["eval_rerank.py"] = [*NUMERIC["eval.py"], "rerank_num", "ivf"]
NUMERIC["train_hashing.py"] = [*NUMERIC["train.py"], "pair_fraction"]
ENDLESS = ("num_workers", "epochs_num", "randaugment_ops")  # scripts do as they are told, and start 2**32 processes
PAIRS = ("resize", "image_size", "ivf")
VALID = ["--datasets_folder=data", "--resume=model.pth"]
VALID_OF = {"search.py": ["image.jpg", "--index=index"], "build_index.py": ["images", "--index=index", "--pretrained"]}


@trials(-(-TRIALS // 4), fixed=1)
@pytest.mark.parametrize("script", COMMANDS)
def test_command_lines_are_understood_or_refused(explore, tally, script, monkeypatch, capsys):
    valid = VALID_OF.get(script, VALID)
    flags = st.tuples(st.sampled_from(NUMERIC[script]), st.sampled_from(NUMBERS[:-1]) | st.text(max_size=4))

    def check(changes: list[tuple[str, str]]) -> None:
        more = [text for flag, value in changes for text in (f"--{flag}", *[value] * (1 + (flag in PAIRS)))]
        monkeypatch.setattr(sys, "argv", [script, *valid, *more])
        try:
            parse(COMMANDS[script], "")
        except SystemExit as error:
            assert error.code == 2, f"status {error.code}"
            assert "error: " in capsys.readouterr().err, "no message"

    explore(f"flags of {script}", st.lists(flags, min_size=1, max_size=3), check)
    tally.finish()


@pytest.mark.slow
@trials()
def test_scripts_with_extreme_numbers_run_or_end_with_a_message(rng, commands, tally, tmp_path):
    """What the parser accepts must not be too large for what follows."""
    script = rng.choice(list(COMMANDS))
    flag = rng.choice([flag for flag in NUMERIC[script] if flag not in ENDLESS])
    value = rng.choice([*NUMBERS, "9" * 26, "1e300", "1e-300", "4294967296", str(2**63)])
    flags = [f"--{flag}", *[value] * (1 + (flag in PAIRS))]
    subject = start_forked(script, [*commands(script), *flags], tmp_path)
    problems = subject.end(seconds=60)
    problems += problems_of_an_end(subject.wait(0), subject.stderr)
    tally.add(f"{script} {' '.join(flags)[:80]}", problems)
    tally.finish()
