"""The documentation: its links lead somewhere, its commands have these flags, its code runs, and the messages that it
quotes are those of the code.
"""

import contextlib
import importlib.util
import io
import logging
import re
import shlex
import shutil
import sys
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import test_aggregations
import torch
from helpers import MODES, ROOT, build, run_script
from PIL import Image
from test_benchmark import make_split
from test_build_index import gps_tags, save_photo
from test_eval import SCRIPTS
from test_eval import flags_for as evaluation_flags
from test_train_scripts import flags_for as training_flags
from test_weights import small_checkpoint, write_safetensors

from datasets.benchmark import Benchmark, ImageSet
from datasets.file_names import utm_position
from datasets.folder import PositionConfig, locate_images
from datasets.gsv_cities import GSVCities, PlaceBatches, PlacesConfig
from datasets.images import load_image
from datasets.layouts import BenchmarkConfig, find_images, list_images
from datasets.positions import PositionTable
from datasets.protocols import PROTOCOLS
from model import AGGREGATIONS, InputError, ModelChoice, ModelConfig, aggregation
from model.checkpoint_files import read_checkpoint
from model.versions import check_torch_version
from model.weights import download, load_foundation, load_model, model_state
from model.zoo import MODEL_ZOO
from utils.cli import NO_EFFECT_IN_REFERENCE, parse_evaluation, resolve_device, warn_if_slow
from utils.onnx_export import check_packages, output_errors
from utils.retrieval.config import EngineAddress, ExtractionConfig, IndexConfig, IVFConfig, PCAConfig
from utils.retrieval.engines.milvus import export_index, open_index
from utils.retrieval.engines.milvus.writer import require_text
from utils.retrieval.evaluation import find_pca
from utils.retrieval.export import (
    Match,
    export_hloc,
    export_msls,
    export_npy,
    export_pairs,
    nearest_others,
    read_predictions,
    relative_name,
)
from utils.retrieval.extraction import Forward, extract_chunks
from utils.retrieval.index import Index, IndexWriter
from utils.retrieval.index.inverted_file import InvertedFile, open_inverted_file
from utils.retrieval.pca import check_pca_dim
from utils.retrieval.report.comparison import compare, read_run
from utils.retrieval.search import search_hamming
from utils.runtime.atomic_files import atomic_write, lock_folder
from utils.runtime.script import WORKER_DIED
from utils.training.checkpoints import (
    TrainState,
    initial_model,
    read_run_checkpoint,
    read_two_branch_checkpoint,
    restore,
)
from utils.training.config import TrainingConfig
from utils.training.loader import PlaceLoader
from utils.training.validation import validation_sets

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`]+)`")
SHELL = ("", "bash", "sh", "shell", "console")
SMALLER = {  # indexes with smaller descriptors: {kind: flags}
    "fp16": ["--descriptor_dtype=fp16"],
    "int8": ["--descriptor_dtype=int8"],
    "pca": ["--descriptor_dtype=int8", "--pca_dim=6", "--pca_dataset_folder=tiny/images/test/database"],
}
OTHER_PROGRAMS_FLAGS = {"--nproc_per_node", "--nnodes", "--standalone"}  # in prose; torchrun's


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages in a page."""
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def title(page: Path) -> str:
    """The name of a page in a test's id."""
    return str(page.relative_to(ROOT))


# ---- Links


def links(page: Path) -> list[str]:
    """The targets of a page's links and images, except those on the web."""
    text = INLINE_CODE.sub("", prose(page))
    found = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"^\[[^\]]+\]: *(\S+)", text, re.MULTILINE)
    found += re.findall(r'\b(?:href|src)="([^"]+)"', text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them, and of its HTML anchors."""
    found = set(re.findall(r'\b(?:id|name)="([^"]+)"', prose(page)))
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(page), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeated = (f"{slug}-{i}" for i in range(1, 100))
        found.add(slug if slug not in found else next(name for name in repeated if name not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    broken = []
    for target in links(page):
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert not broken


# ---- Commands


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line in a page's blocks and inline code."""
    code = "\n".join(blocks(page, *SHELL)).replace("\\\n", " ").splitlines()
    for line in code + [" ".join(span.split()) for span in INLINE_CODE.findall(prose(page))]:
        with contextlib.suppress(ValueError):  # an apostrophe in text that is no command
            yield shlex.split(line.removeprefix("$ "), comments=True)


def called_script(words: list[str]) -> tuple[str, list[str]] | None:
    """The script or module of this repository that a command runs, and what follows it; None if there is none."""
    for i, word in enumerate(words):
        path, rest = None, words[i + 1 :]
        if word == "-m" and rest:
            module = rest[0].replace(".", "/")
            files = (f"{module}.py", f"{module}/__main__.py")
            path, rest = next((file for file in files if (ROOT / file).is_file()), None), rest[1:]
        elif word.endswith(".py"):
            started = i and re.match(r"python|torchrun|--", Path(words[i - 1]).name)
            if started or (i == 0 and rest and (ROOT / word).is_file()):
                path = word
        if path:
            end = next((j for j, other in enumerate(rest) if other in ("|", "&&", "||", ";", ">")), len(rest))
            return path, rest[:end]
    return None


def used_flags() -> dict[str, set[str]]:
    """{script: its flags in the commands of all pages}."""
    flags: dict[str, set[str]] = {}
    for page in PAGES:
        for script, rest in filter(None, map(called_script, commands(page))):
            flags.setdefault(script, set()).update(word.partition("=")[0] for word in rest if word.startswith("--"))
    return dict(sorted(flags.items()))


@pytest.fixture(scope="module")
def known_flags(tmp_path_factory) -> Callable[[str], set[str]]:
    """known_flags(script): the flags that its --help lists."""
    folder, known = tmp_path_factory.mktemp("help"), {}

    def flags_of(script: str) -> set[str]:
        if script not in known:
            assert (ROOT / script).is_file(), f"there is no {script}"
            result = run_script(script, "--help", cwd=folder)
            assert result.status == 0, result.stderr
            known[script] = set(re.findall(r"^ +(?:-\w[^\n-]*, )?(--[\w-]+)", result.stdout, re.MULTILINE))
        return known[script]

    return flags_of


def test_the_commands_are_found():
    """Otherwise the next test would check nothing."""
    flags = used_flags()
    assert {"eval_rerank.py", "train.py", "search.py", "datasets/synthetic/__main__.py"} <= flags.keys()
    assert {"--datasets_folder", "--resume", "--backbone"} <= flags["eval_rerank.py"]


@pytest.mark.slow
@pytest.mark.parametrize("script", used_flags())
def test_every_flag_in_a_command_is_one_of_the_script(known_flags, script):
    assert not used_flags()[script] - known_flags(script)


@pytest.mark.slow
def test_every_flag_in_prose_is_one_of_some_script(known_flags):
    scripts = [*(path.name for path in ROOT.glob("*.py") if "cli_main" in path.read_text()), *used_flags()]
    refused = {f"--{name}" for name in NO_EFFECT_IN_REFERENCE}
    known = refused.union(OTHER_PROGRAMS_FLAGS, *map(known_flags, scripts))
    unknown = {
        (title(page), flag)
        for page in PAGES
        for span in INLINE_CODE.findall(prose(page))
        if span.startswith("--")
        for flag in re.findall(r"--[\w-]+", span)
        if flag not in known
    }
    assert not unknown


# ---- Code


@pytest.fixture(scope="module")
def indexes(tiny_benchmark, checkpoints, tmp_path_factory) -> dict[str, Path]:
    """{kind: index folder}, built by the scripts."""
    folder = tmp_path_factory.mktemp("indexes")
    for kind, more in (*((mode, []) for mode in MODES), *SMALLER.items()):
        mode = "two_branch" if kind in SMALLER else kind
        flags = evaluation_flags(tiny_benchmark, checkpoints[mode], f"--save_index={folder / kind}", *more)
        result = run_script(SCRIPTS[mode], *flags, cwd=folder)
        assert result.status == 0, result.stderr
    return {kind: folder / kind for kind in (*MODES, *SMALLER)}


@pytest.mark.slow
@pytest.mark.parametrize("state", ["complete", "with an unfinished chunk"])
@pytest.mark.parametrize("kind", [*MODES, *SMALLER])
def test_the_numpy_example_reads_an_index(indexes, tmp_path, kind, state):
    folder = tmp_path / "index"
    shutil.copytree(indexes[kind], folder)
    expected = Index(folder).features()
    if state != "complete":
        for path in {*folder.glob("*.bin"), folder / "paths.txt"} - {folder / "pca.bin"}:
            path.write_bytes(path.read_bytes() + b"/unfinished\n")
        manifest = folder / "manifest.jsonl"
        first_line = manifest.read_bytes().splitlines(keepends=True)[0]
        manifest.write_bytes(first_line + first_line[:40])
    (code,) = blocks(ROOT / "docs" / "index_format.md", "python")
    assert '"/data/my_index"' in code
    names: dict = {}
    exec(code.replace('"/data/my_index"', repr(str(folder))), names)
    assert names["paths"] == list(expected.images.paths) and len(names["paths"]) == 16
    np.testing.assert_array_equal(names["positions"], expected.images.utms)
    for name, features in (("codes", expected.codes), ("descriptors", expected.descriptors)):
        if features is None:
            assert names[name] is None
        else:
            assert names[name].dtype == features[:].dtype
            np.testing.assert_array_equal(names[name], features[:])
    pca = Index(folder, allow_incomplete=True).pca
    assert ("mean" in names) == (kind == "pca") == (pca is not None)
    if pca:
        np.testing.assert_array_equal(names["mean"], pca.mean)
        np.testing.assert_array_equal(names["components"], pca.components)


def test_the_example_aggregation_obeys_the_rules(monkeypatch):
    code, entry = blocks(ROOT / "docs" / "extending.md", "python")
    names = dict(vars(aggregation))
    exec(code, names)
    for name, module in eval("{" + entry + "}", names).items():
        assert name not in AGGREGATIONS
        monkeypatch.setitem(AGGREGATIONS, name, module)
        test_aggregations.test_a_model_with_it_gives_unit_vectors_in_float32(name)
        test_aggregations.test_their_entries_have_distinct_names()
        assert build("vit-tiny", name).descriptor_dim == 512


# ---- Messages


@dataclass
class Setting:
    """What the functions below provoke errors with."""

    folder: Path
    benchmark: Path
    checkpoints: dict[str, Path]
    foundation: Path
    city: Path
    indexes: dict[str, Path]
    monkeypatch: pytest.MonkeyPatch


def refusal(call: Callable, *arguments: object, **options: object) -> str:
    """The message of the error that a call raises."""
    with pytest.raises((InputError, ImportError)) as caught:
        call(*arguments, **options)
    return str(caught.value)


def script_refusal(script: str, *flags: object, cwd: Path) -> str:
    """The message with which a script ends."""
    result = run_script(script, *flags, cwd=cwd)
    assert result.status == 2, result
    return result.stderr.split("error: ", 1)[1].strip()


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """The warnings that the block logs."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return print, ("ran",)


class SmallMemory(torch.nn.Module):
    """Has memory for one image only."""

    def forward(self, images, float_branch):
        if len(images) > 1:
            raise torch.OutOfMemoryError
        return images.mean(dim=(2, 3))


def out_of_memory(*arguments, **options):
    """What a search does on a GPU without free memory."""
    raise torch.OutOfMemoryError


class NaN(torch.nn.Module):
    """A model whose output is NaN."""

    def forward(self, images, float_branch):
        return torch.full((len(images), 8), torch.nan)


class Mean(torch.nn.Module):
    """A model whose descriptor is the mean colour."""

    def forward(self, images, float_branch):
        return images.mean(dim=(2, 3))


def data_messages(s: Setting) -> Iterator[str]:
    yield script_refusal("eval.py", *evaluation_flags("", s.checkpoints["float"])[1:], cwd=s.folder)
    yield refusal(Benchmark, BenchmarkConfig(datasets_folder=s.benchmark, name="pitts30k"))
    yield refusal(validation_sets, [BenchmarkConfig(datasets_folder=s.benchmark, name="pitts30k", split="val")])
    (s.folder / "empty").mkdir()
    yield refusal(list_images, s.folder / "empty")
    yield refusal(find_images, [f"{s.folder}/empty/*"])
    yield from position_messages(s)
    yield from layout_messages(s)
    zoned = make_split(s.folder / "zones", ["@1@2@32@N@.jpg"], ["@1@2@33@N@.jpg"]).parents[2]
    yield refusal(Benchmark, BenchmarkConfig(datasets_folder=zoned, name="town"))
    yield refusal(utm_position, "images/photo.jpg")
    yield refusal(load_image, s.folder / "missing.jpg")
    (s.folder / "page.jpg").write_text("<html>")
    yield refusal(load_image, s.folder / "page.jpg")
    Image.new("1", (65_536, 1)).save(s.folder / "long.png")
    yield refusal(load_image, s.folder / "long.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (14, 14)).save(s.folder / "phone.jpg", exif=exif)
    with logged() as warnings:
        list(extract_chunks(Mean(), ImageSet.without_positions([s.folder / "phone.jpg"]), ExtractionConfig()))
    yield from warnings

    broken = shutil.copytree(s.benchmark, s.folder / "benchmark")
    image = sorted((broken / "tiny/images/test/database").iterdir())[3]
    image.write_bytes(image.read_bytes()[:800])
    yield script_refusal("eval.py", *evaluation_flags(broken, s.checkpoints["float"]), cwd=s.folder)

    broken = shutil.copytree(s.city / "gsv_cities", s.folder / "gsv_cities")
    for path in sorted((broken / "Images" / "Birch").glob("Birch_0000003_*"))[:2]:
        path.write_bytes(b"")
    config = PlacesConfig(cities=("Alder", "Birch"), image_size=(56, 56), images_per_place=3)
    loader = PlaceLoader(GSVCities(broken, config), TrainingConfig(batch_size=1))
    with logged() as warnings:
        yield refusal(list, loader.batches(0, 0))
    yield from warnings
    table = broken / "Dataframes" / "Alder.csv"
    header, first, *rest = table.read_text().splitlines()
    table.write_text("\n".join([header, first, *rest, first]))
    with logged() as warnings:
        GSVCities(broken, config)
    yield from warnings
    for text in ("\0", '"1'):
        table.write_text(f"{header}\n{text}")
        yield refusal(GSVCities, broken, config)
    yield refusal(GSVCities, "/nowhere", config)
    yield refusal(GSVCities, broken, replace(config, cities=("Alder", "Elm", "Fir")))


def position_messages(s: Setting) -> Iterator[str]:
    path = Path(save_photo(s.folder / "photos" / "a.jpg", {1: "N"}))
    yield refusal(list_images, path)
    for source in ("names", "exif"):
        yield refusal(locate_images, [str(path)], path.parent, PositionConfig(source=source))
    save_photo(path, gps_tags(0, 0))
    with logged() as warnings:
        locate_images([str(path)], path.parent, PositionConfig())
    yield from warnings
    save_photo(path, gps_tags(37.78, -122.41))
    yield refusal(locate_images, ["@1000@1000@.jpg", str(path)], path.parent, PositionConfig())


def layout_messages(s: Setting) -> Iterator[str]:
    datasets = s.folder / "layouts"
    split = shutil.copytree(s.benchmark / "tiny/images/test", datasets / "tiny/test")
    config = BenchmarkConfig(datasets_folder=datasets, name="tiny")
    (s.folder / "list.txt").write_text("a b c d")
    yield refusal(Benchmark, replace(config, queries_list=s.folder / "list.txt"))
    (split / "queries").rename(split / "queries_night")
    yield refusal(Benchmark, config)
    (split / "gallery").mkdir()
    yield refusal(Benchmark, config)
    (split / "gallery" / "link").symlink_to(split)
    yield refusal(list_images, split / "gallery")
    (split / "database_images_paths.txt").write_text("missing.jpg")
    yield refusal(list_images, split / "database")
    odd = s.folder / "odd"
    (odd / "line\nbreak").mkdir(parents=True)
    (odd / "link.jpg").symlink_to("nowhere")
    yield refusal(list_images, odd)
    (odd / "link.jpg").unlink()
    (odd / "line\nbreak" / "a.jpg").touch()
    yield refusal(list_images, odd)
    (odd / "loop").symlink_to("loop")
    yield refusal(list_images, odd)

    table = s.folder / "positions.csv"
    for text in ("a,b", "latitude,longitude,image\n91,0,a.jpg", "latitude,longitude,image\n1,2,a.jpg\n1,90,b.jpg"):
        table.write_text(text)
        yield refusal(PositionTable, table, s.folder)
    table.write_text("image,easting,northing\nb.jpg,1000,1000\n")
    yield refusal(PositionTable(table, s.folder).utms, [str(s.folder / "database/a.jpg")], s.folder / "database")


def checkpoint_messages(s: Setting) -> Iterator[str]:
    run, cut, trap = (s.folder / name for name in ("last_model.pth", "cut.pth", "trap.pth"))
    torch.save({"train_state": asdict(TrainState(arguments={"lr": 0.1}, world_size=2))}, run)
    cut.write_bytes(s.checkpoints["float"].read_bytes()[:20000])
    torch.save({"model": Trap()}, trap)

    yield script_refusal("eval.py", *evaluation_flags(s.benchmark, s.checkpoints["two_branch"]), cwd=s.folder)
    yield refusal(load_model, ModelConfig(backbone="vit-tiny"), s.foundation)
    yield refusal(read_checkpoint, s.folder / "none.pth")
    yield refusal(read_checkpoint, cut)
    yield refusal(read_checkpoint, trap)
    yield from file_messages(s)
    yield refusal(torch.hub.load, str(ROOT), "SelaVPRplusplus", source="local", backbone="vit-tiny")

    def offline(*arguments: object) -> None:
        raise urllib.error.URLError("no network")

    s.monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    s.monkeypatch.setattr(torch.hub, "get_dir", lambda: str(s.folder))
    yield refusal(download, MODEL_ZOO[0].urls, flag="--resume")

    cached = s.folder / "checkpoints" / MODEL_ZOO[0].file
    cached.write_bytes(b"")
    yield refusal(download, MODEL_ZOO[0].urls, flag="--resume", sha256=64 * "a")
    yield refusal(load_foundation, build("vit-tiny"))
    yield script_refusal("train.py", *training_flags(s.city, f"--resume={s.checkpoints['float']}"), cwd=s.folder)
    yield refusal(initial_model, ModelChoice(), init_from=run, foundation=None, train_backbone=True)
    yield refusal(read_two_branch_checkpoint, s.checkpoints["two_branch"])
    yield refusal(read_run_checkpoint, run)
    (s.folder / "best_model.pth").touch()
    yield refusal(restore, read_run_checkpoint(run), None, {"lr": 0.2})
    yield refusal(restore, read_run_checkpoint(run), None, {"lr": 0.1})


def file_messages(s: Setting) -> Iterator[str]:
    path = s.folder / "file.pth"
    state = read_checkpoint(s.checkpoints["float"])["model_state_dict"]
    for entries in ({"linear2.bias": 0.5}, {"linear2.bias": torch.ones(1)}):  # beside "module.linear2.bias"
        yield refusal(model_state, {**state, **entries}, path)
    write_safetensors(path, {"model_config": "{"})
    path.write_bytes(path.read_bytes()[:-1])
    yield refusal(read_checkpoint, path)
    torch.save({"model_state_dict": {"a": torch.ones(1)}, "model_config": {"backbone": "vit-tiny"}}, path)
    yield refusal(load_model, ModelChoice(), path)
    with pytest.MonkeyPatch.context() as without_package:
        without_package.setitem(sys.modules, "safetensors.torch", None)
        write_safetensors(path)
        yield refusal(read_checkpoint, path)
    for name in ("archive/constants.pkl", "notes.txt"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "")
        yield refusal(read_checkpoint, path)
    small_checkpoint(path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(10.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    yield refusal(read_checkpoint, path)
    torch.serialization.set_crc32_options(False)
    small_checkpoint(path)
    torch.serialization.set_crc32_options(True)
    with logged() as warnings:
        read_checkpoint(path)
    yield from warnings


def flag_messages(s: Setting) -> Iterator[str]:
    flags = evaluation_flags(s.benchmark, s.checkpoints["float"])
    for more in (
        ["--hashing"],
        ["--num_preds_to_save=101"],
        ["--margin=0.1"],
        ["--resize", "100", "322"],
        ["--resize", "14", "4494"],
        ["--aggregation=salad"],
        ["--load_index=index", "--pca_dim=6", "--pca_dataset_folder=tiny"],
    ):
        s.monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, flags), *more])
        with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.raises(SystemExit):
            parse_evaluation(None)
        yield stderr.getvalue().split("error: ", 1)[1].strip()


def report_messages(s: Setting) -> Iterator[str]:
    yield refusal(read_run, s.folder)
    header = "query,rank,database_photo,distance,correct,metric"
    for name, correct in (("a", "1"), ("b", "0"), ("c", "")):
        (s.folder / name).mkdir()
        (s.folder / name / "results.json").write_text("{}")
        (s.folder / name / "predictions.csv").write_text(f"{header}\n{name}.jpg,1,d.jpg,0.5,{correct},l2\n")
    yield refusal(read_run, s.folder / "c")
    yield refusal(compare, [read_run(s.folder / name) for name in ("a", "b")])


def index_messages(s: Setting) -> Iterator[str]:
    folder = s.indexes["two_branch"]
    flags = evaluation_flags(s.benchmark, s.checkpoints["two_branch"], f"--load_index={folder}", "--resize", 70, 56)
    yield script_refusal("eval_rerank.py", *flags, cwd=s.folder)
    other = replace(Index(folder).metadata, resize=[70, 56])
    yield refusal(IndexWriter, IndexConfig(folder=folder, append=True), other)
    yield refusal(IndexWriter, IndexConfig(folder=folder), other)
    yield refusal(Index, s.folder / "nothing")
    damaged, cut, old = (s.folder / name for name in ("damaged", "cut", "old"))
    for copy in (damaged, cut):
        shutil.copytree(folder, copy)
    (damaged / "codes.bin").write_bytes(bytes((folder / "codes.bin").stat().st_size))
    yield refusal(Index, damaged)
    (cut / "utms.bin").write_bytes((folder / "utms.bin").read_bytes()[:-9])
    yield refusal(Index, cut)
    (cut / "utms.bin").write_bytes((folder / "utms.bin").read_bytes() + b"more")
    yield refusal(Index, cut)
    for kind, dim in (("pca", 5), ("float", 6)):
        yield refusal(find_pca, None, ExtractionConfig(), PCAConfig(folder=s.folder, dim=dim), index=s.indexes[kind])
    damaged_pca = shutil.copytree(s.indexes["pca"], s.folder / "damaged_pca")
    (damaged_pca / "pca.bin").write_bytes(bytes((damaged_pca / "pca.bin").stat().st_size))
    yield refusal(Index, damaged_pca)
    incomplete = shutil.copytree(folder, s.folder / "incomplete")
    (incomplete / "manifest.jsonl").write_bytes((folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)[0])
    yield refusal(Index, incomplete)
    with logged() as warnings:
        Index(incomplete, allow_incomplete=True)
    yield from warnings
    yield refusal(IndexWriter, IndexConfig(folder=Path("/dev/null")), other)
    with IndexWriter(IndexConfig(folder=s.folder / "new"), other) as writer:
        yield refusal(writer.to_extract, ImageSet.without_positions(["a\nb.jpg"]))
        yield refusal(writer.to_extract, ImageSet(["a.jpg"], np.zeros((1, 2)), "32N"))
    moved = ImageSet(Index(folder).images.paths[:1], np.zeros((1, 2)))
    with logged() as warnings, IndexWriter(IndexConfig(folder=folder, append=True), Index(folder).metadata) as writer:
        writer.to_extract(moved)
    yield from warnings
    old.mkdir()
    (old / "header.json").write_text('{"format": 1}')
    yield refusal(Index, old)
    flags = evaluation_flags(s.benchmark, s.checkpoints["hashing"], "--load_index=milvus://127.0.0.1:1/a")
    yield script_refusal("eval_hashing.py", *flags, "--ivf", 2, 1, cwd=s.folder)
    address = EngineAddress.parse("milvus://127.0.0.1:1/a")
    yield refusal(EngineAddress.parse, "milvus://a@b/c")
    yield refusal(export_index, Index(s.indexes["float"]), address)
    yield refusal(export_index, Index(s.indexes["pca"]), address)
    yield refusal(require_text, "\udcff.jpg")
    if importlib.util.find_spec("pymilvus"):
        yield refusal(open_index, address)
    else:
        yield "No Milvus server answers at 127.0.0.1:1. Start it, or check the address and TLS."
    with s.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pymilvus", None)
        yield refusal(open_index, address)
    codes = Index(folder).features().codes
    yield refusal(InvertedFile, codes, IVFConfig(nlist=17, nprobe=5))
    yield refusal(InvertedFile(codes, IVFConfig(nlist=4, nprobe=1)).search, codes, 16)
    with logged() as warnings:
        for part in (codes, codes[1:], codes):
            open_inverted_file(part, IVFConfig(nlist=4, nprobe=1), s.folder)
            if len(part) < len(codes):
                (s.folder / "ivf_4.bin").write_bytes(b"[]")
        open_inverted_file(codes, IVFConfig(nlist=4, nprobe=1), s.folder / "nowhere")
    yield from warnings


def export_messages(s: Setting) -> Iterator[str]:
    yield refusal(read_predictions, s.folder, 1)
    run = s.folder / "run"
    run.mkdir()
    (run / "predictions.csv").write_text("query,rank,database_photo\na.jpg,1,b.jpg\n")
    yield refusal(read_predictions, s.folder, 1)
    yield refusal(read_predictions, run, 1)
    (run / "results.json").write_text('{"folder": "/images"}')
    yield refusal(read_predictions, run, 2)
    output = s.folder / "output"
    yield refusal(export_npy, Index(s.indexes["hashing"]), output, "/", dtype="fp16")
    index = Index(s.indexes["two_branch"])
    yield refusal(lambda: next(nearest_others(index, 16, rerank_num=100)))
    for name in ("a b.jpg", "\udcff.jpg"):
        yield refusal(export_pairs, [Match("/a.jpg", [f"/{name}"])], output, "/")
    yield refusal(relative_name, "/a/b.jpg", "/c")
    same = [Match("/a/@1@2@3@4@5@6@key@@.jpg", ["/b/@1@2@3@4@5@6@key@@.jpg"])]
    for matches in (read_predictions(run, 1), same):
        yield refusal(export_msls, matches, output)
    with s.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        yield refusal(export_hloc, index, output, "/", dtype="fp16")
    yield script_refusal("export_features.py", f"--run={run}", "--to", "pairs", run, cwd=s.folder)


def other_messages(s: Setting) -> Iterator[str]:
    yield refusal(check_torch_version, "2.5.1+cu124")
    s.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield refusal(resolve_device, "cuda")
    s.monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with logged() as warnings:
        Forward(SmallMemory(), ExtractionConfig(batch_size=2))(torch.rand(2, 3, 14, 14))
        s.monkeypatch.setattr("utils.cli.cpu_supports", lambda precision: False)
        warn_if_slow("cpu", "bf16")
        s.monkeypatch.setattr("utils.retrieval.gpu_search._search", out_of_memory)
        codes = np.zeros((2, 64), np.uint8)
        search_hamming(codes, codes, 1, device="cuda")
    yield from warnings
    yield refusal(Forward(NaN(), ExtractionConfig()), torch.rand(1, 3, 14, 14))
    with s.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        yield refusal(check_packages)
    descriptor = np.ones((1, 2))
    yield refusal(output_errors, {"descriptor": descriptor}, {"descriptor": 2 * descriptor}, 1e-4)
    yield refusal(check_pca_dim, 17, 16, 512)
    with lock_folder(s.folder):
        s.monkeypatch.setattr("utils.runtime.atomic_files.LOCK_SECONDS", 0)
        yield refusal(lock_folder, s.folder)
    yield WORKER_DIED
    yield refusal(lambda: atomic_write(s.folder / "nowhere" / "results.json").__enter__())
    yield refusal(PlaceBatches, [range(26)], 27)
    yield script_refusal("train.py", *training_flags(s.city, "--train_backbone", "--lr=1e12"), cwd=s.folder)


@pytest.fixture(scope="module")
def messages(tmp_path_factory, tiny_benchmark, checkpoints, foundation, city, indexes) -> list[str]:
    """The messages that troubleshooting.md explains, provoked from the code."""
    found: list[str] = []
    sources = (
        data_messages,
        checkpoint_messages,
        flag_messages,
        report_messages,
        index_messages,
        export_messages,
        other_messages,
    )
    for provoke in sources:
        with pytest.MonkeyPatch.context() as monkeypatch:
            folder = tmp_path_factory.mktemp("provoked")
            found += provoke(Setting(folder, tiny_benchmark, checkpoints, foundation, city, indexes, monkeypatch))
    return found


QUOTED = [(page, block.rstrip("\n")) for page in PAGES for block in blocks(page, "text")]


def matches(quoted: str, message: str) -> bool:
    """Whether a quoted block is this message, or one line of it. [WORDS] in capitals stand for anything."""
    pattern = ".+".join(map(re.escape, re.split(r"\[[A-Z]+\]", quoted)))
    return any(re.fullmatch(pattern, part) for part in (message, *message.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("quoted", [block for _, block in QUOTED], ids=lambda block: block[:40])
def test_every_quoted_message_is_one_of_the_code(messages, quoted):
    assert any(matches(quoted, message) for message in messages)


@pytest.mark.slow
def test_every_provoked_message_is_explained(messages):
    page = ROOT / "docs" / "troubleshooting.md"
    quoted = [block for source, block in QUOTED if source == page]
    assert len(quoted) > 30
    assert not [message for message in messages if not any(matches(block, message) for block in quoted)]


# ---- Tables


def test_the_table_of_protocols_is_that_of_the_code():
    page = (ROOT / "docs" / "datasets.md").read_text().split("## Protocols")[1].split("## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == [protocol.name for protocol in PROTOCOLS]
    for protocol, (_, database, queries, threshold, note) in zip(PROTOCOLS, rows[2:], strict=True):
        for count, shown in ((protocol.database, database), (protocol.queries, queries)):
            number = int(shown.removeprefix("about ").replace(",", ""))
            assert number in count if isinstance(count, range) else shown == f"{count:,}"
        expected = f"{protocol.threshold:g} m" if protocol.frames is None else f"{protocol.frames} frame"
        assert threshold.startswith(expected) and note.endswith(protocol.note)
        assert ("*unverified*" in note) != protocol.verified
        assert all(season in note for season in protocol.seasons or ())


def test_the_flags_that_had_no_effect_are_listed():
    page = (ROOT / "docs" / "migrating.md").read_text()
    listed = page.split("### Flags that must go")[1].split("###")[0]
    assert set(re.findall(r"`--(\w+)`", listed)) == set(NO_EFFECT_IN_REFERENCE)
