"""The same results on a CUDA GPU as on the CPU. Skipped where there is none."""

import json
import logging
import re
import shutil
import socket
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import distributed_worker, trainings
from helpers.evaluations import SCRIPTS, run_mode
from helpers.models import MODES, image_batch, reference_model
from helpers.processes import run_python, run_script, run_two_ranks
from helpers.services import ASSETS, DATABASE, QUERIES, served

from datasets.config import PlacesConfig
from datasets.gsv_cities import GSVCities
from datasets.image_set import ImageSet
from model import PlaceRecognizer, prepare_for_inference
from model.config import PRECISIONS
from model.inference import dtype_of
from utils.retrieval import gpu_search
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, Forward, extract, prepare
from utils.retrieval.search import search_hamming
from utils.training.config import TrainingConfig
from utils.training.loader import PlaceLoader
from utils.training.losses import float_losses, hashing_losses
from utils.training.step import TrainingStep, set_training_mode
from utils.training.trainer import LossesOnTheirWay

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


@contextmanager
def gpu_memory(megabytes):
    """Limits what this process may still take of the GPU's memory."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 1e6) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def one_rank():
    """The environment of a process that torchrun would start alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.mark.parametrize("aggregation", ["gem", "boq", "salad"])
def test_descriptors(aggregation):
    model = reference_model("vit-tiny", aggregation).eval()
    images = torch.from_numpy(image_batch(5, 4, 126, 140))
    with torch.inference_mode():
        expected = model(images)
        actual = model.cuda()(images.cuda()).cpu()
    assert (torch.cosine_similarity(actual, expected) > 0.9999).all()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_prepared_models(precision, compiled):
    model = reference_model("vit-tiny", "gem", **MODES["two_branch"])
    images = torch.from_numpy(image_batch(5, 4, 126, 140))
    with torch.inference_mode():
        expected = model(images)
    prepared = prepare_for_inference(model, dtype_of(precision), device="cuda", compiled=compiled)
    assert (prepared.network._compiled_call_impl is not None) == compiled
    actual = prepared(images.cuda())
    bound = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2}[precision]
    for one, other in ((actual.descriptor, expected.descriptor), (actual.logits, expected.logits)):
        assert ((one.float().cpu() - other).norm(dim=1) < bound).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", SCRIPTS)
def test_recalls_of_the_scripts(tiny_benchmark, checkpoints, tmp_path, mode, precision):
    expected = run_mode(mode, tiny_benchmark, checkpoints, tmp_path / "cpu").results["recalls"]
    flags = ["--device=cuda", f"--precision={precision}", "--num_workers=2"]
    actual = run_mode(mode, tiny_benchmark, checkpoints, tmp_path / "gpu", *flags).results["recalls"]
    assert all(abs(actual[n] - expected[n]) <= 10 for n in expected)  # one of ten queries


def training_step(branch, device, precision):
    """A step of vit-tiny, its images and their labels."""
    model = reference_model("vit-tiny", **MODES["float" if branch == "float" else "two_branch"])
    config = TrainingConfig(optim="adam", lr=4e-4, device=device, precision=precision)
    criterion = float_losses if branch == "float" else hashing_losses
    step = TrainingStep(model, config, criterion=criterion, branch=branch)
    set_training_mode(model)
    images = torch.from_numpy(image_batch(7, 8, 56, 56)).to(device)
    return step, images, torch.arange(4, device=device).repeat_interleave(2)


@pytest.mark.parametrize("branch", ["float", "binary"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_steps(precision, branch):
    losses = {}
    for device, used in (("cpu", "fp32"), ("cuda", precision)):
        step, images, labels = training_step(branch, device, used)
        losses[device] = [float(step(images, labels).total) for _ in range(3)]
    bound = {"fp32": 2e-3, "fp16": 1e-2, "bf16": 5e-2}[precision]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=bound)


@pytest.mark.parametrize("branch", ["float", "binary"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_training_step_never_waits_for_the_gpu(precision, branch):
    """Where one does, or waits for a copy, PyTorch raises. test_training.py has all stages, on the CPU."""
    step, images, labels = training_step(branch, "cuda", precision)
    if branch == "binary":
        step.criterion = partial(hashing_losses, pair_fraction=0.5, generator=torch.Generator())
    step(images, labels)  # the first one prepares
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_their_way = LossesOnTheirWay(step(images, labels))
        step(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < on_their_way.arrived()["total"] < 100


def test_a_compiled_training_step():
    losses = {}
    for compiled in (False, True):
        model = reference_model("vit-tiny")
        config = TrainingConfig(lr=4e-4, device="cuda", precision="bf16", compile=compiled)
        step = TrainingStep(model, config, criterion=float_losses, branch="float")
        assert (model._compiled_call_impl is not None) == compiled
        set_training_mode(model)
        images = torch.from_numpy(image_batch(7, 8, 56, 56)).cuda()
        labels = torch.arange(4, device="cuda").repeat_interleave(2)
        losses[compiled] = [float(step(images, labels).total) for _ in range(3)]
    assert losses[True] == pytest.approx(losses[False], rel=5e-2)


def test_one_rank_with_nccl_trains_as_a_process_alone(city, tmp_path):
    means = []
    for name, env in (("alone", {}), ("nccl", one_rank())):
        (tmp_path / name).mkdir()
        flags = ["--train_backbone", "--device=cuda", "--precision=fp32", "--num_workers=1"]
        result = run_script("train.py", *trainings.flags_for(city, *flags), cwd=tmp_path / name, env=env)
        assert result.status == 0, result.stderr
        rows = trainings.metrics_of(trainings.the_folder(tmp_path / name))
        means.append([float(row["loss"]) for row in rows])
    assert len(means[0]) == 2
    assert means[1] == pytest.approx(means[0], rel=1e-2)


def test_two_ranks_on_one_card_train_as_one(tmp_path):
    """With gloo, since NCCL refuses two ranks on a card; BatchNorm takes its statistics over both."""
    worker = Path(distributed_worker.__file__)
    prelude = f"import sys; sys.path.append({str(worker.parents[1])!r})"
    for result in run_two_ranks(worker, tmp_path / "found.pt", "cuda:0", cwd=tmp_path, prelude=prelude):
        assert result.status == 0, result.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for branch, is_binary in (("float", False), ("hashing", True)):
        alone, _ = distributed_worker.train(is_binary, [len(distributed_worker.LABELS)], "cuda:0")
        for split in ("even", "uneven"):
            (losses, state), (others, other_state) = (rank[split][branch] for rank in found)
            torch.testing.assert_close(losses, alone, rtol=5e-2, atol=1e-3)
            assert torch.equal(losses, others)
            assert all(torch.equal(value, other_state[name]) for name, value in state.items())


def test_collectives_of_nccl(tmp_path):
    code = """
import torch
import torch.distributed as dist
from utils.runtime import distributed
distributed.init("cuda:0")
assert dist.get_backend() == "nccl"
rows = torch.arange(12.0, device="cuda").reshape(4, 3).requires_grad_()
gathered = distributed.gather_batch(rows, [4])
gathered.pow(2).sum().backward()
assert torch.equal(gathered, rows) and torch.equal(rows.grad, 2 * rows)
flat = torch.ones(3, device="cuda")
dist.all_reduce(flat)
dist.broadcast(flat, src=0)
assert flat.tolist() == [1, 1, 1]
assert distributed.all_gather_int(7) == [7] and distributed.broadcast_object("x") == "x"
distributed.shutdown()
print("done")
"""
    result = run_python(code, cwd=tmp_path, env=one_rank())
    assert result.stdout == "done\n", result.stderr


def test_batches_that_do_not_fit_are_halved(caplog):
    model = reference_model("vit-tiny")
    config = ExtractionConfig(resize=(322, 322), batch_size=256, device="cuda")
    images = torch.rand(256, 3, 322, 322)
    forward = Forward(prepare(model, replace(config, batch_size=16)), config)
    forward.max_batch = 16
    _, expected = forward(images)
    torch.cuda.reset_peak_memory_stats()
    forward(images)
    enough_for_16 = (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / 1e6
    forward.max_batch = 256
    with gpu_memory(3 * enough_for_16), caplog.at_level(logging.WARNING):
        _, actual = forward(images)
    assert 16 <= forward.max_batch < 256
    assert "GPU out of memory at batch size 256; retrying with 128." in caplog.text
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def test_blocks_of_the_search_that_do_not_fit_are_halved(caplog):
    random = np.random.default_rng(0)
    database = random.integers(0, 256, (300_000, 64), dtype=np.uint8)
    queries = random.integers(0, 256, (600, 64), dtype=np.uint8)
    expected = search_hamming(database, queries, 10)
    with gpu_memory(300), caplog.at_level(logging.WARNING):
        actual = search_hamming(database, queries, 10, device="cuda")
    halved = [int(text) for text in re.findall(r"retrying with blocks of (\d+) codes", caplog.text)]
    assert halved and halved[0] == gpu_search.DATABASE_BLOCK // 2
    np.testing.assert_array_equal(actual.indices, expected.indices)


def test_images_are_copied_from_pinned_memory(tiny_benchmark, city, monkeypatch):
    """Only then does `non_blocking` let the copy run beside other work."""
    pinned = []
    copy = torch.Tensor.to

    def watched(tensor, *args, **kwargs):
        if kwargs.get("non_blocking"):
            pinned.append(tensor.is_pinned())
        return copy(tensor, *args, **kwargs)

    paths = sorted((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())
    places = GSVCities(city / "gsv_cities", PlacesConfig(cities=("Alder",), image_size=(56, 56), images_per_place=2))
    loader = PlaceLoader(places, TrainingConfig(batch_size=4, device="cuda"), num_workers=1)
    monkeypatch.setattr(torch.Tensor, "to", watched)
    config = ExtractionConfig(resize=(56, 56), batch_size=4, device="cuda", num_workers=1)
    extractor = Extractor(model=prepare(reference_model("vit-tiny"), config), config=config)
    extract(extractor, ImageSet.without_positions(paths))
    assert pinned == [True] * 4
    next(loader.batches(0, 0))
    assert pinned[4:] == [True, True]  # images and labels


@pytest.mark.parametrize("values", [2, 256])  # of a byte; with 2 there are many ties
def test_the_search_by_codes(values):
    random = np.random.default_rng(0)
    database = random.integers(0, values, (300_000, 64), dtype=np.uint8)  # three blocks
    queries = np.concatenate([random.integers(0, values, (600, 64), dtype=np.uint8), ~database[:1]])
    expected = search_hamming(database, queries, 100)
    actual = search_hamming(database, queries, 100, device="cuda")
    np.testing.assert_array_equal(actual.distances, expected.distances)
    np.testing.assert_array_equal(actual.indices, expected.indices)


@pytest.mark.parametrize("mode", MODES)
def test_a_recogniser_describes_and_finds_as_on_the_cpu(mode):
    model = reference_model("vit-tiny", "gem", **MODES[mode])
    photos = [
        np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8).repeat(10, 0).repeat(10, 1) for i in range(9)
    ]
    found = {}
    for device in ("cpu", "cuda"):
        recognizer = PlaceRecognizer(model, device=device, resize=(56, 70))
        recognizer.add(photos, names=[f"photo {i}" for i in range(9)])
        matches = [match for [match] in recognizer.search(photos, 1)]
        sequence = recognizer.search_sequence(photos[3:6], 1)
        found[device] = [(match.name, match.metric) for match in [*matches, *sequence]], recognizer.describe(photos)
    assert found["cuda"][0] == found["cpu"][0]
    assert [name for name, _ in found["cuda"][0]] == [f"photo {i}" for i in [*range(9), 5]]
    ours, theirs = found["cuda"][1], found["cpu"][1]
    if ours.descriptor is not None:
        np.testing.assert_allclose(ours.descriptor, theirs.descriptor, atol=1e-3, rtol=0)
    if ours.code is not None:
        assert np.unpackbits(ours.code ^ theirs.code).mean() < 0.01  # bits of logits next to 0


def test_an_index_of_the_gpu_is_continued_searched_and_served(tmp_path):
    pytest.importorskip("fastapi", reason="the packages of requirements-serve.txt are not installed")
    model, photos = ASSETS / "model.safetensors", tmp_path / "photos"
    answers = {}
    for device in ("cpu", "cuda"):
        shutil.rmtree(photos, ignore_errors=True)
        photos.mkdir()
        for flags, images in (([f"--model={model}"], DATABASE[::2]), (["--append"], DATABASE[1::2])):
            for image in images:
                shutil.copy2(image, photos)
            command = [photos, f"--index={tmp_path / device}", f"--device={device}", *flags]
            result = run_script("build_index.py", *command, cwd=tmp_path)
            assert result.status == 0, result.stderr
        command = [*QUERIES, f"--index={tmp_path / device}", "--json", f"--device={device}", "--results=1"]
        result = run_script("search.py", *command, cwd=tmp_path)
        assert result.status == 0, result.stderr
        answers[device] = [query["matches"][0]["path"] for query in json.loads(result.stdout)["queries"]]
    assert answers["cuda"] == answers["cpu"]
    with served(tmp_path / "cuda", "--device=cuda", "--show_paths", cwd=tmp_path) as server:
        names = [server.search(query).content["matches"][0]["name"] for query in QUERIES]
    assert names == answers["cpu"]
