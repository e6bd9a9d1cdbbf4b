"""PlaceRecognizer.save and open: the scripts' index, random histories with kills against a dictionary, wrong use."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from helpers.kills import KILLED, run_and_kill
from helpers.models import MODES, build, filled
from helpers.processes import run_here
from PIL import Image

from model import Description, InputError, PlaceRecognizer
from model.index.files import IndexFiles
from model.index.manifest import Header
from model.index.metadata import RECORD
from model.index.writing import RowWriter
from model.weights import model_content
from utils.retrieval.index import Index, maintenance
from utils.retrieval.index.writer import find_changes

SIZE = (56, 70)
MODELS = {mode: filled(build("vit-nano", **flags)) for mode, flags in MODES.items()}


def recognizer_of(mode="two_branch", **settings):
    return PlaceRecognizer(MODELS[mode], resize=SIZE, **settings)


def reopen(folder, mode="two_branch", **settings):
    return PlaceRecognizer.open(folder, MODELS[mode], **settings)


def made_up(count, seed=0, mode="two_branch"):
    """A Description of images that do not exist."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 256, (count, 64), dtype=np.uint8)
    descriptor = rng.standard_normal((count, 512)).astype(np.float32)
    descriptor /= np.linalg.norm(descriptor, axis=1, keepdims=True)
    return Description(None if mode == "float" else code, None if mode == "hashing" else descriptor)


def rows_of(features, rows):
    return Description(*(None if array is None else array[rows] for array in features))


def content_of(folder):
    """{id: name} of what was saved."""
    index = Index(folder)
    return dict(zip(index.ids.tolist(), map(int, index.images.paths), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_saved_comes_back(tmp_path, mode):
    recognizer = recognizer_of(mode)
    ids = recognizer.add(
        made_up(2100, mode=mode),
        names=["", "é"][1:] * 2100,
        positions=np.arange(4200.0).reshape(-1, 2) + 1e5,
        times=np.arange(2100) / 8,
    )
    recognizer.add(made_up(3, 1, mode))  # without names, positions and times
    recognizer.remove([0, 1050, 2102])
    recognizer.save(tmp_path / "index")
    opened = reopen(tmp_path / "index", mode)
    queries = made_up(5, 2, mode)
    assert len(opened) == 2100 and opened.search(queries, 40) == recognizer.search(queries, 40)
    [match] = opened.search(rows_of(made_up(2100, mode=mode), [7]), 1)[0]
    assert (match.id, match.name, match.position, match.time) == (ids[7], "é", (100014.0, 100015.0), 0.875)
    assert opened.add(made_up(1, 3, mode)) == [2103], "ids of images that were removed are not used again"
    with pytest.raises(InputError, match="There is no image 1050"):
        opened.remove([1050])
    opened.remove([7])
    opened.save(tmp_path / "index")
    again = reopen(tmp_path / "index", mode)
    assert len(again) == 2100 and again.search(queries, 40) == opened.search(queries, 40)
    assert again.search(queries, 9, among=[5, 2103]) == opened.search(queries, 9, among=[5, 2103])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pth"
    torch.save(model_content(MODELS["two_branch"]), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        values = np.random.default_rng(i).integers(0, 256, (3, 4, 3)).astype(np.uint8)
        Image.fromarray(values).resize((80, 60), Image.Resampling.NEAREST).save(folder / f"{i}.png")
        os.utime(folder / f"{i}.png", (1e9, 1e9))
    return folder


def script(*flags, cwd):
    result = run_here(*flags, "--device=cpu", cwd=cwd)
    assert result.status == 0, result.stderr
    return result.stdout


def matches_of_script(folder, *images):
    found = json.loads(script("search.py", *images, f"--index={folder}", "--json", cwd=folder.parent))
    return [[(m["path"], m["distance"]) for m in query["matches"]] for query in found["queries"]]


@pytest.mark.slow
def test_programs_and_scripts_share_one_folder(tmp_path, photos, checkpoint):
    """build_index.py, a program that adds, search.py, build_index.py --append, and the program again."""
    first = shutil.copytree(photos, tmp_path / "photos")
    (first / "7.png").unlink()
    flags = [f"--model={checkpoint}", "--resize", *map(str, SIZE), "--num_workers=0"]
    script("build_index.py", "photos", "--index=index", *flags, cwd=tmp_path)
    program = PlaceRecognizer.open(tmp_path / "index")
    shutil.copy2(photos / "7.png", first / "7.png")
    program.add(str(first / "7.png"), times=3.5)
    program.save(tmp_path / "index")
    query = str(photos / "3.png")
    [expected] = matches_of_script(tmp_path / "index", query)
    assert [(m.name, m.distance) for m in program.search(query, 5)[0]] == expected
    said = script("build_index.py", "photos", "--index=index", "--append", "--num_workers=0", cwd=tmp_path)
    assert "8 images in photos: 8 unchanged." in said
    (first / "0.png").unlink()
    script("build_index.py", "photos", "--index=index", "--append", "--prune", "--compact", cwd=tmp_path)
    again = PlaceRecognizer.open(tmp_path / "index", verify=False)
    assert len(again) == 7 and [m.id for m in again.search(query, 9)[0]][0] == 3
    assert again.search(str(first / "7.png"), 1)[0][0].time == 3.5
    with pytest.raises(InputError, match="Another program has changed the index"):
        program.add(photos / "0.png")
        program.save(tmp_path / "index")
    program.save(tmp_path / "elsewhere")
    assert len(PlaceRecognizer.open(tmp_path / "elsewhere")) == 9


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_matches_are_those_of_the_scripts_in_memory_and_through_folders(tmp_path, photos, mode):
    checkpoint, queries = tmp_path / "model.pth", [str(photos / f"{i}.png") for i in (3, 5)]
    torch.save(model_content(MODELS[mode]), checkpoint)
    flags = [f"--model={checkpoint}", "--resize", *map(str, SIZE), "--num_workers=0"]
    script("build_index.py", photos, "--index=index", *flags, cwd=tmp_path)
    expected = matches_of_script(tmp_path / "index", *queries)
    program = PlaceRecognizer(checkpoint, resize=SIZE)
    program.add([photos / f"{i}.png" for i in range(8)])
    program.save(tmp_path / "own")
    for recognizer in (program, *(PlaceRecognizer.open(tmp_path / name) for name in ("index", "own"))):
        for found, matches in zip(recognizer.search(queries, 5), expected, strict=True):
            assert [match.name for match in found] == [path for path, _ in matches]
            np.testing.assert_allclose([m.distance for m in found], [distance for _, distance in matches], atol=1e-6)
    assert matches_of_script(tmp_path / "own", *queries) == expected


def run_history(folder, mode, seed, steps):
    """Random operations on a recogniser and on {id: row of made_up}; a step may be killed while it saves."""
    rng, stock = random.Random(seed), made_up(4000, seed, mode)
    recognizer, known, saved, count = recognizer_of(mode), {}, None, 0
    for _ in range(steps):
        step = rng.choice(["add", "add", "remove", "search", "save", "save", "open"])
        if step == "add":
            rows = list(range(count, count + rng.choice([1, 1, 3, 40])))
            ids = recognizer.add(
                Description(*(None if a is None else a[rows] for a in stock)), names=list(map(str, rows))
            )
            known |= zip(ids, rows, strict=True)
            count += len(rows)
        elif step == "remove" and known:
            gone = rng.sample(sorted(known), min(len(known), rng.randint(1, 4)))
            recognizer.remove(gone)
            for i in gone:
                del known[i]
        elif step == "search" and known:
            some = rng.sample(sorted(known), min(len(known), 4))
            rows = [known[i] for i in some]
            found = recognizer.search(rows_of(stock, rows), len(known) + 3)
            assert [(m[0].id, m[0].name) for m in found] == [(i, str(row)) for i, row in zip(some, rows, strict=True)]
            assert all(sorted(match.id for match in matches) == sorted(known) for matches in found)
        elif step == "save":
            kill_at = rng.choice([0, rng.randint(1, 30)])
            if kill_at:
                status = run_and_kill(lambda r=recognizer: r.save(folder), kill_at, rng)
                assert status in (0, KILLED)
                if folder.exists():
                    recognizer = reopen(folder, mode)
                    found = {
                        i: int(recognizer._entries[row].name) for row, i in enumerate(recognizer._rows.snapshot().ids)
                    }
                    assert found in (known, saved) and (status == KILLED or found == known)
                    known, saved = found, dict(found)
            else:
                recognizer.save(folder)
                saved = dict(known)
        elif step == "open" and saved is not None:
            recognizer, known = reopen(folder, mode, verify=rng.random() < 0.5), dict(saved)
        assert len(recognizer) == len(known)


@pytest.mark.parametrize("mode", MODES)
def test_any_history_with_kills_gives_what_a_dictionary_gives(tmp_path, mode):
    for seed in range(2):
        run_history(tmp_path / str(seed), mode, seed, steps=60)


@pytest.mark.proof
@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_operations_give_what_a_dictionary_gives(tmp_path, mode):
    run_history(tmp_path / "index", mode, 99, steps=1000)


def test_wrong_folders_are_refused(tmp_path):
    recognizer = recognizer_of()
    recognizer.add(made_up(3))
    (tmp_path / "taken").mkdir()
    for folder, words in (("taken", "taken exists already"), ("nowhere/index", "Cannot write .*nowhere")):
        with pytest.raises(InputError, match=words):
            recognizer.save(tmp_path / folder)
    with pytest.raises(InputError, match="No index in"):
        PlaceRecognizer.open(tmp_path / "taken")
    recognizer.save(tmp_path / "index")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    with pytest.raises(InputError, match="does not name the weights of its model. Give them"):
        PlaceRecognizer.open(tmp_path / "index")
    with pytest.raises(InputError, match="was built with another model"):
        PlaceRecognizer.open(tmp_path / "index", build("vit-nano", hashing=True, rerank=True).eval())
    half = shutil.copytree(tmp_path / "index", tmp_path / "half")
    lines = (half / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (half / "manifest.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(InputError, match="is incomplete"):
        reopen(half)
    (half / "metadata.json").write_text('{"format": 9}')
    with pytest.raises(InputError, match="format 9; this version reads format 6"):
        reopen(half)
    with pytest.raises(InputError, match="The name '': expected a text"):
        recognizer.add(made_up(1), names=[""])


def test_an_empty_recogniser_can_be_saved(tmp_path):
    recognizer = recognizer_of()
    recognizer.save(tmp_path / "index")
    opened = reopen(tmp_path / "index")
    assert len(opened) == 0 and opened.search(made_up(1)) == [[]]
    opened.add(made_up(2))
    opened.save(tmp_path / "index")
    assert len(Index(tmp_path / "index")) == 2


def test_what_an_index_cannot_hold_is_refused_before_it_is_remembered(tmp_path):
    recognizer = recognizer_of()
    for name in ("x" * 70_000, "\ud800", "./lobby", "a\nb"):
        with pytest.raises(InputError):
            recognizer.add(made_up(1), names=[name])
    with pytest.raises(InputError, match="metres beyond"):
        recognizer.add(made_up(1), positions=[(2e8, 0)])
    recognizer.save(tmp_path / "index")
    assert len(recognizer) == len(reopen(tmp_path / "index")) == 0
    for call in (recognizer.save, PlaceRecognizer.open):
        with pytest.raises(InputError):
            call(f"{tmp_path}/a\0b")


def test_scripts_complete_no_save_that_was_interrupted(tmp_path):
    recognizer = recognizer_of()
    recognizer.add(made_up(10))
    recognizer.save(tmp_path / "index")
    recognizer.add(made_up(3000, 1))
    statuses = [
        run_and_kill(lambda: recognizer.save(tmp_path / "index"), n, random.Random(0)) for n in range(12, 24, 3)
    ]
    assert statuses == [KILLED] * 4, "after one chunk, and within the next one"
    assert maintenance.finish(tmp_path / "index", []) == len(Index(tmp_path / "index")) == 10
    recognizer.save(tmp_path / "index")
    assert len(Index(tmp_path / "index")) == 3010


def test_ids_of_images_that_were_never_saved_are_not_used_again(tmp_path):
    recognizer = recognizer_of()
    recognizer.add(made_up(3))
    recognizer.save(tmp_path / "index")
    recognizer.remove(recognizer.add(made_up(2, 1)))
    recognizer.save(tmp_path / "index")
    assert reopen(tmp_path / "index").add(made_up(1, 2)) == [5]


def test_another_index_in_the_folder_is_noticed(tmp_path):
    recognizer, other = recognizer_of(), recognizer_of()
    recognizer.add(made_up(3))
    recognizer.save(tmp_path / "index")
    other.add(made_up(3, 1))
    shutil.rmtree(tmp_path / "index")
    other.save(tmp_path / "index")
    with pytest.raises(InputError, match="Another program has changed the index"):
        recognizer.save(tmp_path / "index")
    assert reopen(tmp_path / "index").search(rows_of(made_up(3, 1), [0]), 1)[0][0].distance == 0
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(InputError, match="No index in"):
        recognizer.save(tmp_path / "index")
    (tmp_path / "link").symlink_to(tmp_path / "again")
    recognizer.save(tmp_path / "again")
    recognizer.save(tmp_path / "link")  # the same folder


def test_a_file_that_is_remembered_twice_changes_and_goes_as_one(tmp_path, photos):
    recognizer = recognizer_of()
    path = shutil.copy2(photos / "0.png", tmp_path / "0.png")
    recognizer.add([str(path), str(path)])
    recognizer.save(tmp_path / "index")
    files = IndexFiles(tmp_path / "index")
    os.utime(path, (2e9, 2e9))
    assert find_changes(files, [str(path)]).changed == {0: [1, 0]}
    assert sorted(find_changes(files, [], folder=tmp_path).gone) == [0, 1]


def test_what_other_programs_changed_is_in_a_recogniser_that_is_opened_again(tmp_path):
    ours = recognizer_of()
    ours.add(made_up(3), names=["a", "b", "c"], positions=[[0, 0], [1, 1], [2, 2]])
    with pytest.raises(InputError, match="Call `save` first"):
        ours.reopened()
    ours.save(tmp_path / "index")
    assert not ours.has_changed_on_disk()
    theirs = reopen(tmp_path / "index")
    theirs.add(made_up(2, 1), names=["d", "e"])
    theirs.remove(0)
    theirs.save(tmp_path / "index")
    assert ours.has_changed_on_disk() and not theirs.has_changed_on_disk()
    again = ours.reopened()
    assert not again.has_changed_on_disk() and again._model is ours._model
    assert [match.name for match in again.search(rows_of(made_up(2, 1), [1]), k=1)[0]] == ["e"]
    assert again.known().ids.tolist() == [1, 2, 3, 4] and ours.known().ids.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(again.known().positions, [[1, 1], [2, 2], [np.nan] * 2, [np.nan] * 2])
    shutil.rmtree(tmp_path / "index")
    assert again.has_changed_on_disk()
    with pytest.raises(InputError):
        again.reopened()


def test_what_was_removed_and_not_saved_can_be_restored(tmp_path):
    recognizer = recognizer_of()
    recognizer.add(made_up(4), names=list("abcd"))
    recognizer.save(tmp_path / "index")
    recognizer.remove([1, 2])
    recognizer.restore(2)
    for wrong in (0, 2, 9, [1, 0]):
        with pytest.raises(InputError, match="not removed|no image"):
            recognizer.restore(wrong)
    for each in (recognizer, (recognizer.save(tmp_path / "index"), reopen(tmp_path / "index"))[1]):
        assert each.known().ids.tolist() == [0, 2, 3]


def test_an_index_of_an_onnx_file_is_opened_with_the_checkpoint(tmp_path):
    recognizer = recognizer_of()
    recognizer.add(made_up(3))
    file = tmp_path / "model.onnx"
    file.write_bytes(b"ONNX")
    recognizer._weights_file = str(file)  # as build_index.py --model model.onnx names it
    recognizer.save(tmp_path / "index")
    with pytest.raises(InputError, match=r"model\.onnx is an ONNX file.*Give the checkpoint .* with --model"):
        PlaceRecognizer.open(tmp_path / "index")
    assert len(reopen(tmp_path / "index")) == 3


def test_images_that_were_moved_are_found_in_another_root(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "photos")
    index = tmp_path / "index"
    index.mkdir()
    with RowWriter(index, recognizer_of()._metadata(), append=False, header=Header(root=str(tmp_path / "photos"))) as w:
        columns = {"images": np.zeros(1, RECORD), "codes": np.zeros((1, 64), np.uint8)}
        columns["descriptors"] = made_up(1).descriptor
        w.append([str(tmp_path / "photos" / "0.png")], columns)
        w.mark()
    os.rename(tmp_path / "photos", tmp_path / "moved")
    opened = reopen(index, image_root=tmp_path / "moved")
    for each in (opened, opened.reopened()):
        assert each.image_file(0) == str(tmp_path / "moved" / "0.png")


def test_only_what_was_described_from_a_file_has_one(tmp_path):
    Image.fromarray(np.full((60, 80, 3), 9, np.uint8)).save(tmp_path / "a.png")
    recognizer = recognizer_of()
    recognizer.add(tmp_path / "a.png")
    recognizer.add([np.zeros((60, 80, 3), np.uint8)], names=[str(tmp_path / "a.png")])
    recognizer.save(tmp_path / "index")
    for each in (recognizer, reopen(tmp_path / "index")):
        assert [each.image_file(i) for i in (0, 1)] == [str(tmp_path / "a.png"), None]
        with pytest.raises(InputError, match="no image 2"):
            each.image_file(2)


def test_saving_writes_what_changed_alone(tmp_path):
    recognizer = recognizer_of()
    recognizer.add(made_up(3))
    recognizer.save(tmp_path / "index")
    files = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    recognizer.save(tmp_path / "index")
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir() if path.name != ".lock"} == files
    recognizer.add(made_up(1, 1))
    recognizer.save(tmp_path / "index")
    assert (tmp_path / "index" / "manifest.jsonl").read_bytes().startswith(files["manifest.jsonl"])


def test_a_change_right_after_a_save_is_noticed_by_the_next_one(tmp_path, monkeypatch):
    recognizer = recognizer_of()
    recognizer.add(made_up(3))
    recognizer.save(tmp_path / "index")
    close = RowWriter.close

    def close_and_let_another_program_write(writer):
        monkeypatch.setattr(RowWriter, "close", close)
        close(writer)
        maintenance.finish(tmp_path / "index", [0])

    monkeypatch.setattr(RowWriter, "close", close_and_let_another_program_write)
    recognizer.add(made_up(1, 1))
    recognizer.save(tmp_path / "index")
    recognizer.add(made_up(1, 2))
    with pytest.raises(InputError, match="Another program has changed the index"):
        recognizer.save(tmp_path / "index")


def test_metres_of_several_zones_are_no_place(tmp_path):
    recognizer = recognizer_of()
    recognizer.add(made_up(2), positions=[(500_000, 4_000_000), (500_010, 4_000_000)])
    recognizer.save(tmp_path / "index")
    files = IndexFiles(tmp_path / "index")
    for zones, degrees in (((32, 32), None), ((32, 33), (36.1, 15.0))):
        folder = tmp_path / str(zones)
        folder.mkdir()
        columns = {name: column[:].copy() for name, column in files.columns.items()}
        columns["images"]["zone"] = zones
        if degrees:
            columns["images"]["latitude"], columns["images"]["longitude"] = degrees
        with RowWriter(folder, files.metadata, append=False) as writer:
            writer.append(["a", "b"], columns)
            writer.mark()
        [place] = reopen(folder).locate(rows_of(made_up(2), [0]))
        assert (place.position is None) == (zones[0] != zones[1])
        assert degrees is None or place.degrees == pytest.approx(degrees)
