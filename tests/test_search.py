"""search.py end to end: an index of the tiny benchmark, single photos."""

import shutil

import pytest
from helpers import run_script
from PIL import Image
from test_eval import SCRIPTS, flags_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def indexes(tiny_benchmark, checkpoints, tmp_path_factory):
    """{mode: index folder}."""
    folder = tmp_path_factory.mktemp("indexes")
    for mode, script in SCRIPTS.items():
        result = run_script(
            script, *flags_for(tiny_benchmark, checkpoints[mode], f"--save_index={folder / mode}"), cwd=folder
        )
        assert result.status == 0, result.stderr
    return {mode: folder / mode for mode in SCRIPTS}


@pytest.mark.parametrize("mode", SCRIPTS)
def test_a_database_image_finds_itself(tmp_path, tiny_benchmark, indexes, mode):
    photos = sorted((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())[3:5]
    result = run_script(
        "search.py",
        f"--index={indexes[mode]}",
        *photos,
        "--results=3",
        "--save_pictures=pictures",
        "--device=cpu",
        cwd=tmp_path,
    )
    assert result.status == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3"] * 2
    for photo, first in zip(photos, rows[::3], strict=True):
        assert first[5] == str(photo) and float(first[1]) == pytest.approx(0, abs=1e-3)
        assert first[2] == ("hamming" if mode == "hashing" else "l2")
        assert [f"{float(number):.2f}" for number in first[3:5]] == photo.name.split("@")[1:3]
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 2
    assert Image.open(pictures[0]).size[0] > Image.open(pictures[0]).size[1]


def test_a_match_whose_file_is_gone_is_drawn_as_an_empty_frame(tmp_path, tiny_benchmark, checkpoints):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_benchmark, copy)
    result = run_script("eval.py", *flags_for(copy, checkpoints["float"], "--save_index=index"), cwd=tmp_path)
    assert result.status == 0, result.stderr
    shutil.rmtree(copy)
    photo = next((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())
    result = run_script("search.py", "--index=index", photo, "--save_pictures=pictures", "--device=cpu", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_wrong_input(tmp_path, tiny_benchmark, indexes, checkpoints):
    photo = next((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:100])
    for flags, words in (
        ([f"--index={tmp_path}", photo], ["No index in"]),
        ([f"--index={indexes['float']}", tmp_path / "missing.jpg"], ["missing.jpg"]),
        ([f"--index={indexes['float']}", tmp_path / "broken.jpg"], ["broken.jpg"]),
        ([f"--index={indexes['float']}", photo, f"--resume={checkpoints['two_branch']}"], ["--hashing"]),
        ([f"--index={indexes['float']}", photo, "--resume=nowhere.pth"], ["nowhere.pth", "--resume"]),
        ([f"--index={indexes['float']}"], ["IMAGE"]),
        ([f"--index={indexes['float']}", photo, "--results=0"], ["'0'"]),
    ):
        result = run_script("search.py", *flags, "--device=cpu", cwd=tmp_path)
        assert result.status == 2 and all(word in result.stderr for word in words), (flags, result.stderr)
        assert "Traceback" not in result.stderr
