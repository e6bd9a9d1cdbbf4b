"""Training of codes: places from names, better codes than it starts with, and the file that evaluations take."""

import json
import shutil

import numpy as np
import pytest
from helpers.evaluations import flags_for
from helpers.processes import run_here, run_script

from model import InputError
from utils.retrieval.codes import fit_coding
from utils.training.codes import place_labels, train_coding
from utils.training.codes_config import CodeTrainingConfig

CONFIG = CodeTrainingConfig(bits=16, epochs_num=10, batch_size=20, lr=0.01)


def make_places(seed, places=60, images=5, dim=24):
    """Descriptors of places, of which the first dimensions tell them apart and the others, which vary more, do not."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(places), images)
    rows = np.hstack([random.standard_normal((places, dim // 2))[labels], np.zeros((len(labels), dim // 2))])
    rows += random.standard_normal(rows.shape) * np.repeat([0.3, 3], dim // 2)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def hits(coding, descriptors, labels):
    """How many images have one of their own place as the nearest by codes, counted in a loop."""
    bits = np.unpackbits(coding.encode(descriptors), axis=1)
    count = 0
    for i in range(len(labels)):
        distances = [int((bits[i] != bits[j]).sum()) if j != i else 999 for j in range(len(labels))]
        count += labels[int(np.argmin(distances))] == labels[i]
    return count


def test_trained_codes_tell_new_places_apart_better_than_the_random_ones_they_start_with():
    trained = train_coding(*make_places(0), CONFIG)
    new = make_places(1)
    start = fit_coding(make_places(0)[0], "random", 16, CONFIG.seed)
    assert hits(trained, *new) > 1.3 * hits(start, *new)


def test_a_seed_gives_the_same_training():
    data = make_places(0)
    first, second = (train_coding(*data, CONFIG) for _ in range(2))
    np.testing.assert_array_equal(first.rows, second.rows)
    other = train_coding(*data, CodeTrainingConfig(bits=16, epochs_num=1, batch_size=20, seed=1))
    assert not np.array_equal(first.rows, other.rows)


def test_places_are_those_of_the_names():
    names = [
        "a/Rome_0000001_2010_x.jpg",
        "b/Oslo_0000001_2010.jpg",
        "c/Rome_0000002_2.jpg",
        "a/Rome_0000001_2011_y.jpg",
    ]
    assert place_labels(names).tolist() == [0, 1, 2, 0]
    with pytest.raises(InputError, match="b/photo.jpg states no place. Expected the names of GSV-Cities"):
        place_labels([*names, "b/photo.jpg"])


def test_too_few_places_are_refused():
    descriptors, labels = make_places(0, images=3)
    with pytest.raises(InputError, match="0 places have 4 images or more"):
        train_coding(descriptors, labels, CONFIG)


def test_the_script_trains_on_an_index_and_its_file_makes_codes(tmp_path, tiny_benchmark, checkpoints):
    """Of the database's images under the names of places."""
    places = tmp_path / "places"
    places.mkdir()
    photos = sorted((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())
    for i, photo in enumerate(photos):
        shutil.copy(photo, places / f"Rome_{i // 2:07d}_2010_{i}.jpg")

    def run(script, *flags):
        result = run_script(script, *flags, cwd=tmp_path)
        assert result.status == 0, result.stderr
        return result.stdout

    common = [f"--resume={checkpoints['float']}", "--resize", 56, 56, "--device=cpu"]
    run("build_index.py", places, "--index=index", "--ignore_exif_orientation", *common)
    flags = ["--index=index", "--code_bits=24", "--images_per_place=2", "--epochs_num=2"]
    assert "codes.bin: 24 bits" in run("train_codes.py", *flags, "--output=codes.bin")
    run("train_codes.py", *flags, "--output=again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "codes.bin").read_bytes()
    run("eval.py", *flags_for(tiny_benchmark, checkpoints["float"], "--codes=codes.bin", "--rerank_num=3"))
    (results,) = tmp_path.glob("logs/eval/*/results.json")
    content = json.loads(results.read_text())
    assert content["codes"] == {"method": "trained", "bits": 24}
    assert list(content["stage_recalls"]) == ["First stage, Hamming", "Re-ranked"]


def test_an_output_that_cannot_be_written_is_refused_before_the_training(tmp_path):
    result = run_here("train_codes.py", "--index=nowhere", "--output=nodir/codes.bin", cwd=tmp_path)
    assert result.status == 2 and "No folder nodir for the file codes.bin" in result.stderr
