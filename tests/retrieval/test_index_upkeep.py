"""build_index.py over time: new, changed and gone images, moved folders, several indexes; and older ones."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluations import SIZE
from helpers.indexes import SETTINGS, content, features_of, make_chunk, write, write_format5
from helpers.models import build
from helpers.processes import run_here, start_script
from PIL import Image

from datasets.image_set import ImageSet
from model import InputError
from model.index.files import IndexFiles
from model.index.writing import RowWriter
from model.saving import lock_folder
from utils.retrieval.config import IndexConfig
from utils.retrieval.index import Index, IndexWriter, maintenance, metadata_of, open_indexes
from utils.retrieval.index.writer import find_changes
from utils.retrieval.search import search_and_rerank

pytestmark = pytest.mark.slow


def paint(path: Path, seed: int) -> Path:
    """An image that differs from those of other seeds."""
    path.parent.mkdir(exist_ok=True, parents=True)
    values = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    Image.fromarray(values).resize((80, 60), Image.Resampling.NEAREST).save(path)
    return path


def run(script, *flags, cwd, **options):
    result = run_here(script, *flags, "--device=cpu", cwd=cwd, **options)
    assert result.status == 0, result.stderr
    return result.stdout


@pytest.fixture
def photos(tmp_path, checkpoints):
    """A folder `photos` of six images, and its `index`."""
    for i in range(6):
        path = paint(tmp_path / "photos" / f"{i}.png", i)
        os.utime(path, (time.time() + 1e4,) * 2)  # however long this takes, they were changed right before
    flags = [f"--model={checkpoints['two_branch']}", *SIZE, "--descriptor_dtype=fp16", "--num_workers=0"]
    run("build_index.py", "photos", "--index=index", *flags, cwd=tmp_path)
    return tmp_path / "photos"


def names_in(index):
    return [os.path.basename(path) for path in Index(index).images.paths]


def test_appending_needs_the_folder_and_the_index_alone(photos):
    append = ["build_index.py", "photos", "--index=index", "--append", "--num_workers=0"]
    folder, index = photos.parent, photos.parent / "index"
    before = content(index)
    said = run(*append, cwd=folder)
    assert "6 images in photos: 6 unchanged." in said and "Model" not in said and content(index) == before
    (photos / "0.png").unlink()
    paint(photos / "3.png", 33)
    paint(photos / "6.png", 6)
    said = run(*append, cwd=folder)
    assert "6 images in photos: 1 new, 1 changed, 4 unchanged. Of the index: 1 gone; --prune takes them out." in said
    assert "complete and holds 7 images" in said and names_in(index) == [f"{i}.png" for i in (0, 1, 2, 4, 5, 3, 6)]
    said = run(*append, "--prune", cwd=folder)
    assert "complete and holds 6 images" in said and names_in(index) == [f"{i}.png" for i in (1, 2, 4, 5, 3, 6)]
    ids = Index(index).ids.tolist()
    size = (index / "descriptors.bin").stat().st_size
    assert "2 images that were taken out took space" in run("build_index.py", "--index=index", "--compact", cwd=folder)
    assert (index / "descriptors.1.bin").stat().st_size == size * 6 // 8 and not (index / "descriptors.bin").exists()
    assert Index(index).ids.tolist() == ids == [1, 2, 4, 5, 6, 7]
    assert "0 images that were taken out" in run("build_index.py", "--index=index", "--compact", cwd=folder)
    found = json.loads(run("search.py", "--index=index", "photos/3.png", "--json", "--results=1", cwd=folder))
    assert found["queries"][0]["matches"][0]["path"] == str(photos / "3.png")
    assert found["queries"][0]["matches"][0]["distance"] < 0.05


def test_a_file_is_compared_by_its_content_on_request(photos):
    index, folder = photos.parent / "index", photos.parent
    files = IndexFiles(index)
    records = files.records()
    assert (records["mtime_ns"] == 0).all(), "of files that were changed right before, digests count"
    for path in photos.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    (photos / "0.png").write_bytes((photos / "0.png").read_bytes() + b"x")
    os.utime(photos / "0.png", ns=(10**18, 10**18))
    assert maintenance.changes_since(
        index, sorted(map(str, photos.iterdir())), photos, check_content=False
    ).changed == {0: [0]}
    run("build_index.py", "photos", "--index=index", "--append", "--num_workers=0", cwd=folder)
    assert IndexFiles(index).records()["mtime_ns"].tolist() == [0] * 6 + [10**18]
    data = bytearray((photos / "0.png").read_bytes())
    data[-1] ^= 1  # the same size and time
    (photos / "0.png").write_bytes(data)
    os.utime(photos / "0.png", ns=(10**18, 10**18))
    append = ["build_index.py", "photos", "--index=index", "--append", "--num_workers=0"]
    assert "6 unchanged" in run(*append, cwd=folder)
    assert "1 changed, 5 unchanged" in run(*append, "--check_content", cwd=folder)
    os.utime(photos / "0.png", ns=(1, 1))
    assert "6 unchanged" in run(*append, "--check_content", cwd=folder)


def test_moved_images_are_found_under_their_new_root(photos):
    folder = photos.parent
    photos.rename(folder / "moved")
    query = paint(folder / "query.png", 3)
    found = json.loads(run("search.py", query, "--index=index", "--image_root=moved", "--json", cwd=folder))
    assert found["queries"][0]["matches"][0]["path"] == str(folder / "moved" / "3.png")
    said = run("build_index.py", "moved", "--index=index", "--append", "--image_root=moved", cwd=folder)
    assert "6 images in moved: 6 unchanged." in said
    assert Index(folder / "index").images.paths[0] == str(folder / "moved" / "0.png")
    refused = run_here("build_index.py", "moved", "--index=index", "--append", "--image_root=nowhere", cwd=folder)
    assert refused.status == 2 and "no folder nowhere" in refused.stderr
    shutil.rmtree(folder / "moved" / "0.png", ignore_errors=True)
    (folder / "moved" / "0.png").unlink()
    (folder / "moved" / "0.png").mkdir()  # a file that became a folder
    said = run("build_index.py", "moved", "--index=index", "--append", "--prune", cwd=folder)
    assert "5 images in moved: 5 unchanged. Of the index: 1 taken out." in said


def test_several_indexes_are_searched_as_the_merged_one(photos, checkpoints):
    folder = photos.parent
    for i in range(4, 9):
        paint(folder / "more" / f"{i}.png", i)
    shutil.copy(photos / "0.png", folder / "more" / "0.png")
    flags = [f"--model={checkpoints['two_branch']}", *SIZE, "--descriptor_dtype=fp16"]
    run("build_index.py", "more", "--index=second", *flags, cwd=folder)
    run("build_index.py", "--merge", "index", "second", "--index=both", cwd=folder)
    query = paint(folder / "query.png", 7)
    common = ["--json", "--results=12"]
    several = json.loads(run("search.py", "--index", "index", "second", query, *common, cwd=folder))
    merged = json.loads(run("search.py", query, "--index", "both", *common, cwd=folder))
    assert several["queries"] == merged["queries"] and len(merged["queries"][0]["matches"]) == 12
    again = run_here("build_index.py", "--merge", "index", "second", "--index=both", cwd=folder)
    assert again.status == 2 and "both exists already" in again.stderr
    other = run_here("build_index.py", "more", "--index=third", *flags[:-1], cwd=folder)
    assert other.status == 0
    refused = run_here("build_index.py", "--merge", "index", "third", "--index=fourth", cwd=folder)
    assert refused.status == 2 and "descriptor_dtype fp16 (now fp32)" in refused.stderr
    assert not (folder / "fourth").exists()
    both = open_indexes([folder / "index", folder / "third"])  # searched together, in each one's own number format
    assert both.features().descriptors[:].dtype == np.float32


@pytest.fixture(scope="module")
def metadata():
    return metadata_of(build("vit-tiny", "gem", hashing=True, rerank=True), SETTINGS)


def test_an_index_of_the_format_before_is_converted(tmp_path, metadata):
    chunk = make_chunk(0, 7)
    old = write_format5(tmp_path / "old", metadata, chunk, "32N")
    with pytest.raises(InputError, match=f"Convert it: build_index.py --merge {old} --index NEW"):
        Index(old)
    assert maintenance.merge([old], tmp_path / "new") == 7
    paths, utms, codes, descriptors = features_of(tmp_path / "new")
    assert paths == list(chunk.images.paths) and utms == chunk.images.utms.tolist()
    assert codes == chunk.codes.tolist() and descriptors == chunk.descriptors.tolist()
    (old / "codes.bin").write_bytes(bytes(len(codes) * 64))
    with pytest.raises(InputError, match="codes.bin is damaged"):
        maintenance.merge([old], tmp_path / "newer")
    assert not (tmp_path / "newer").exists()


def test_a_reader_keeps_what_it_has_opened_while_the_index_is_pruned_and_compacted(tmp_path, metadata):
    folder = write(tmp_path / "index", metadata, [5, 5])
    index, expected = Index(folder), features_of(folder)
    queries = make_chunk(0, 5)
    before = search_and_rerank(index.features(), queries, 3, rerank_num=3)[-1]
    maintenance.finish(folder, [0, 1, 7])
    assert maintenance.compact(folder) == 3 and not (folder / "codes.bin").exists()
    after = search_and_rerank(index.features(), queries, 3, rerank_num=3)[-1]
    np.testing.assert_array_equal(before.indices, after.indices)
    assert [list(index.images.paths), index.features().descriptors[:].tolist()] == [expected[0], expected[3]]
    assert len(Index(folder)) == 7


def test_compacting_on_a_full_disk_leaves_the_index_as_it_was(tmp_path, metadata, monkeypatch):
    folder = write(tmp_path / "index", metadata, [5, 5])
    maintenance.finish(folder, [2])
    before = content(folder)

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "_write_to", staticmethod(refuse))
        with pytest.raises(InputError, match="Cannot compact .*: No space left on device. It is unchanged"):
            maintenance.compact(folder)
    assert content(folder) == before
    (folder / "codes.bin").write_bytes(bytes(640))
    with pytest.raises(InputError, match="codes.bin is damaged"):  # rather than a new checksum for damaged data
        maintenance.compact(folder)


def test_all_images_can_be_taken_out_and_others_added(tmp_path, metadata):
    folder = write(tmp_path / "index", metadata, [3])
    maintenance.finish(folder, [0, 1, 2])
    with pytest.raises(InputError, match="holds no images"):
        Index(folder)
    assert maintenance.compact(folder) == 3
    write(folder, metadata, [2], append=True, first=3)
    assert Index(folder).ids.tolist() == [3, 4]


def test_removed_rows_that_cannot_be_are_refused(tmp_path, metadata):
    folder = write(tmp_path / "index", metadata, [3])
    maintenance.finish(folder, [1])
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    for old, new in ((b"[[1, 2]]", b"[[0, 1]]"), (b"[[1, 2]]", b"[[1, 9]]"), (b'"complete": 2', b'"complete": 3')):
        manifest.write_bytes(b"".join(lines).replace(old, new))
        with pytest.raises(InputError, match="manifest.jsonl is damaged"):
            Index(folder)
    manifest.write_bytes(b"".join([*lines, lines[-2]]))
    with pytest.raises(InputError, match="removed twice"):
        maintenance.finish(folder, [])


def test_a_watched_folder_and_its_index_keep_in_step(photos):
    """Until SIGTERM, with files that are not images yet, and while another process searches."""
    folder, index = photos.parent, photos.parent / "index"
    (photos / "damaged.png").write_bytes(b"no image")
    os.utime(photos / "damaged.png", (1e9, 1e9))
    running = start_script(
        "build_index.py", "photos", "--index=index", "--append", "--watch=0.3", "--num_workers=0", cwd=folder
    )

    def wait_for(names):
        deadline = time.monotonic() + 150
        while sorted(names_in(index)) != sorted(names):
            assert time.monotonic() < deadline and running.process.is_alive(), names_in(index)
            time.sleep(0.05)

    paint(photos / "7.png", 7)
    (photos / "8.png").write_bytes((photos / "7.png").read_bytes()[:200])  # being copied
    wait_for([*(f"{i}.png" for i in range(6)), "7.png"])
    (photos / "0.png").unlink()
    paint(photos / "8.png", 8)
    wait_for([f"{i}.png" for i in (1, 2, 3, 4, 5, 7, 8)])
    os.kill(running.process.pid, signal.SIGTERM)
    result = running.result()
    assert result.status == 143 and "Traceback" not in result.stderr
    assert "8.png" in result.stderr and "damaged.png" in result.stderr
    assert result.stderr.count("left out until it changes") == 2
    lock_folder(index).release()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--index=index"], "Give IMAGES"),
        (["photos", "--index=index", "--prune"], "--prune brings an index up to date; give --append too"),
        (["--index=index", "--append"], "--append compares the index with IMAGES"),
        (["photos", "--index=new", "--merge", "index"], "--merge makes a new index"),
        (["photos", "--index=index", "--append", "--resize", 70, 56], "resize [56, 56] (now [70, 56])"),
        (["photos", "--index=index", "--append", "--precision=bf16"], "precision fp32 (now bf16)"),
        (["photos", "--index=index", "--append", "--descriptor_dtype=int8"], "descriptor_dtype fp16 (now int8)"),
        (["--index=new", "--merge", "nowhere"], "No index in nowhere"),
        (["--index=nowhere", "--compact"], "No index in nowhere"),
        (
            ["--index=index", "--compact", "--precision=bf16", "--no_antialias"],
            "--no_antialias, --precision: no images",
        ),
        (["--index=index", "--compact", "--image_root=photos"], "--image_root: no images are described"),
        (["--index=new", "--merge", "index", "--positions=exif"], "--positions: no images are described"),
        (["photos", "--index=index", "--append", "--compact", "--watch=1"], "--watch goes on with IMAGES"),
    ],
)
def test_flags_that_do_not_go_together(photos, flags, words):
    before = content(photos.parent / "index")
    result = run_here("build_index.py", *flags, "--device=cpu", cwd=photos.parent)
    assert result.status == 2 and words in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert content(photos.parent / "index") == before and not (photos.parent / "new").exists()


def test_images_that_are_gone_are_named_by_their_ids(tmp_path, metadata):
    """Another process may compact or prune the index between the comparison and the removal."""
    photos = [paint(tmp_path / "photos" / f"{i}.png", i) for i in range(4)]
    chunk = make_chunk(0, 4)
    with IndexWriter(IndexConfig(folder=tmp_path / "index", root=tmp_path / "photos"), metadata) as writer:
        writer.append(chunk._replace(images=ImageSet.without_positions(list(map(str, photos)))))
        writer.features()
    photos[0].unlink()
    photos[3].unlink()
    remaining = list(map(str, photos[1:3]))
    changes = maintenance.changes_since(tmp_path / "index", remaining, tmp_path / "photos", check_content=False)
    assert changes.gone == [0, 3]
    maintenance.finish(tmp_path / "index", [0])
    maintenance.compact(tmp_path / "index")
    assert maintenance.finish(tmp_path / "index", changes.gone) == 2
    assert list(Index(tmp_path / "index").images.paths) == remaining


def test_images_whose_folder_is_not_where_it_was_are_not_all_new(photos):
    folder = photos.parent
    (folder / "link").symlink_to(photos)
    assert "6 unchanged." in run("build_index.py", "link", "--index=index", "--append", cwd=folder)
    assert "6 unchanged." in run("build_index.py", ".", "--index=../index", "--append", cwd=photos)
    (folder / "link").unlink()
    photos.rename(folder / "moved")
    for command, words in (
        (["build_index.py", "moved", "--index=index", "--append"], "does not exist. If they were moved, give"),
        (["search.py", "moved", "--index", "index", "index", "--image_root=moved"], "is the folder of one index"),
    ):
        refused = run_here(*command, "--device=cpu", cwd=folder)
        assert refused.status == 2 and words in refused.stderr


def test_paths_become_relative_when_an_index_is_merged_with_a_root(tmp_path, metadata):
    write(tmp_path / "index", metadata, [3])
    with pytest.raises(InputError, match="paths of the index .* are absolute"):
        Index(tmp_path / "index", image_root=tmp_path)
    maintenance.merge([tmp_path / "index"], tmp_path / "new", Path("/images"))
    assert Index(tmp_path / "new", image_root=tmp_path).images.paths[0] == f"{tmp_path}/é 0\t.jpg"


def test_small_chunks_are_joined(tmp_path, metadata):
    folder = write(tmp_path / "index", metadata, [1] * 9)
    before = features_of(folder)
    assert maintenance.compact(folder) == 0
    assert len(IndexFiles(folder).manifest.chunks) == 1 and features_of(folder) == before


def test_a_folder_of_videos_does_not_prune_their_frames(tmp_path, metadata):
    (tmp_path / "trip.mp4").write_bytes(b"a video")
    frames = [f"{tmp_path}/trip.mp4#t={i}.00" for i in range(3)]
    with IndexWriter(IndexConfig(folder=tmp_path / "index", root=tmp_path), metadata) as writer:
        writer.append(make_chunk(0, 3)._replace(images=ImageSet.without_positions(frames)))
        writer.features()
    files = IndexFiles(tmp_path / "index")
    assert files.records()["time"].tolist() == [0, 1, 2]
    assert find_changes(files, [], folder=tmp_path).gone == []
    assert find_changes(files, frames[:2], folder=tmp_path / "trip.mp4").gone == [2]
    (tmp_path / "trip.mp4").unlink()
    assert find_changes(files, [], folder=tmp_path).gone == [0, 1, 2]
