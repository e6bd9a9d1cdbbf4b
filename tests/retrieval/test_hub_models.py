"""Other projects' models in this pipeline: every trap of a hub repository, and no trace of their code in ours."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluations import Outcome
from helpers.hub_repositories import naive_descriptor, write_repository
from helpers.models import build
from helpers.oracles import naive_l2
from helpers.processes import ROOT, run_here, run_script

from model import InputError, ModelChoice, PlaceRecognizer
from model.config import HubConfig
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.evaluation import load_extractor, model_of
from utils.retrieval.hub import repository as repositories
from utils.retrieval.hub.config import HubChoice
from utils.retrieval.hub.describer import load_hub_model, trial_images
from utils.retrieval.hub.isolation import OURS
from utils.retrieval.index import Index, metadata_of

SIZE = (56, 56)
SETTINGS = ["--resize", *SIZE, "--num_workers=0", "--device=cpu"]
HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("hub") / "their_project")


def load(repository, entry, *arguments, size=SIZE, **options):
    choice = HubChoice(name=f"{repository}:{entry}", arguments=arguments, trust_repo=True, **options)
    return load_hub_model(choice, ExtractionConfig(resize=size), [size])


def refusal(repository, entry, *arguments, **options):
    with pytest.raises(InputError) as caught:
        load(repository, entry, *arguments, **options)
    return str(caught.value)


# ---- Traps


@pytest.mark.parametrize("entry", ["plain", "unit_length", "with_tuple", "parallel", "squeezed"])
def test_every_form_of_descriptors_becomes_the_same_unit_descriptors(repository, entry):
    model = load(repository, entry)
    assert model.descriptor_dim == 32 and not model.config.batch_dependent
    images = trial_images(3, SIZE)
    descriptors = model(images)
    assert descriptors.dtype == torch.float32
    torch.testing.assert_close(descriptors, load(repository, "plain")(images))
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(model(images[:1]), descriptors[:1])


def test_descriptors_of_another_length_are_normalised_and_that_is_said(repository, caplog):
    load(repository, "plain")
    assert "their_project:plain have lengths of" in caplog.text and "they are normalised" in caplog.text
    caplog.clear()
    load(repository, "unit_length")
    assert not caplog.text


@pytest.mark.parametrize(
    ("entry", "size", "words"),
    [
        ("fixed_size", SIZE, "It takes 224 x 224 only: add --resize 224 224."),
        ("multiple_of_14", (100, 57), "multiples of 14: add --resize 98 56."),
        ("multiple_of_32", (100, 57), "multiples of 32: add --resize 96 64."),
        ("two_sizes", SIZE, "it took 224 x 224, 320 x 320: add one of these, such as --resize 224 224."),
        ("no_size", SIZE, "AssertionError: Input image height 56 doesn't match"),
        ("plain", (5000, 56), "no side may exceed 4480 pixels"),
    ],
)
def test_an_image_size_that_the_model_does_not_take(repository, entry, size, words):
    assert words in refusal(repository, entry, size=size)


def test_sizes_that_models_take(repository):
    for entry, size in (("fixed_size", (224, 224)), ("multiple_of_14", (28, 42)), ("plain", (33, 57))):
        assert load(repository, entry, size=size).descriptor_dim == 32


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("a_map", "a map of features of shape [1, 32, 3, 3]"),
        ("a_dict", "a dict with the keys global, local"),
        ("nothing", "nothing (None)"),
        ("tuple_without", "a tuple of a tensor of shape [1, 32] and type torch.float32; a tensor of shape [4, 32]"),
        ("one_for_all", "a tensor of shape [1, 32]"),
        ("no_network", "gives a str. Expected a torch.nn.Module"),
        ("missing", "no such entry. Entries: Net, unit, batch_mean, plain, unit_length,"),
        ("lacks_package", "a package is missing that it needs (ModuleNotFoundError: No module named 'a_package"),
        ("lacks_package_later", "a package is missing that it needs (ModuleNotFoundError: No module named 'a_package"),
        ("exits", "its code failed in hubconf.py, line"),
        ("downloads", "it could not download its code or weights"),
    ],
)
def test_entries_that_cannot_be_used(repository, entry, words):
    assert words in refusal(repository, entry)


def test_arguments_reach_the_entry_as_python_values(repository):
    assert load(repository, "plain", "dim=48").descriptor_dim == 48
    assert "KeyError: 'no medium here'" in refusal(repository, "fails", "size=medium")
    assert "unexpected keyword argument 'colour'" in refusal(repository, "plain", "colour=red")
    values = HubChoice(
        name=f"{repository}:f", arguments=("a=1", "b=1.5", "c=True", "d=None", "e='1'", "f=x=y"), trust_repo=True
    )
    assert values.keywords == {"a": 1, "b": 1.5, "c": True, "d": None, "e": "1", "f": "x=y"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arguments": ("dim",)}, "dim is not KEY=VALUE"),
        ({"arguments": ("dim=1", "dim=2")}, "dim=2 is given twice"),
        ({"arguments": ("dim=[1]",)}, "Expected text, a number, True, False or None"),
        ({"arguments": ("1=2",)}, "must have names"),
        ({"arguments": ("dim=1e999",)}, "The argument dim is inf"),
        ({"arguments": ("force_reload=True",)}, "force_reload would be taken by torch.hub itself"),
        ({"name": "./nowhere:f"}, "nowhere does not exist"),
        ({"trust_repo": False}, "--hub runs the code of"),
        ({"name": "their_project"}, "Expected REPO:ENTRY"),
        ({"name": "https://github.com/o/r:f"}, "does not exist"),
        ({"name": "/nowhere:f"}, "the folder /nowhere does not exist"),
        ({"name": f"{os.sep}:f"}, "has no hubconf.py"),
        ({"name": None, "arguments": ("dim=1",)}, "--hub_args applies to the model of --hub"),
        ({"name": None, "allow_batch_dependence": True}, "--allow_batch_dependence applies to"),
    ],
)
def test_choices_that_are_refused(repository, options, words):
    with pytest.raises(InputError) as caught:
        HubChoice(**{"name": f"{repository}:plain", "trust_repo": True, **options})
    assert words in str(caught.value)


def test_a_model_that_depends_on_the_batch_needs_permission(repository):
    message = refusal(repository, "batch_dependent")
    assert "depends on the other images of its batch" in message and "--allow_batch_dependence" in message
    model = load(repository, "batch_dependent", allow_batch_dependence=True)
    assert model.config.batch_dependent
    assert not load(repository, "plain", allow_batch_dependence=True).config.batch_dependent


def test_a_missing_dependency_of_hubconf_is_named(tmp_path):
    write_repository(tmp_path / "r", hubconf="dependencies = ['torch', 'a_package_that_nobody_has']\ndef f(): pass")
    assert "Missing dependencies: a_package_that_nobody_has" in refusal(tmp_path / "r", "f")


@pytest.mark.parametrize(
    "settings", [{"engine": "openvino"}, {"engine": "onnxruntime"}, {"engine": "auto", "onnx_provider": "cuda"}]
)
def test_other_engines_do_not_run_hub_models(repository, settings):
    choice = HubChoice(name=f"{repository}:plain", trust_repo=True)
    with pytest.raises(InputError, match="PyTorch runs hub models"):
        load_extractor(ModelChoice(), choice, ExtractionConfig(resize=SIZE, **settings))


def test_a_hub_model_is_not_that_of_an_index_of_this_projects_model(repository):
    metadata = metadata_of(build("vit-tiny"), ExtractionConfig(resize=SIZE))
    with pytest.raises(InputError, match="The index mine was built with --backbone=vit-tiny.*Leave --hub out"):
        model_of(metadata, "mine", HubChoice(name=f"{repository}:plain", trust_repo=True))


def test_what_fails_later_is_refused_as_well(repository):
    model = load(repository, "fixed_size", size=(224, 224))
    with pytest.raises(InputError, match="its code failed in hubconf.py, line .*Input image height 56 doesn't match"):
        model(trial_images(1, SIZE))


# ---- Isolation


def state_of_python():
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in OURS}
    return ours, sys.path[:], os.getcwd()


@pytest.mark.parametrize("entry", ["plain", "leaves_traces", "fails", "lacks_package_later"])
def test_a_repository_leaves_no_trace(tmp_path, entry):
    """Neither when it is loaded, nor in a forward pass, nor when either fails."""
    folder = write_repository(tmp_path / "theirs")
    before = state_of_python()
    with contextlib.suppress(InputError):
        load(folder, entry)(trial_images(2, SIZE))
    assert state_of_python() == before
    files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
    assert not [file for file in files if file.startswith(str(tmp_path))]
    assert "models" not in sys.modules


def test_two_repositories_with_modules_of_the_same_names_are_used_in_turns(tmp_path):
    """Modules that are imported at the first call come from the right one, also after the other one's."""
    one = load(write_repository(tmp_path / "one"), "plain")
    other = load(write_repository(tmp_path / "other", **{"models/lengths": "def unit(x): return -x"}), "unit_length")
    images = trial_images(2, SIZE)
    for _ in range(2):
        torch.testing.assert_close(one(images), -other(images))


def test_a_module_that_is_imported_late_runs_once(tmp_path):
    count = tmp_path / "count"
    late = f"NAME = 'theirs'\nopen({str(count)!r}, 'a').write('x')"
    model = load(write_repository(tmp_path / "theirs", **{"utils/late": late}), "plain")
    for _ in range(3):
        model(trial_images(2, SIZE))
    assert count.read_text() == "x"


def test_nested_folders_without_init_files_and_forbidden_imports_are_taken_out_again(tmp_path):
    """The path of such a namespace package is asked of its parent, which must not be gone before."""
    names = [f"part{i}/inner/more/code" for i in range(8)]
    imports = "".join(f"import {name.replace('/', '.')}\n" for name in names)
    late = f"import sys\nsys.modules['nobody_may_import_this'] = None\n{imports}NAME = 'theirs'"
    before = state_of_python()
    model = load(write_repository(tmp_path / "theirs", **{"utils/late": late}, **dict.fromkeys(names, "")), "plain")
    assert model(trial_images(2, SIZE)).shape == (2, 32)
    assert state_of_python() == before and not [name for name in sys.modules if name.startswith("part")]
    sys.modules.pop("nobody_may_import_this", None)


def test_a_folder_of_this_projects_own_repository_is_a_hub_repository_too():
    model = load(ROOT, "SelaVPRplusplus", "backbone=vit-pico", "hashing=False", "rerank=False", "pretrained=False")
    assert model.descriptor_dim == 512


def test_weights_on_first_use_do_not_change_the_commit(tmp_path, capsys):
    folder = write_repository(tmp_path / "theirs")
    first, second = (load(folder, "first_use") for _ in range(2))
    assert (folder / "weights" / "net.pth").exists()
    assert first.config == second.config and first.fingerprint == second.fingerprint
    printed = capsys.readouterr()
    assert "Downloading the weights" in printed.err and not printed.out  # which belongs to the script's results


# ---- Identity


def test_the_commit_is_that_of_git_while_the_code_is_unchanged(tmp_path):
    folder = write_repository(tmp_path / "theirs")
    loose = repositories.commit_of(folder)
    assert loose.startswith("sha256:") and loose == repositories.commit_of(shutil.copytree(folder, tmp_path / "copy"))
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert repositories.commit_of(folder) == head.strip()
    (folder / "weights.pth").write_bytes(b"0")
    assert repositories.commit_of(folder) == head.strip()
    (folder / "model.py").write_text("changed = 1")
    assert repositories.commit_of(folder).startswith("sha256:")
    assert repositories.commit_of(folder) != loose


def test_the_fingerprint_is_that_of_weights_code_and_arguments(tmp_path):
    folder = write_repository(tmp_path / "theirs")
    expected = load(folder, "plain").fingerprint
    assert load(shutil.copytree(folder, tmp_path / "moved"), "plain").fingerprint == expected
    assert load(folder, "plain", "dim=32").fingerprint != expected
    assert load(folder, "unit_length").fingerprint != expected
    (folder / "models" / "more.py").write_text("")
    assert load(folder, "plain").fingerprint != expected


def test_a_network_that_counts_its_calls_keeps_its_fingerprint(repository):
    model = load(repository, "plain")
    model._network.register_buffer("calls", torch.ones(()))
    before = model.fingerprint
    model._network.calls += 1
    assert model.fingerprint == before


@pytest.fixture
def github(tmp_path, monkeypatch):
    """A GitHub of files, with the repository o/r, and an empty cache of torch.hub."""
    archive = tmp_path / "archive.zip"
    folder = write_repository(tmp_path / f"o-r-{HASH[:7]}")
    with zipfile.ZipFile(archive, "w") as file:
        file.mkdir(folder.name)
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(tmp_path))
    head = tmp_path / "api" / "repos" / "o" / "r" / "commits" / "HEAD"
    head.parent.mkdir(parents=True)
    head.write_text(HASH)
    asked = []
    monkeypatch.setattr(repositories, "GITHUB_API", (tmp_path / "api").as_uri())
    monkeypatch.setattr("torch.hub._git_archive_link", lambda *parts: asked.append(parts) or archive.as_uri())
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    return tmp_path, head, asked


def test_a_repository_on_github_is_fetched_once_at_the_commit_of_its_branch(github, caplog):
    folder, head, asked = github
    first = load("o/r", "plain")
    assert first.config == HubConfig(repository="o/r", commit=HASH, entry="plain")
    assert (folder / "hub" / f"o_r_{HASH}" / "hubconf.py").exists()
    assert asked == [("o", "r", HASH)]
    head.unlink()  # no connection
    second = load("o/r", "plain")
    assert "GitHub cannot be asked for o/r" in caplog.text and "taking the copy in" in caplog.text
    assert second.config == first.config and second.fingerprint == first.fingerprint and len(asked) == 1
    assert load(f"o/r:{HASH}", "plain").config.commit == HASH
    assert load("o/r", "plain", commit=HASH).config == first.config  # of an index


def test_a_repository_on_github_that_cannot_be_had(github, monkeypatch):
    _, head, asked = github
    head.unlink()
    assert "GitHub cannot be asked for o/r (" in refusal("o/r", "plain")
    head.write_text("<html>Sign in</html>")
    assert "GitHub answers '<html>Sign in" in refusal("o/r", "plain")

    def not_found(request, **_):
        raise urllib.error.HTTPError(request.full_url, 404, "Not Found", None, None)

    monkeypatch.setattr(repositories, "urlopen", not_found)
    assert "GitHub has no repository o/nothing" in refusal("o/nothing", "plain")
    assert not asked


def test_a_commit_that_somebody_names_must_be_a_branchs(github, monkeypatch):
    """It may be that of a stranger's fork, which GitHub shows under the name of the original."""
    _, head, _ = github
    monkeypatch.setattr("torch.hub._read_url", lambda _: "[]")  # no branch and no tag has it
    (head.parent / HASH[:7]).write_text(HASH)
    assert "is no longer the last one of a branch or tag" in refusal(f"o/r:{HASH[:7]}", "plain")
    message = refusal("o/r", "plain", commit=HASH)
    assert f"Cannot find {HASH} in https://github.com/o/r" in message and "Clone the repository" in message


# ---- Scripts


def positions(folder):
    paths = sorted(folder.iterdir())
    return paths, np.array([[float(text) for text in path.name.split("@")[1:3]] for path in paths])


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "workers"), [("parallel", 0), ("with_tuple", 2)])
def test_recalls_are_those_of_a_naive_loop_over_the_model(repository, tiny_benchmark, tmp_path, entry, workers):
    flags = [f"--datasets_folder={tiny_benchmark}", "--dataset_name=tiny", *SETTINGS, "--recall_values", 1, 2, 3, 5]
    hub = [f"--hub={repository}:{entry}", "--trust_repo", f"--num_workers={workers}", "--infer_batch_size=3"]
    outcome = Outcome(run_script("eval.py", *flags, *hub, cwd=tmp_path), tmp_path)

    split = tiny_benchmark / "tiny" / "images" / "test"
    (database, places), (queries, query_places) = positions(split / "database"), positions(split / "queries")
    described = [[naive_descriptor(path, SIZE) for path in paths] for paths in (database, queries)]
    _, nearest = naive_l2(*described, k=5)
    is_right = np.linalg.norm(query_places[:, None] - places[nearest], axis=2) <= 25
    expected = {str(n): 100 * is_right[:, :n].any(axis=1).mean() for n in (1, 2, 3, 5)}
    assert outcome.results["recalls"] == pytest.approx(expected)
    assert 0 < expected["1"] <= expected["5"] <= 80
    found = [Path(row["database_photo"]).name for row in outcome.rows if int(row["rank"]) <= 5]
    assert found == [database[i].name for row in nearest for i in row]
    commit = repositories.commit_of(repository)
    identity = {"repository": str(repository), "commit": commit, "entry": entry, "arguments": {}}
    assert outcome.results["hub"] == {**identity, "batch_dependent": False}
    assert outcome.results["model"] == f"{repository}:{entry}(), float (commit {commit})"
    assert f"{repository}:{entry}" in (outcome.folder / "report.html").read_text()


@pytest.fixture(scope="module")
def built(repository, tiny_benchmark, tmp_path_factory):
    """A repository, and an index that was built with its model."""
    folder = tmp_path_factory.mktemp("built")
    theirs = shutil.copytree(repository, folder / "theirs")
    images = tiny_benchmark / "tiny" / "images" / "test" / "database"
    hub = [f"--hub={theirs}:plain", "--hub_args", "dim=24", "--trust_repo"]
    result = run_script("build_index.py", images, "--index=index", *hub, *SETTINGS, cwd=folder)
    assert result.status == 0, result.stderr
    return theirs, folder / "index", images


@pytest.mark.slow
def test_an_index_remembers_its_model(built, tmp_path):
    theirs, index, images = built
    stored = json.loads((index / "metadata.json").read_text())
    assert stored["model"] == {
        "repository": str(theirs),
        "commit": repositories.commit_of(theirs),
        "entry": "plain",
        "arguments": {"dim": 24},
        "batch_dependent": False,
    }
    assert (stored["descriptor_dim"], stored["weights_file"]) == (24, "")
    image = sorted(images.iterdir())[3]
    result = run_script("search.py", image, f"--index={index}", "--trust_repo", "--json", "--device=cpu", cwd=tmp_path)
    assert result.status == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["model"]["entry"] == "plain" and answer["model"]["resize"] == [56, 56]
    first = answer["queries"][0]["matches"][0]
    assert Path(first["path"]) == image and first["distance"] == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_an_index_runs_nobodys_code_by_being_used(built, tmp_path):
    theirs, index, images = built
    image = sorted(images.iterdir())[0]
    ran = theirs / "ran"
    shutil.copyfile(theirs / "hubconf.py", tmp_path / "kept.py")
    (theirs / "hubconf.py").write_text(f"open({str(ran)!r}, 'w')\n" + (theirs / "hubconf.py").read_text())
    append = ["build_index.py", images, f"--index={index}", "--append", "--check_content", "--device=cpu"]
    try:
        refused = run_here("search.py", image, f"--index={index}", "--device=cpu", cwd=tmp_path)
        assert refused.status == 2 and "Add --trust_repo if you trust its authors" in refused.stderr
        assert f"--hub={theirs}:plain --hub_args dim=24" in refused.stderr
        shutil.copy(image, images.parent.parent / "new.jpg")
        refused = run_here(append[0], images.parent.parent, *append[2:], cwd=tmp_path)
        assert refused.status == 2 and "Add --trust_repo" in refused.stderr
        with pytest.raises(InputError, match="search.py --trust_repo, which runs that project's code"):
            PlaceRecognizer.open(index)
        assert not ran.exists()
        changed = run_here("search.py", image, f"--index={index}", "--trust_repo", "--device=cpu", cwd=tmp_path)
        assert changed.status == 2 and "built with another model or resize: commit sha256:" in changed.stderr
    finally:
        (images.parent.parent / "new.jpg").unlink(missing_ok=True)
        shutil.copyfile(tmp_path / "kept.py", theirs / "hubconf.py")


@pytest.mark.slow
def test_an_index_whose_repository_has_moved(built, tmp_path):
    theirs, index, images = built
    image = sorted(images.iterdir())[0]
    moved = theirs.rename(tmp_path / "moved")
    try:
        flags = [image, f"--index={index}", "--trust_repo", "--device=cpu"]
        refused = run_here("search.py", *flags, cwd=tmp_path)
        assert refused.status == 2 and "is not there" in refused.stderr and "--hub" in refused.stderr
        found = run_here("search.py", *flags, f"--hub={moved}:plain", cwd=tmp_path)
        assert found.status == 0 and image.name in found.stdout
        flags = [images, f"--index={shutil.copytree(index, tmp_path / 'grown')}", "--append", *SETTINGS]
        flags += [f"--hub={moved}:plain", "--hub_args", "dim=24", "--trust_repo"]
        grown = run_here("build_index.py", *flags, cwd=tmp_path)
        assert grown.status == 0, grown.stderr
    finally:
        moved.rename(theirs)


@pytest.mark.slow
def test_an_index_of_a_hub_model_and_one_of_this_project_are_told_apart(built, checkpoints, tmp_path):
    theirs, index, images = built
    image = sorted(images.iterdir())[0]
    refused = run_here("search.py", image, f"--index={index}", f"--model={checkpoints['float']}", cwd=tmp_path)
    assert refused.status == 2 and "Leave --model out." in refused.stderr
    flags = [f"--load_index={index}", f"--queries_folder={images}", "--backbone=vit-tiny", *SETTINGS]
    refused = run_here("eval.py", *flags, f"--resume={checkpoints['float']}", cwd=tmp_path)
    assert f"model --hub={theirs}:plain --hub_args dim=24 (now --backbone=vit-tiny" in refused.stderr
    twice = run_here("eval.py", *flags, f"--hub={theirs}:plain", "--trust_repo", cwd=tmp_path)
    assert "--hub names the model. Leave other flags of the model out" in twice.stderr


@pytest.mark.slow
def test_an_index_of_a_hub_model_is_extended_and_exported(built, tmp_path):
    theirs, index, images = built
    copy, folder = shutil.copytree(index, tmp_path / "index"), shutil.copytree(images, tmp_path / "images")
    shutil.copy(sorted(images.iterdir())[0], folder / "new.jpg")
    flags = [folder, f"--index={copy}", "--append", "--trust_repo", "--num_workers=0", "--device=cpu"]
    result = run_script("build_index.py", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    grown = Index(copy).features()
    assert len(grown.images) == 16 + 17  # the folder is another one
    new = [Path(path).name for path in grown.images.paths].index("new.jpg")
    descriptors = np.delete(np.asarray(grown.descriptors[:]), new, axis=0)
    np.testing.assert_allclose(descriptors[16:], descriptors[:16], atol=1e-6)
    np.testing.assert_allclose(grown.descriptors[new], descriptors[0], atol=1e-6)
    result = run_here("export.py", "npy", f"--index={copy}", "--output=npy", cwd=tmp_path)
    assert result.status == 0 and np.load(tmp_path / "npy" / "database_descriptors.npy").shape == (33, 24)
    result = run_here("export.py", "milvus", f"--index={copy}", "--to=milvus://localhost:1/a", cwd=tmp_path)
    assert result.status == 2 and "has no codes" in result.stderr
