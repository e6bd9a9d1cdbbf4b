"""The documentation: its links lead somewhere, its commands have these flags, its code runs, and the messages that it
quotes are those of the code.
"""

import ast
import contextlib
import csv
import json
import re
import shlex
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.aggregations import assert_distinct_entries, assert_unit_vectors
from helpers.evaluations import SCRIPTS
from helpers.evaluations import flags_for as evaluation_flags
from helpers.models import MODES, build
from helpers.pages import FENCE, blocks
from helpers.processes import ROOT, run_here, run_script

from datasets import layouts
from datasets.layouts import BenchmarkConfig, find_layout
from datasets.protocols import PROTOCOLS
from model import AGGREGATIONS, aggregation, config, zoo
from utils.cli import search as search_flags
from utils.retrieval.index import Index
from utils.retrieval.index.maintenance import compact, finish
from utils.runtime.flags import positive_float
from utils.runtime.parser import NO_EFFECT_IN_REFERENCE, parse

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
QUOTED = [block.rstrip("\n") for page in PAGES for block in blocks(page, "text")]
INLINE_CODE = re.compile(r"`([^`]+)`")
SHELL = ("", "bash", "sh", "shell", "console")
SMALLER = {  # indexes with smaller descriptors: {kind: flags}
    "fp16": ["--descriptor_dtype=fp16"],
    "int8": ["--descriptor_dtype=int8"],
    "pca": ["--descriptor_dtype=int8", "--pca_dim=6", "--pca_dataset_folder=tiny/images/test/database"],
}
WITH_SUBCOMMANDS = "export.py"
OTHER_PROGRAMS_FLAGS = {"--nproc_per_node", "--nnodes", "--standalone", "--shm-size"}  # in prose: torchrun's, docker's


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


# ---- Published models


def test_the_published_models_have_the_figures_and_checksums_of_the_project():
    page = (ROOT / "docs/models.md").read_text()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", page, re.M)]
    with open(ROOT / "benchmarks/published_recalls.csv", newline="") as file:
        figures = list(csv.DictReader(file))
    stated: dict[tuple[str, str], list[str]] = {}
    for figure in figures:
        mark = {"first-hand": "¹", "second-hand": "²"}[figure["kind"]]
        stated.setdefault((figure["model"], figure["protocol"]), []).append(f"{figure['recall']} {mark}")
    protocols = list(dict.fromkeys(figure["protocol"] for figure in figures))
    assert {protocol.name for protocol in PROTOCOLS} >= set(protocols)
    table = {row[0]: row[1:] for row in rows if len(row) == 1 + len(protocols)}
    for model in {figure["model"] for figure in figures}:
        for protocol, cell in zip(protocols, table[model], strict=True):
            first, *others = stated.get((model, protocol), [""])
            assert cell == (f"{first} ({others[0][:-2]}, {others[1]})" if others else first), (model, protocol)
    readme = (ROOT / "README.md").read_text()
    for entry in zoo.MODEL_ZOO:
        first = [cell.partition(" (")[0].replace(" ¹", "").replace("²", "¹") for cell in table[entry.name][:4]]
        assert f"| `{entry.name}` | {' | '.join(first)} |".replace("|  |", "| |") in readme
    sums = {row[0].partition("]")[0][1:]: (row[0].partition("(")[2][:-1], row[3]) for row in rows if len(row) == 4}
    published = {entry.file: (entry.urls[0], entry.sha256) for entry in zoo.MODEL_ZOO}
    published |= {Path(entry.url).name: (entry.url, entry.sha256) for entry in zoo.FOUNDATIONS.values() if entry.sha256}
    assert {file: each for file, each in sums.items() if file.startswith(("Sela", "dino"))} == published


# ---- Commands


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line in a page's blocks and inline code."""
    code = "\n".join(blocks(page, *SHELL)).replace("\\\n", " ").splitlines()
    for line in code + [" ".join(span.split()) for span in INLINE_CODE.findall(prose(page))]:
        with contextlib.suppress(ValueError):  # an apostrophe in text that is no command
            yield shlex.split(line.removeprefix("$ "), comments=True)


def called_script(words: list[str]) -> tuple[str, list[str]] | None:
    """The script or module of this repository that a command runs, with its sub-command if it has several, and what
    follows; None if there is none.
    """
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
            command = f"{path} {rest[0]}" if path == WITH_SUBCOMMANDS and end and rest[0][0] != "-" else path
            return command, rest[:end]
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
            path, *subcommand = script.split()
            assert (ROOT / path).is_file(), f"there is no {path}"
            result = run_here(path, *subcommand, "--help", cwd=folder)
            assert result.status == 0, result.stderr
            known[script] = set(re.findall(r"^ +(?:-\w[^\n-]*, )?(--[\w-]+)", result.stdout, re.MULTILINE))
        return known[script]

    return flags_of


def test_the_commands_are_found():
    """Otherwise the next test would check nothing."""
    flags = used_flags()
    assert {"eval_rerank.py", "train.py", "search.py", "datasets/synthetic/__main__.py"} <= flags.keys()
    assert {"--datasets_folder", "--model"} <= flags["eval_rerank.py"]
    assert {"--index", "--output"} <= flags["export.py hloc"]


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
@pytest.mark.parametrize("state", ["complete", "unfinished build", "unfinished change", "pruned", "compacted"])
@pytest.mark.parametrize("kind", [*MODES, *SMALLER])
def test_the_numpy_example_reads_an_index(indexes, tmp_path, kind, state):
    folder = tmp_path / "index"
    shutil.copytree(indexes[kind], folder)
    if state in ("pruned", "compacted"):
        finish(folder, [0, 5, 6])
    if state == "compacted":
        compact(folder)
    expected = Index(folder).features()
    if state.startswith("unfinished"):
        for path in {*folder.glob("*.bin"), folder / "paths.txt"} - {folder / "pca.bin"}:
            path.write_bytes(path.read_bytes() + b"/unfinished\n")
        manifest = folder / "manifest.jsonl"
        header, chunk, mark = manifest.read_bytes().splitlines(keepends=True)
        manifest.write_bytes(header + chunk + (mark if state == "unfinished change" else b"") + chunk[:40])
    (code,) = blocks(ROOT / "docs" / "index_format.md", "python")
    assert '"/data/my_index"' in code
    names: dict = {}
    exec(code.replace('"/data/my_index"', repr(str(folder))), names)
    assert names["paths"] == list(expected.images.paths)
    assert len(names["paths"]) == (13 if state in ("pruned", "compacted") else 16)
    for name, array in (("positions", "utms"), ("degrees", "degrees"), ("zones", "zones")):
        np.testing.assert_array_equal(names[name], getattr(expected.images, array))
    for name, features in (("codes", expected.codes), ("descriptors", expected.descriptors)):
        if features is None:
            assert names[name] is None
        else:
            assert names[name].dtype == features[:].dtype
            np.testing.assert_array_equal(names[name], features[:])
    pca = Index(folder, allow_incomplete=True).projections.pca
    assert ("mean" in names) == (kind == "pca") == (pca is not None)
    if pca:
        np.testing.assert_array_equal(names["mean"], pca.mean)
        np.testing.assert_array_equal(names["components"], pca.components)


def extended_module(path: str | Path, line: str, replacement: str, **imported: object) -> types.ModuleType:
    """A module of the project with one line replaced, and more imported, as a page says."""
    source = Path(path).read_text()
    assert source.count(line) == 1
    extended = types.ModuleType("extended")
    vars(extended).update(imported)
    exec(compile(source.replace(line, replacement), "extending.md", "exec"), vars(extended))
    return extended


@pytest.mark.slow
def test_the_example_flag_leaves_out_far_matches(indexes, tiny_benchmark, monkeypatch, capsys):
    declaration, use, *_ = blocks(ROOT / "docs" / "extending.md", "python")
    line = "    results: int = flag("
    settings = extended_module(search_flags.__file__, line, declaration + line, positive_float=positive_float)
    monkeypatch.setitem(sys.modules, "utils.cli.search", settings)
    script = extended_module(ROOT / "search.py", "    if args.json:\n", f"{use}    if args.json:\n")
    image = next((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())

    def distances(*flags):
        command = ["search.py", str(image), f"--index={indexes['float']}", "--device=cpu", "--json", *flags]
        monkeypatch.setattr(sys, "argv", command)
        script.main(parse(settings.SearchArguments, None))
        return [match["distance"] for match in json.loads(capsys.readouterr().out)["queries"][0]["matches"]]

    every = distances()
    assert len(every) == 5 and distances(f"--list_within={every[2]}") == every[:3]
    with pytest.raises(SystemExit, match="2"):
        distances("--list_within=0")
    assert "argument --list_within: '0' is not a number above 0." in capsys.readouterr().err


def test_the_example_aggregation_obeys_the_rules(monkeypatch, shallow_vit):
    _, _, _, code, entry, *_ = blocks(ROOT / "docs" / "extending.md", "python")
    names = dict(vars(aggregation))
    exec(code, names)
    for name, module in eval("{" + entry + "}", names).items():
        assert name not in AGGREGATIONS
        monkeypatch.setitem(AGGREGATIONS, name, module)
        monkeypatch.setattr(config, "AGGREGATION_NAMES", (*config.AGGREGATION_NAMES, name))
        assert_unit_vectors(name)
        assert_distinct_entries()
        assert build("vit-tiny", name).descriptor_dim == 512


def test_the_example_layout_is_found_beside_the_others(tmp_path):
    _, _, branch, *_ = blocks(ROOT / "docs" / "extending.md", "python")
    below = "        return _given_folders(config, has_database)\n"
    extended = extended_module(layouts.__file__, below, below + branch)
    for name in ("town/map", "town/visits", "city/test/database", "city/test/queries"):
        (tmp_path / name).mkdir(parents=True)
    town, city = (BenchmarkConfig(datasets_folder=tmp_path, name=name) for name in ("town", "city"))
    assert extended.find_layout(town)[:3] == (tmp_path / "town", tmp_path / "town/map", [tmp_path / "town/visits"])
    assert extended.find_layout(city) == find_layout(city)


def test_the_example_backbone_is_one_of_the_code():
    *_, size, weights = blocks(ROOT / "docs" / "extending.md", "python")
    assert size in (ROOT / "model" / "config.py").read_text() and weights in (ROOT / "model" / "zoo.py").read_text()


# ---- Messages


@pytest.fixture(scope="module")
def texts() -> str:
    """The texts of the code, without what is filled in."""
    paths = [path for pattern in ("*.py", "model", "datasets", "utils") for path in ROOT.glob(pattern)]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize("quoted", QUOTED, ids=lambda block: block[:40])
def test_every_quoted_message_is_one_of_the_code(texts, quoted):
    """[WORDS] in capitals stand for what the code fills in, and a clause may be a text of its own."""
    parts = re.split(r"\[[A-Z]+\]|\n|(?<=[.:,]) ", quoted)
    assert not [part for part in parts if part.strip(" .:") not in texts]


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
