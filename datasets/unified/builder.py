"""Builds the cities, one after the other. A city appears only when it is complete, and is then not built again."""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from datasets.layouts import is_system_name
from datasets.unified.config import UnifiedConfig
from datasets.unified.planning import CityPlan, CitySummary, make_plans
from model.errors import InputError
from model.files import remove_leftovers
from model.saving import lock_folder
from utils.runtime.atomic_files import atomic_folder, atomic_write, make_folder

IMAGES_PER_TASK = 64  # of one thread; an interrupt waits for these
File = tuple[str, str]  # name in the city's folder, path of the source image


def build(config: UnifiedConfig) -> tuple[list[CitySummary], int]:
    """Builds what is not complete yet. Returns the counts of each source city, and how many output cities are new.

    The same sources and options give the same bytes, even if runs are killed in between. Other files in the output
    folder are left alone. Raises InputError if a source or the output cannot be used, the disk is too small, or another
    run builds in the same folder.
    """
    if config.output.exists() and not config.output.is_dir():
        raise InputError(f"The output {config.output} is a file. Name a folder.")
    plans, summaries = make_plans(config)
    lock = lock_folder(make_folder(config.output, exist_ok=True))
    try:
        for folder in ("Images", "Dataframes"):
            remove_leftovers(config.output / folder)
        pending = [plan for plan in plans if not is_complete(plan, config.output)]
        if not config.symlink:
            _check_space(pending, config)
        total = sum(len(plan.images) for plan in pending)
        with tqdm(total=total, desc="Linking" if config.symlink else "Copying", unit=" images", disable=None) as bar:
            for plan in pending:
                _build_city(plan, config, bar)
    finally:
        lock.release()
    return summaries, len(pending)


def is_complete(plan: CityPlan, output: Path) -> bool:
    """Whether the city exists exactly as planned. Raises InputError if something else has its name."""
    images, table = _paths(plan, output)
    if not os.path.lexists(images) and not os.path.lexists(table):
        return False
    expected = plan.files().keys()
    actual = {name for name in os.listdir(images) if not is_system_name(name)} if images.is_dir() else set()
    if not os.path.lexists(table) and actual == expected:
        return False  # a run ended just before it wrote the CSV file
    if not table.is_file() or table.read_bytes() != plan.table():
        raise InputError(
            f"{plan.name} exists in {output}, but differs from what this command would build: it was made from other "
            f"images, with other options, or by another program. Choose another output, or remove {table} and {images}."
        )
    missing = sorted(expected - actual)
    if missing:
        raise InputError(
            f"{images} lacks {len(missing)} of the {len(expected)} images that {table} lists, such as {missing[0]}. "
            "Remove both, then run the same command again."
        )
    return True


def _paths(plan: CityPlan, output: Path) -> tuple[Path, Path]:
    """The folder of the city's images, and its CSV file, which is written last and marks a complete city."""
    return output / "Images" / plan.name, output / "Dataframes" / f"{plan.name}.csv"


def _check_space(plans: Sequence[CityPlan], config: UnifiedConfig) -> None:
    """Raises InputError if the disk cannot hold the images of the cities, or a source image cannot be read."""
    needed = 0
    with ThreadPoolExecutor(config.workers) as pool:
        for plan in tqdm(plans, "Adding up file sizes", unit=" cities", leave=False, disable=None):
            if not _paths(plan, config.output)[0].exists():
                needed += sum(pool.map(_total_size, _chunks(plan)))
    require_space(needed, config.output, "choose fewer cities")


def require_space(needed: int, folder: Path, remedy: str) -> None:
    """Raises InputError if the disk cannot hold copies of so many bytes. remedy: what a user can do beside others."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"Copying the images needs {_size(needed)}, but only {_size(free)} are free in {folder}. Free some space, "
            f"{remedy}, or use --symlink, which needs hardly any space."
        )


def _total_size(files: Sequence[File]) -> int:
    try:
        return sum(os.stat(source).st_size for _, source in files)
    except OSError as error:
        raise InputError(f"Cannot read {error.filename}: {error.strerror}.") from error


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e3:.1f} kB"


def _build_city(plan: CityPlan, config: UnifiedConfig, bar: tqdm) -> None:
    images, table = _paths(plan, config.output)
    try:
        make_folder(images.parent, exist_ok=True)
        make_folder(table.parent, exist_ok=True)
        if not images.exists():
            with atomic_folder(images) as folder, ThreadPoolExecutor(config.workers) as pool:
                try:
                    for count in pool.map(partial(_transfer, folder=folder, symlink=config.symlink), _chunks(plan)):
                        bar.update(count)
                finally:  # after an error or a signal, the pool waits for no tasks but those that have begun
                    pool.shutdown(wait=False, cancel_futures=True)
        with atomic_write(table, "wb") as file:
            file.write(plan.table())
    except InputError as error:
        raise InputError(
            f"{error} Complete cities are kept: solve this, then run the same command again to continue."
        ) from error


def _chunks(plan: CityPlan) -> Iterator[list[File]]:
    files = list(plan.files().items())
    for start in range(0, len(files), IMAGES_PER_TASK):
        yield files[start : start + IMAGES_PER_TASK]


def _transfer(files: Sequence[File], *, folder: Path, symlink: bool) -> int:
    """Copies or links the source images into the folder. Returns how many they are."""
    for name, source in files:
        transfer_file(source, folder / name, symlink=symlink)
    return len(files)


def transfer_file(source: str, target: Path, *, symlink: bool) -> None:
    """Copies a source image, or links to it. Raises InputError, which names both."""
    try:
        if symlink:
            os.symlink(os.path.abspath(source), target)
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"Cannot copy {source} to {target.parent.parent}: {error.strerror or error}.") from error
