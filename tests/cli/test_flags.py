"""Flags that settings declare: each fills its field, or the parser is not built; and those of the commands."""

import argparse
import copy
import dataclasses
import json
import os
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.processes import ROOT, last_of_each

from datasets.layouts import find_images
from datasets.places.config import OwnPhotosConfig
from datasets.synthetic.__main__ import CityArguments
from datasets.unified import UnifiedConfig
from datasets.unified.__main__ import main as unified_main
from utils.cli.codes import TrainCodesArguments
from utils.cli.evaluation import FLOAT_FLAGS, FloatEvaluation, HashingEvaluation, TwoBranchEvaluation
from utils.cli.export import parse_export
from utils.cli.search import BuildIndexArguments, SearchArguments
from utils.cli.serve import ServeArguments
from utils.cli.training import FloatTraining, HashingTraining, TwoBranchTraining
from utils.retrieval.config import index_folder, index_location
from utils.runtime.flags import all_flags, fixed, flag, part, positive_int, switch
from utils.runtime.parser import build_parser, changeable_flags, declared_flags, options_of, parse, settings_from

SCRIPTS = {
    "eval.py": FloatEvaluation,
    "eval_hashing.py": HashingEvaluation,
    "eval_rerank.py": TwoBranchEvaluation,
    "train.py": FloatTraining,
    "train_hashing.py": HashingTraining,
    "train_rerank.py": TwoBranchTraining,
    "train_codes.py": TrainCodesArguments,
    "build_index.py": BuildIndexArguments,
    "search.py": SearchArguments,
    "serve.py": ServeArguments,
}
COMMANDS = {
    **SCRIPTS,
    "datasets.synthetic": CityArguments,
    "datasets.unified": UnifiedConfig,
    "datasets.places": OwnPhotosConfig,
}
TRAININGS = ["train.py", "train_hashing.py", "train_rerank.py"]
REQUIRED = {  # with a value for each flag that a script needs
    **dict.fromkeys(("eval.py", "eval_hashing.py", "eval_rerank.py"), ["--datasets_folder=data", "--resume=model.pth"]),
    **dict.fromkeys(("train.py", "train_hashing.py"), ["--datasets_folder=data"]),
    "train_rerank.py": ["--datasets_folder=data", "--resume=model.pth"],
    "train_codes.py": ["--index=index", "--output=codes.bin"],
    "build_index.py": ["images", "--index=index", f"--resume={os.devnull}"],
    "search.py": ["image.jpg", "--index=index"],
    "serve.py": ["--index=index"],
    **dict.fromkeys(("datasets.synthetic", "datasets.unified"), ["output"]),
    "datasets.places": ["photos", "--output=output"],
}
MAY_CHANGE = set(  # of the flags of a resumed run: they affect paths, speed or reports, not the model
    "resume init_from save_dir datasets_folder gsv_cities_folder dataset_name foundation_model_path "
    "patience num_workers infer_batch_size memory_share device compile recall_values rerank_num tensorboard "
    "report_queries no_report".split()
)
VALUES = ("7", "0.25", "cpu")  # each type takes one of them


def settings_of(settings, *argv):
    """The settings of a command line."""
    parser = build_parser(settings, "A test.")
    return settings_from(parser, settings, parser.parse_args(argv))


def refusal(settings, capsys, *argv):
    """The message with which a command line is refused."""
    with pytest.raises(SystemExit) as error:
        settings_of(settings, *argv)
    assert error.value.code == 2
    return capsys.readouterr().err.rpartition("error: ")[2]


@dataclass(frozen=True, kw_only=True)
class Search:
    max_distance: int | None = flag("largest distance", type=positive_int, default=None)
    exact: bool = switch("search exactly", name="approximate", inverse=True)
    device: str = fixed("cpu")


@dataclass(frozen=True, kw_only=True)
class Script:
    search: Search = part("search")
    top: int = flag("results", type=positive_int)


def test_settings_are_filled_from_flags_and_are_plain_dataclasses():
    assert settings_of(Script, "--top=3") == Script(search=Search(), top=3)
    given = settings_of(Script, "--top=3", "--max_distance=9", "--approximate")
    assert given == Script(search=Search(max_distance=9, exact=False), top=3)
    assert given.search.device == "cpu"


def test_a_required_flag_is_required(capsys):
    assert "--top" in refusal(Script, capsys)
    assert "--top: '0' is not a whole number from 1" in refusal(Script, capsys, "--top=0")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("form", ["{0}=a {0}=a", "{0} a {0} b", "{0}=a {0} b"])
def test_a_flag_given_twice_is_an_error(script, form, capsys):
    of_indexes = ("search.py", "build_index.py", "serve.py", "train_codes.py")
    flag_of = "--index" if script in of_indexes else "--resume"
    words = form.format(flag_of).split()
    needed = [word for word in REQUIRED[script] if not word.startswith(flag_of)]
    assert f"{flag_of}: given more than once" in refusal(SCRIPTS[script], capsys, *needed, *words)


def test_every_parser_of_the_project_is_the_one_that_refuses_a_flag_given_twice(capsys):
    others = re.compile(r"argparse\.ArgumentParser\(")
    ignored = {".venv", ".venv-oldest", "tests"}
    files = [path for path in ROOT.rglob("*.py") if not ignored & set(path.relative_to(ROOT).parts)]
    assert [path for path in files if others.search(path.read_text(errors="replace"))] == []
    for argv, flag_of in (
        (["export.py", "npy", "--index=a", "--output=b", "--index=c"], "--index"),
        (["export.py", "npy", "--index=a", "--output=b", "--output=b"], "--output"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(sys, "argv", argv)
            parse_export(None)
        assert f"{flag_of}: given more than once" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        unified_main(["out", "--msls", "a", "--msls", "b"])
    assert "--msls: given more than once" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model.pth", "list.txt", "positions.csv", "photos/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("DATASETS_FOLDER", "~/data")
    for script, settings in SCRIPTS.items():
        parser = build_parser(settings, "A test.")
        paths = [action for action in parser._actions if action.metavar in ("FILE", "DIR", "FOLDER", "IMAGES")]
        assert paths, script
        for action in paths:
            convert = parser._registry_get("type", action.type, action.type)
            assert convert("~/a") == tmp_path / "a", (script, action.dest)
    settings = settings_of(TwoBranchEvaluation, "--resume=~/model.pth", "--queries_list=~/list.txt")
    assert settings.data.datasets_folder == tmp_path / "data" and settings.model.resume == tmp_path / "model.pth"
    assert index_location("~/a") == index_folder("~/a") == tmp_path / "a"
    assert find_images(["~/photos/*.jpg"]) == find_images(["~/photos"]) == [str(tmp_path / "photos/a.jpg")]


def test_a_field_without_flag_or_value_is_an_error():
    @dataclass(frozen=True, kw_only=True)
    class Forgotten:
        top: int = flag("results", default=5)
        speed: int = 3

    @dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Search = part("search", changed={"device": dataclasses.field(default="cpu")})

    with pytest.raises(TypeError, match="Forgotten.speed has neither a flag nor a fixed value"):
        build_parser(Forgotten, "")
    with pytest.raises(TypeError, match="Search.device has neither a flag nor a fixed value"):
        build_parser(Outer, "")


@pytest.mark.parametrize(
    "options", [{"fixed": {"max_hamming": 3}}, {"changed": {"max_hamming": flag("largest distance", default=3)}}]
)
def test_a_misspelt_field_is_an_error(options):
    """The field is max_distance, and would silently keep its default."""

    @dataclass(frozen=True, kw_only=True)
    class Misspelt:
        search: Search = part("search", **options)

    with pytest.raises(TypeError, match="Search has no field max_hamming"):
        build_parser(Misspelt, "")


def test_fields_that_a_part_fixes_or_changes():
    @dataclass(frozen=True, kw_only=True)
    class Changed:
        search: Search = part(
            "search",
            fixed={"exact": True},
            changed={"max_distance": flag("metres", name="metres", type=int, default=1)},
        )

    assert [declared.name for declared in declared_flags(Changed, "")] == ["metres"]
    assert settings_of(Changed, "--metres=2") == Changed(search=Search(max_distance=2))


def test_two_fields_may_share_a_flag_but_not_declare_it_differently():
    @dataclass(frozen=True, kw_only=True)
    class Twice:
        one: Search = part("search")
        other: Search = part("search")

    @dataclass(frozen=True, kw_only=True)
    class Differently:
        search: Search = part("search")
        max_distance: int = flag("largest distance", type=positive_int, default=3)

    search = Search(max_distance=2)
    assert settings_of(Twice, "--max_distance=2") == Twice(one=search, other=search)
    with pytest.raises(TypeError, match="--max_distance is declared twice"):
        build_parser(Differently, "")


def test_defaults_that_depend_on_other_flags():
    @dataclass(frozen=True, kw_only=True)
    class Chain:
        last: int = flag("last", type=int, default_from=lambda flags: flags["middle"] + 1)
        middle: int = flag("middle", type=int, default_from=lambda flags: flags["first"] * 10)
        first: int = flag("first", type=int, default=2)
        flags: dict = all_flags()

    assert settings_of(Chain).flags == {"first": 2, "middle": 20, "last": 21}
    assert settings_of(Chain, "--first=3").last == 31
    assert settings_of(Chain, "--middle=0") == Chain(
        last=1, middle=0, first=2, flags={"first": 2, "middle": 0, "last": 1}
    )
    assert settings_of(Chain, "--last=5").flags == {"first": 2, "middle": 20, "last": 5}


def test_values_are_converted_and_all_of_them_are_kept_as_plain_ones():
    @dataclass(frozen=True, kw_only=True)
    class Plain:
        folder: Path = flag("folder", type=Path, default=Path("data"))
        pair: tuple[int, ...] = flag("pair", type=int, nargs=2, default=(1, 2), convert=sorted)
        top: Search | None = flag("top", default=None, convert=lambda text: Search(max_distance=int(text)))
        flags: dict = all_flags()

    settings = settings_of(Plain, "--pair", "4", "3", "--top=5")
    assert settings.pair == (3, 4) and settings.top == Search(max_distance=5)
    assert settings.flags == {"folder": "data", "pair": [3, 4], "top": [5, True, "cpu"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_help_shows_every_flag_in_a_group(script):
    settings = SCRIPTS[script]
    text = build_parser(settings, "A test.").format_help()
    general, _, groups = text.partition("\noptions:\n")[2].partition("\n\n")
    assert general.split() == "-h, --help show this help message and exit".split()
    order = "data model training images descriptors index upkeep search report service access speed other".split()
    headings = re.findall(r"^(\w+):$", groups, re.MULTILINE)
    others = {"search.py": {"speed", "other"}, "serve.py": {"access", "speed"}}  # whose images follow the index
    others["train_codes.py"] = {"training", "other"}  # which reads no images
    expected = others.get(script, {"images", "speed", "other"})
    assert headings == [name for name in order if name in headings] and expected <= set(headings)
    shown = re.findall(r"^  (?:--)?(\w+)", groups, re.MULTILINE)
    assert sorted(shown) == sorted(
        {"folder": "IMAGES", "first_images": "IMAGE"}.get(name, name)
        for name in (declared.name for declared in declared_flags(settings, ""))
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_parsing_changes_no_argument(script):
    settings = SCRIPTS[script]
    parser = build_parser(settings, "A test.")
    args = parser.parse_args([*REQUIRED[script], *([] if script == "train_codes.py" else ["--device=cpu"])])
    before = copy.deepcopy(vars(args))
    first = settings_from(parser, settings, args)
    assert vars(args) == before
    assert settings_from(parser, settings, args) == first


def command_lines_of(declared):
    """A flag with valid values, one of which is not its default."""
    options = options_of(declared.name, declared.flag, declared.kind)
    if options.get("action") == "store_true":
        return [[f"--{declared.name}"]]
    if "choices" in options:
        return [[f"--{declared.name}", str(value)] for value in options["choices"]]
    value = next(value for value in VALUES if accepts(options.get("type", str), value))
    return [[f"--{declared.name}", *[value] * (options["nargs"] if isinstance(options.get("nargs"), int) else 1)]]


def accepts(convert, text):
    try:
        convert(text)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


def without_checks(settings, monkeypatch):
    """Lets the settings, and those in them, have values that do not go together."""
    monkeypatch.setattr(settings, "__post_init__", lambda self: None, raising=False)
    for kind in typing.get_type_hints(settings).values():
        if dataclasses.is_dataclass(kind):
            without_checks(kind, monkeypatch)


@pytest.mark.parametrize("script", COMMANDS)
def test_every_flag_fills_a_field(script, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # so that --device=cpu is not the default
    settings = COMMANDS[script]
    without_checks(settings, monkeypatch)
    parser = build_parser(settings, "A test.")

    def fields(*argv):
        built = settings_from(parser, settings, parser.parse_args(last_of_each([*REQUIRED[script], *argv])))
        return {name: value for name, value in dataclasses.asdict(built).items() if name != "flags"}

    usual = fields()
    for declared in declared_flags(settings, "other"):
        if not declared.flag.options.get("positional"):
            assert any(fields(*line) != usual for line in command_lines_of(declared)), declared.name


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "flags" in typing.get_type_hints(SCRIPTS[script])])
def test_the_values_of_all_flags_are_kept_as_json_can_hold_them(script):
    settings = SCRIPTS[script]
    flags = settings_of(settings, *REQUIRED[script], "--device=cpu").flags
    assert flags.keys() == {declared.name for declared in declared_flags(settings, "")}
    assert json.loads(json.dumps(flags)) == flags
    assert (
        flags["datasets_folder"] == "data" and flags["recall_values"] == [1, 5, 10, 100] and flags["num_workers"] >= 1
    )


def test_an_address_is_kept_without_its_token(monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "secret")
    flags = [*REQUIRED["eval_rerank.py"], "--load_index=milvus://host:1/name"]
    args = settings_of(TwoBranchEvaluation, *flags)
    assert args.index.load_index.token == "secret"
    assert args.flags["load_index"] == "milvus://host:1/name" and "secret" not in json.dumps(args.flags)


@pytest.mark.parametrize("script", TRAININGS)
def test_what_a_resumed_run_may_change(script):
    settings = SCRIPTS[script]
    names = {declared.name for declared in declared_flags(settings, "")}
    assert changeable_flags(settings) == MAY_CHANGE & names
    assert settings_of(settings, *REQUIRED[script]).must_match.keys() == names - MAY_CHANGE


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("eval.py", ["--queries_folder=q"], "Give both --database_folder and --queries_folder"),
        ("eval.py", ["--hashing", "--rerank"], "--hashing --rerank does not apply to eval.py; use eval_rerank.py."),
        ("train_hashing.py", ["--rerank"], "--rerank does not apply to train_hashing.py; use train_rerank.py."),
        ("eval_rerank.py", ["--ivf", "3", "4"], "--ivf 3 4: NPROBE must not exceed NLIST"),
        ("build_index.py", ["--positions_csv=missing"], "--positions_csv: no file missing."),
        ("build_index.py", ["--resume=missing"], "--resume: no file missing."),
        ("build_index.py", ["--positions=exif", f"--positions_csv={os.devnull}"], "Give either that or --positions."),
    ],
)
def test_what_the_settings_refuse_ends_the_script_with_their_message(script, flags, words, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [script])
    assert words in refusal(SCRIPTS[script], capsys, *last_of_each([*REQUIRED[script], *flags]))


def test_the_reason_against_a_flag_that_a_user_may_expect(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["eval_hashing.py", *REQUIRED["eval_hashing.py"], "--pca_dim=3"])
    with pytest.raises(SystemExit):
        parse(HashingEvaluation, "A test.", refused=FLOAT_FLAGS)
    assert capsys.readouterr().err.endswith(f"error: --pca_dim {FLOAT_FLAGS['--pca_dim']}\n")
