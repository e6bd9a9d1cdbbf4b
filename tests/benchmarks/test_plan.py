"""The plan for an index of many images."""

import json
import sys
from dataclasses import replace

import pytest

from benchmarks import plan
from benchmarks.plan import Plan, duration, extraction_seconds, size, stages, text_of
from model import InputError, ModelConfig
from model.index.metadata import IndexMetadata

TEN_MILLION = Plan(images=10_000_000, device="h200", model="base", cores=16, descriptor_dtype="fp16")


def test_times_and_sizes_grow_with_the_number_of_images():
    larger = replace(TEN_MILLION, images=100_000_000)
    for small, large in zip(stages(TEN_MILLION), stages(larger), strict=True):
        assert large.seconds == pytest.approx(10 * small.seconds) and small.seconds > 0, small.name
    assert larger.disk_bytes == 10 * TEN_MILLION.disk_bytes
    assert (TEN_MILLION.shards, larger.shards) == (1, 2)


def test_the_slower_of_preparing_and_computing_counts_for_the_build():
    prepared, computed = extraction_seconds(TEN_MILLION)
    assert prepared > computed  # 16 cores do not keep this GPU busy
    building = {stage.name for stage in stages(TEN_MILLION) if stage.builds}
    assert "decoding and resizing" in building and "extraction" not in building
    fed = replace(TEN_MILLION, cores=64)
    assert extraction_seconds(fed)[0] == pytest.approx(prepared / 4)
    assert "extraction" in {stage.name for stage in stages(fed) if stage.builds}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_the_bytes_of_an_image_are_those_of_the_format(dtype):
    planned = replace(TEN_MILLION, descriptor_dtype=dtype)
    nothing = dict.fromkeys(IndexMetadata.__dataclass_fields__)
    known = {"model": ModelConfig(), "code_bits": 512, "descriptor_dim": 2048, "descriptor_dtype": dtype}
    stored = IndexMetadata(**{**nothing, **known})
    assert planned.image_bytes - plan.PATH_BYTES - plan.MANIFEST_BYTES == sum(stored.row_bytes.values())


def test_times_lie_on_a_line_through_the_measured_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    (tmp_path / plan.INDEX).mkdir()
    for dim, microseconds in ((64, 1), (2048, 32)):
        rows = [{"stage": "compacting", "images": 10, "us/image": microseconds, "peak MB": 5}]
        (tmp_path / plan.INDEX / f"index_{dim}.json").write_text(json.dumps({"rows": rows}))
    halfway = replace(TEN_MILLION, descriptor_dtype="int8")  # 2052 bytes
    assert plan.index_seconds("compacting", halfway) == pytest.approx(2052 / 128 * 1e-6)
    assert plan.index_memory("compacting", halfway) == pytest.approx(5e12)


def test_the_command_prints_the_plan(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", "--images", "10e6", "--device", "cpu"])
    plan.main()
    printed = capsys.readouterr().out
    assert printed.startswith("10,000,000 images; cpu, 2 cores; base model, 2048 dimensions in fp16")
    assert "11.7 days" in printed and "xeon-amx, 2 cores" in printed
    assert "disk, folder | 42.9 GB" in text_of(TEN_MILLION)


def test_a_model_that_was_not_measured_is_refused():
    with pytest.raises(InputError, match="--model large was not measured on cpu, but base was"):
        replace(TEN_MILLION, device="cpu", model="large")


def test_durations_and_sizes_have_units_that_suit_them():
    assert [duration(s) for s in (0.05, 3, 200, 7300, 1e6)] == ["50 ms", "3 s", "3.33 min", "2.03 h", "11.6 days"]
    assert [size(n) for n in (5e6, 4.3e10, 4.3e12)] == ["5 MB", "43.0 GB", "4.3 TB"]
