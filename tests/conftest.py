"""What several test files share: a tiny benchmark on disk and checkpoints for it."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("helpers")  # before any of its modules is imported

from helpers.checkpoints import save_published
from helpers.models import MODES, reference_model
from PIL import Image

from datasets.synthetic import CityConfig, make_city
from model import BACKBONES

torch.set_num_threads(1)  # tiny models: a second thread costs more than it gives, much more beside another busy process


def pytest_addoption(parser) -> None:
    parser.addoption("--faults", action="store_true", help="also run the random trials of tests/faults")


SLOWEST_FILES = [  # these start first, so that no process ends the run alone with one of them
    *("test_train_scripts.py", "test_milvus.py", "test_golden_training.py", "test_eval.py", "test_weights.py"),
    *("test_hub.py", "test_index.py", "test_eval_options.py", "test_pca_index.py", "test_onnx.py"),
]


PROOFS = [  # make test-all alone runs these: other sizes, kinds and moments of what the remaining tests show
    "test_steps_of_training[3-",
    "test_pickles_copies_and_traces_of_a_loaded_model",
    "test_a_program_keeps_its_own_modules[theirs]",
    "test_what_is_loaded_twice_or_in_several_threads_is_one_package",
    "test_names_that_a_terminal_cannot_show_do_not_end_a_run",
    "test_a_stopped_run_says_how_to_continue[2-130]",
    *(f"test_methods_run_in_every_script[{case}]" for case in ("five_crops-float", "five_crops-hashing")),
    "test_methods_run_in_every_script[maj_voting-hashing]",
    *(f"test_a_database_image_finds_itself_and_reduced_descriptors_are_exported[{case}]" for case in ("fp16", "int8")),
    *(f"test_onnxruntime_gives_the_models_outputs_for_any_batch_size[{name}]" for name in ("float", "half")),
    *(f"test_shapes_are_fixed_but_for_the_batch_and_nothing_is_resized[{name}]" for name in ("float", "half")),
    *(f"test_a_model_with_it_gives_unit_vectors_in_float32[{name}]" for name in ("boq", "gem")),
    "test_reference_outputs[dinov2-large:gem:rerank:1:224]",
    "test_evaluation_on_a_system_without_unix_modules",
    "test_training_on_a_system_without_unix_modules",
    "test_evaluations_and_searches_give_the_same_predictions[two_branch-4]",
    "test_killed_while_it_writes_and_resumed_is_uninterrupted",
    "test_stopped_and_resumed_is_uninterrupted[train_rerank.py",
    "test_distributed.py::test_train",
    "test_the_frozen_backbone_gives_the_losses_of_the_model_alone",
    "test_each_image_size_has_its_own_position_embedding[True]",
    "test_a_step_takes_the_backbone_from_a_checkpoint_that_is_loaded_after_it_was_made[float]",
    "test_a_late_rank_that_sees_no_file_but_the_images_trains_and_resumes",
    "test_the_command_goes_on_after_a_kill_without_repeating_runs",
    "test_saved_and_loaded_it_gives_the_predictions_without_an_index[float",
    "test_stage_two_can_select_by_the_codes_alone",
    "test_the_files_are_those_of_an_evaluation[hashing]",
    "test_the_metadata_names_the_model_and_how_to_prepare_images[half]",
    "test_pca[float]",
    "test_a_program_loads_a_checkpoint_with_it",
    "test_codes_of_a_watched_folder_are_fitted_to_all_files_that_can_be_read",
    "test_an_index_is_measured_over_time",
    "test_what_it_copies_is_all_that_the_service_needs",
    "test_a_dataset_that_fails_does_not_lose_the_others[missing]",
    "test_a_compiled_model_trains_the_same_and_its_checkpoint_goes_on_without",
]

LONG_AGO = 1_500_000_000  # seconds since 1970: an index keeps no time of a file that was changed right before


def pytest_xdist_auto_num_workers() -> int:
    return (os.cpu_count() or 1) + 1  # many tests wait for servers, other processes and timeouts


@pytest.fixture(autouse=True)
def _log_level():
    """A script that a test runs in this process logs more; the tests after it should not."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def pytest_collection_modifyitems(config, items) -> None:
    ranks = {name: rank for rank, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))
    for item in items:
        if any(proof in item.nodeid for proof in PROOFS):
            item.add_marker("proof")
    random_trials = [item for item in items if item.get_closest_marker("faults")]
    if random_trials and not config.getoption("--faults"):
        config.hook.pytest_deselected(items=random_trials)
        items[:] = [item for item in items if not item.get_closest_marker("faults")]


@pytest.fixture
def shallow_vit(monkeypatch):
    """Until the test ends, vit-tiny has two blocks: compiling and tracing it take a sixth of the time."""
    monkeypatch.setitem(BACKBONES, "vit-tiny", replace(BACKBONES["vit-tiny"], depth=2, num_adapters=2))


def draw_image(place: int, view: int) -> Image.Image:
    """An image of a place: a pattern of its own, with the noise and the size of this view."""
    pattern = np.random.default_rng(place).uniform(0, 255, (3, 4, 3))
    random = np.random.default_rng([place, view])
    height, width = random.integers((56, 70), (121, 161))
    photo = np.asarray(
        Image.fromarray(pattern.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC), float
    )
    return Image.fromarray((photo + random.normal(0, 25, photo.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def tiny_benchmark(tmp_path_factory) -> Path:
    """A datasets folder with the benchmark "tiny": 16 database images of 8 places, 10 queries, 2 of them elsewhere."""
    datasets = tmp_path_factory.mktemp("datasets")
    for folder, views in (("database", (0, 1)), ("queries", (2,))):
        target = datasets / "tiny" / "images" / "test" / folder
        target.mkdir(parents=True)
        for place in range(10 if folder == "queries" else 8):
            for view in views:
                easting = 500000 + 50 * place + 7 * view + (5000 if place >= 8 else 0)
                path = target / f"@{easting:.2f}@6950000.00@{place}_{view}@.jpg"
                draw_image(place, view).save(path, quality=90)
                os.utime(path, (LONG_AGO, LONG_AGO))
    return datasets


@pytest.fixture(scope="module")
def driver():
    """A headless Chromium, in modules that import helpers.browser, which skips them where there is none."""
    from helpers.browser import open_browser

    browser = open_browser()
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """vit-tiny with reference parameters in the published form: "float", "hashing", "two_branch", "salad" (float)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    models = {**{mode: ("gem", flags) for mode, flags in MODES.items()}, "salad": ("salad", {})}
    paths = {}
    for name, (aggregation, flags) in models.items():
        state = reference_model("vit-tiny", aggregation, **flags).state_dict()
        paths[name] = save_published(state, folder / f"{name}.pth")
    return paths


@pytest.fixture(scope="session")
def city(tmp_path_factory):
    """A datasets folder: 2 cities x 13 places x 4 images, and "synthetic" with 3 places in val and 4 in test."""
    folder = tmp_path_factory.mktemp("city") / "city"
    config = CityConfig(
        cities=("Alder", "Birch"), places=26, photos_per_place=4, val_places=3, test_places=4, size=(64, 64)
    )
    make_city(folder, config, progress=False)
    return folder


@pytest.fixture(scope="session")
def foundation(tmp_path_factory):
    """DINOv2-like weights for vit-tiny: the reference parameters of its backbone."""
    state = reference_model("vit-tiny").backbone.state_dict()
    path = tmp_path_factory.mktemp("foundation") / "vit_tiny.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith("adapters")}, path)
    return path
