"""A session on a GPU, rehearsed on the CPU: its rows, its limits of time, and how it goes on."""

import json
import time
from dataclasses import replace

import pytest
import torch
from helpers.processes import run_script, start_script

from benchmarks import bench_decoders, bench_extract, bench_gpu, bench_train, common, machine, session
from benchmarks.bench_gpu import CARD, MINUTES, REHEARSAL, plan
from benchmarks.common import Row, is_steady
from benchmarks.session import Measurement
from model import InputError


@pytest.fixture
def hasty(monkeypatch):
    """One sample of each figure, which is then of no use."""
    for module, name, value in (
        *((common, name, 1) for name in ("MIN_SAMPLES", "MAX_SAMPLES")),
        *((machine, name, value) for name, value in (("MIN_SECONDS", 0), ("MIN_CALLS", 1))),
        (bench_train, "STEPS", 1),
        (bench_train, "SIZE", 56),
        *((module, name, (56, 56)) for module, name in ((bench_extract, "SIZE"), (bench_gpu, "SIZE"))),
        (bench_decoders, "EVALUATION_SIZE", (56, 56)),
    ):
        monkeypatch.setattr(module, name, value)
    for constant, smallest in (("SHAPES", ((8, 8, 8),)), ("COPIED_BYTES", 1 << 10)):
        monkeypatch.setitem(getattr(machine, constant), "cpu", smallest)


def row(ours=1.0):
    return Row(name="of the function", ours=ours, unit="ms")


def run(path, *measurements, minutes=1.0):
    return session.run(measurements, path, title="Session", device="cpu", minutes=minutes)


def rows_of(path):
    return {row["name"]: row["ours"] for row in json.loads(path.read_text())["rows"]}


@pytest.mark.proof
def test_every_row_of_the_rehearsal_is_measured(tmp_path, hasty, shallow_vit, monkeypatch):
    """But for those that compile, and the tests, which need a GPU."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # workers
    monkeypatch.setitem(bench_train.SHARE_TARGETS, "vit-tiny", 1e6)  # no step reaches it
    measurements = [one for one in plan(REHEARSAL, tmp_path) if not one.name.endswith(("compile", "graphs", ".py"))]
    assert run(tmp_path / "rows.json", *measurements, minutes=60)
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [one["name"] for one in content["rows"]] == [one.name for one in measurements]
    assert content["remark"] == ""
    rows = {one["name"]: Row(**one) for one in content["rows"]}
    for name, each in rows.items():
        limited = name.startswith(("training", "extraction", "search"))
        assert each.ours > 0 and (each.share is not None) == limited, name
        assert "DIFFERENT" not in each.note
    assert "ms of work in a call: " in rows["training, vit-tiny, stage one"].note
    assert "the model waits for" in rows["extraction, vit-tiny, from files"].note
    assert "pixels differ by up to 0 of 255" in rows["decoding on the device"].note


@pytest.mark.proof
def test_a_killed_session_goes_on_with_the_row_that_was_missing(tmp_path):
    flags = ("--rehearse", "--only=codes", f"--json={tmp_path / 'rows.json'}")
    dying = (
        "import os, signal; from benchmarks import session; write = session.write_json\n"
        "session.write_json = lambda *args, **kwargs: (write(*args, **kwargs), os.kill(os.getpid(), signal.SIGKILL))"
    )
    killed = start_script("benchmarks.bench_gpu", *flags, cwd=tmp_path, prelude=dying).result()
    assert killed.status == -9
    before = rows_of(tmp_path / "rows.json")
    assert list(before) == ["search of 1 among 20,000 codes"]
    result = run_script("benchmarks.bench_gpu", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    after = rows_of(tmp_path / "rows.json")
    assert list(after) == [*before, "search of 4 among 20,000 codes"]
    assert after["search of 1 among 20,000 codes"] == before["search of 1 among 20,000 codes"]


def test_a_row_that_fails_or_takes_too_long_is_named_and_tried_again(tmp_path, hasty, capsys):
    def endless():
        while True:
            time.sleep(0.01)

    def failing():
        raise RuntimeError("no kernel")

    path = tmp_path / "rows.json"
    slow = Measurement(name="slow", seconds=0.2, measure=endless)
    broken = Measurement(name="broken", seconds=20, measure=failing)
    good = Measurement(name="good", seconds=20, measure=row)
    assert not run(path, slow, broken, good)
    assert rows_of(path) == {"good": 1}
    expected = "Not measured: slow: took longer than 0.2 s; broken: RuntimeError: no kernel."
    assert json.loads(path.read_text())["remark"] == expected
    assert "NOT MEASURED: slow: took longer than 0.2 s. The same command tries it again." in capsys.readouterr().out
    better = (replace(slow, measure=lambda: row(2)), replace(broken, measure=lambda: row(3)))
    assert run(path, *better, replace(good, measure=failing))  # not measured again
    assert rows_of(path) == {"slow": 2, "broken": 3, "good": 1}
    assert json.loads(path.read_text())["remark"] == ""


def test_no_row_starts_that_may_not_be_done_in_time(tmp_path, hasty):
    long, short = (
        Measurement(name=name, seconds=seconds, measure=row) for name, seconds in (("long", 90), ("short", 5))
    )
    assert not run(tmp_path / "rows.json", long, short)
    assert rows_of(tmp_path / "rows.json") == {"short": 1}


def test_all_that_is_asked_of_a_card_fits_into_its_minutes(tmp_path):
    measurements = plan(CARD, tmp_path)
    assert sum(one.seconds for one in measurements) <= 60 * MINUTES
    assert len({one.name for one in measurements}) == len(measurements) == 29


def test_rows_of_another_machine_are_not_continued(tmp_path, hasty, monkeypatch):
    path = tmp_path / "rows.json"
    run(path, Measurement(name="one", seconds=20, measure=row))
    monkeypatch.setattr(machine, "cpu_name", lambda: "another")
    with pytest.raises(InputError, match="was measured with other cpu. Move it away"):
        run(path, Measurement(name="two", seconds=20, measure=row))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_rehearsal_is_named(tmp_path):
    result = run_script("benchmarks.bench_gpu", cwd=tmp_path)
    assert result.status == 2 and "On a CPU, --rehearse --json FILE shows that this works." in result.stderr
    result = run_script("benchmarks.bench_gpu", "--rehearse", cwd=tmp_path)
    assert result.status == 2 and "Name a file for its rows with --json FILE." in result.stderr


def test_a_median_is_steady_once_two_more_samples_hardly_move_it():
    assert not is_steady([1, 1, 1, 1])
    assert is_steady([1, 1, 1, 1, 1]) and is_steady([9, 1, 1, 1, 1])
    assert not is_steady([1, 2, 3, 4, 5])
    assert is_steady(list(range(15)))


def test_a_row_states_the_share_of_the_memory_and_what_is_below_its_target(monkeypatch):
    monkeypatch.setattr(common, "memory_gb_per_s", lambda device: 4000.0)
    measured = row(ours=2.0).with_memory_share(4.0)  # 4 GB in 2 ms
    assert measured.cells()[common.HEADINGS.index("share of limit")] == "50 % of 4,000 GB/s"
    assert measured.cells()[1:5] == ("", "2 ms", "", "")
    assert not measured.is_below_share and not replace(measured, share_target=0.5).is_below_share
    below = replace(measured, share_target=0.6)
    assert below.is_below_share and below.cells()[5] == "50 % of 4,000 GB/s, below 60 %"
    assert row(ours=2.0).against(5.0).ratio == 2.5
