"""Indexes whose descriptors PCA reduced: the same results as without an index, one projection for good, damage."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluations import evaluate, flags_for
from helpers.indexes import SETTINGS, content, forge_metadata, make_chunk
from helpers.models import build
from helpers.processes import run_script, start_script

from datasets.image_set import ImageSet
from model import InputError, ModelConfig
from model.index.manifest import MANIFEST
from model.index.pca import PCA
from model.index.projections import NO_PROJECTIONS, PCA_FILE, Projections
from model.weights import load_model
from utils.integrations.milvus.writer import export_index
from utils.retrieval.config import EngineAddress, IndexConfig, PCAConfig
from utils.retrieval.evaluation import find_pca
from utils.retrieval.extraction import Extractor, extract, prepare, project
from utils.retrieval.index import Index, IndexWriter, metadata_of

pytestmark = pytest.mark.slow

FLAGS = "--pca_dim=6", "--pca_dataset_folder=tiny/images/test/database"


@pytest.fixture(scope="module")
def model():
    return build("vit-tiny", "gem", hashing=True, rerank=True).eval()


@pytest.fixture(scope="module")
def extractor(model):
    return Extractor(model=prepare(model, SETTINGS), config=SETTINGS)


def pca_config(dim, folder="."):
    return PCAConfig(dim=dim, subfolder=Path(folder), datasets_folder=Path())


@pytest.fixture
def index(tmp_path, model):
    """The folder of an index of 3 images, whose descriptors a random projection reduced to 6 dimensions."""
    random = np.random.default_rng(0)
    projections = Projections(PCA(random.standard_normal(512), random.standard_normal((6, 512))))
    with writer_of(tmp_path / "index", model, projections) as writer:
        writer.append(project(projections, make_chunk(0, 3)))
        writer.features()
    return tmp_path / "index"


def writer_of(folder, model, projections, append=False):
    metadata = metadata_of(model, SETTINGS, projections=projections)
    return IndexWriter(IndexConfig(folder=folder, append=append), metadata, projections)


@pytest.mark.parametrize(
    ("mode", "more"),
    [("float", []), ("float", ["--test_method=nearest_crop"]), ("two_branch", ["--rerank_num=16"])],
)
def test_saved_and_loaded_it_gives_the_predictions_without_an_index(tmp_path, tiny_benchmark, checkpoints, mode, more):
    arguments = mode, tiny_benchmark, checkpoints[mode], tmp_path, *more
    expected = evaluate(*arguments, *FLAGS)
    assert expected != evaluate(*arguments)
    assert evaluate(*arguments, *FLAGS, "--save_index=index") == expected
    assert Index(tmp_path / "index").features().descriptors.shape == (16, 6)
    assert evaluate(*arguments, "--load_index=index") == expected


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_database_image_finds_itself_and_reduced_descriptors_are_exported(
    tmp_path, tiny_benchmark, checkpoints, dtype
):
    flags = [*FLAGS, "--save_index=index", f"--descriptor_dtype={dtype}"]
    evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, *flags)
    descriptors = Index(tmp_path / "index").features().descriptors[:]
    model = load_model(ModelConfig(backbone="vit-tiny", hashing=True, rerank=True), checkpoints["two_branch"])
    extractor = Extractor(model=prepare(model, SETTINGS), config=SETTINGS)
    pca = find_pca(extractor, pca_config(6, tiny_benchmark / FLAGS[1].split("=")[1]), None)
    assert pca.to_bytes() == (tmp_path / "index" / PCA_FILE).read_bytes()
    photos = sorted((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())
    if dtype == "fp32":
        features = extract(
            replace(extractor, projections=Projections(pca)), ImageSet.without_positions(list(map(str, photos)))
        )
        np.testing.assert_array_equal(descriptors, features.descriptors)  # bit for bit those without an index
    photos = photos[3:5]
    result = run_script("search.py", *photos, "--index=index", "--results=1", "--device=cpu", "--json", cwd=tmp_path)
    assert result.status == 0, result.stderr
    for photo, query in zip(photos, json.loads(result.stdout)["queries"], strict=True):
        (match,) = query["matches"]
        assert (match["path"], match["metric"]) == (str(photo), "l2")
        assert match["distance"] == pytest.approx(0, abs={"fp32": 1e-4, "fp16": 1e-3, "int8": 1e-2}[dtype])
    result = run_script("export.py", "npy", "--index=index", "--output=exported", cwd=tmp_path)
    assert result.status == 0, result.stderr
    exported = np.load(tmp_path / "exported" / "database_descriptors.npy")
    assert exported.shape == (16, 6)
    np.testing.assert_array_equal(exported, descriptors)


def test_interrupted_and_continued_it_keeps_its_projection(tmp_path, tiny_benchmark, checkpoints):
    """The second run could not fit the projection again: the folder of images does not exist."""

    def save(index, folder):
        flags = [f"--save_index={index}", "--append", "--descriptor_dtype=int8", "--pca_dim=6"]
        flags.append(f"--pca_dataset_folder={folder}")
        command = flags_for(tiny_benchmark, checkpoints["two_branch"], *flags)
        prelude = "from utils.retrieval import extraction; extraction.CHUNK_SIZE = 2"
        result = start_script("eval_rerank.py", *command, cwd=tmp_path, prelude=prelude).result()
        assert result.status == 0, result.stderr

    save("complete", "tiny/images/test/database")
    interrupted = shutil.copytree(tmp_path / "complete", tmp_path / "interrupted")
    lines = (interrupted / MANIFEST).read_bytes().splitlines(keepends=True)
    (interrupted / MANIFEST).write_bytes(b"".join(lines[:4]))
    assert len(lines) == 10 and len(Index(interrupted, allow_incomplete=True)) == 6
    save("interrupted", "nowhere")
    assert content(interrupted) == content(tmp_path / "complete")


def test_appended_images_are_reduced_by_the_stored_projection(tmp_path, tiny_benchmark, checkpoints):
    """By an evaluation, with and without the flags of PCA, and by build_index.py."""
    checkpoint = checkpoints["float"]
    evaluate("float", tiny_benchmark, checkpoint, tmp_path, "--save_index=complete", "--infer_batch_size=1", *FLAGS)
    expected = Index(tmp_path / "complete").features().descriptors[:]
    grown = tmp_path / "grown"
    shutil.copytree(tiny_benchmark, grown)
    database = grown / "tiny" / "images" / "test" / "database"
    images = sorted(database.iterdir())
    for image in images[4:]:
        image.rename(tmp_path / image.name)
    flags = flags_for(grown, checkpoint, "--save_index=index", "--append", "--infer_batch_size=1", "--recall_values=1")
    flags_of_build = [database, "--index=index", "--append", f"--resume={checkpoint}", "--resize", 56, 56]
    for count, script, more in (
        (4, "eval.py", [FLAGS[0], f"--pca_dataset_folder={tiny_benchmark / FLAGS[1].split('=')[1]}"]),
        (12, "eval.py", []),
        (16, "build_index.py", None),
    ):
        for image in images[:count]:
            if not image.exists():
                (tmp_path / image.name).rename(image)
        command = flags_of_build + ["--ignore_exif_orientation", "--device=cpu"] if more is None else [*flags, *more]
        result = run_script(script, *command, cwd=tmp_path)
        assert result.status == 0, result.stderr
        assert len(Index(tmp_path / "index")) == count
    np.testing.assert_allclose(Index(tmp_path / "index").features().descriptors[:], expected, atol=1e-5)
    assert (tmp_path / "index" / PCA_FILE).read_bytes() == (tmp_path / "complete" / PCA_FILE).read_bytes()
    before = content(tmp_path / "index")
    result = run_script("eval.py", *flags, "--pca_dim=5", FLAGS[1], cwd=tmp_path)
    assert result.status == 2 and "--pca_dim 5: the index index holds descriptors that PCA" in result.stderr
    assert content(tmp_path / "index") == before


def test_another_dimension_is_refused_and_so_is_one_of_an_index_without_pca(tmp_path, model, extractor, index):
    with IndexWriter(IndexConfig(folder=tmp_path / "plain"), metadata_of(model, SETTINGS)) as writer:
        writer.append(make_chunk(0, 3))
        writer.features()
    for folder, dim, words in (
        (index, 5, "--pca_dim 5: .* reduced to 6 dimensions"),
        (tmp_path / "plain", 512, "--pca_dim 512: .* not reduced"),
    ):
        with pytest.raises(InputError, match=words):
            find_pca(extractor, pca_config(dim), folder)
    with pytest.raises(InputError, match="built differently: .*pca_input_dim 512 .now None."):
        writer_of(index, model, NO_PROJECTIONS, append=True)
    assert find_pca(extractor, PCAConfig(), tmp_path / "plain") is None
    assert find_pca(extractor, pca_config(6), index).dim == 6


def test_an_index_of_a_model_with_wider_descriptors_is_refused(model, index):
    """Even if its metadata has the checksum of this model's weights."""
    opened = Index(index)
    opened.projections = Projections(PCA(np.zeros(1024), np.ones((6, 1024))))
    opened.metadata = replace(opened.metadata, pca_input_dim=1024)
    with pytest.raises(InputError, match="another model .*pca_input_dim 1024 .now 512."):
        opened.metadata.require_compatible(metadata_of(model, SETTINGS, projections=opened.projections), opened)


@pytest.mark.parametrize("read", ["load", "append"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flip", "its checksum differs from metadata.json"),
        ("cut", "14332 of 14336 bytes"),
        ("longer", "14337 of 14336 bytes"),
        ("remove", "missing"),
        ("nan", "NaN or infinity"),
    ],
)
def test_a_damaged_projection_is_refused(extractor, index, damage, words, read):
    path = index / PCA_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= damage == "flip"
    changed = {"cut": data[:-4], "longer": data + b"\0", "nan": data[:-4] + np.float32("nan").tobytes()}
    path.write_bytes(changed.get(damage, data))
    if damage == "remove":
        path.unlink()
    if damage == "nan":  # with a checksum that agrees
        forge_metadata(index, {"pca_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    with pytest.raises(InputError, match=f"pca.bin is .*{words}.*Rebuild"):
        Index(index, verify=False) if read == "load" else find_pca(extractor, PCAConfig(), index)


@pytest.mark.parametrize(
    "changes",
    [
        *({"pca_input_dim": value} for value in (None, 5, 1 << 17, 512.0)),
        *({"pca_sha256": None}, {"pca_sha256": 1}, {"rerank": False, "descriptor_dim": 0}),
    ],
    ids=str,
)
def test_metadata_of_a_projection_that_are_not_valid(index, changes):
    forge_metadata(index, changes)
    with pytest.raises(InputError, match="metadata.json is damaged"):
        Index(index)


def test_a_build_that_was_killed_before_its_metadata_begins_again(tmp_path, model, index):
    projections = Index(index).projections
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / PCA_FILE).write_bytes(b"of a run that was killed")
    with pytest.raises(InputError, match="pca.bin but no metadata.json"):
        writer_of(begun, model, projections)
    with writer_of(begun, model, projections, append=True) as writer:
        writer.append(project(projections, make_chunk(0, 3)))
        writer.features()
    assert content(begun) == content(index)


def test_milvus_cannot_hold_a_projection(index):
    with pytest.raises(InputError, match="PCA reduced the descriptors.*cannot be stored in Milvus"):
        export_index(Index(index), EngineAddress.parse("milvus://127.0.0.1:1/a"))
