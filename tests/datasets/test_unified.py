"""The unified dataset: the original builder's figures, an oracle for the grouping, broken runs and bad input."""

import csv
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import utm
from filelock import FileLock
from helpers.processes import ROOT, last_of_each, start_script
from helpers.unified_sources import GOLDEN, JPEG, contents, write_files, write_golden_sources, write_msls

from datasets.cities import GSV_CITIES, TRAINING_DATASETS
from datasets.config import PlacesConfig
from datasets.gsv_cities import GSVCities
from datasets.unified import CITIES, UnifiedConfig, build, output_names
from datasets.unified.__main__ import main
from datasets.unified.places import SF_XL_GRID, STREET_GRID, Grid, group_places
from datasets.unified.sources import read_sources
from model import InputError
from model.files import TEMPORARY
from model.saving import LOCK
from utils.runtime.signals import Stopped

COLUMNS = "place_id,year,month,northdeg,city_id,lat,lon,panoid".split(",")
ROW = "0,key{},10.39,63.43,10.5,2019-02-11,False"  # a place, if there are four


def told_name(path: Path) -> str:
    """The name of the file that a copy was made of."""
    return path.read_bytes()[len(JPEG) :].decode()


def read_csv(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def unfinished_in(folder: Path) -> list[str]:
    """The names of the temporary files and folders below a folder."""
    names = (name for _, folders, files in os.walk(folder) for name in (*folders, *files))  # some vanish meanwhile
    return [name for name in names if TEMPORARY.fullmatch(name)]


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """{relative path: (inode, time of the last change)} of all files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[str]:
    return write_golden_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def unified(tmp_path_factory, sources) -> Path:
    output = tmp_path_factory.mktemp("unified") / "output"
    main([str(output), *sources])
    return output


@pytest.fixture(scope="module")
def unified_contents(unified) -> dict[str, str]:
    return contents(unified)


@pytest.fixture
def small(tmp_path) -> Path:
    """A folder "msls" with two places of trondheim, and "sf_xl" with one place."""
    lines = [ROW.format(i) for i in range(4)] + [ROW.format(i).replace("10.39", "10.40") for i in range(4, 9)]
    write_msls(tmp_path / "msls", {"trondheim": {"database": lines[:6], "query": lines[6:]}})
    write_files(tmp_path / "sf_xl" / "images" / "train", [sf_xl_name(pano=f"p{i}") for i in range(4)])
    return tmp_path


def sf_xl_name(pano: str, heading: int = 10, easting: float = 544882.17) -> str:
    return f"@{easting:010.2f}@4173730.30@10@S@037.70972@-122.49080@{pano}@@{heading}@@@@201908@@.jpg"


def run_small(folder: Path, *flags: str, cities: Sequence[str] = ("trondheim",)) -> None:
    sources = [f"--{name}={folder / name}" for name in ("msls", "sf_xl")]
    main([str(folder / "output"), *sources, "--cities", *cities, *flags])


def refusal(command: Callable[..., None], *arguments: object, **options: object) -> str:
    """The message with which a command refuses."""
    with pytest.raises(InputError) as caught:
        command(*arguments, **options)
    return str(caught.value)


def test_the_cities_are_those_of_the_original(unified):
    names = {path.name for path in (unified / "Images").iterdir()}
    pitts30k = {name for name in names if name.startswith("Pitts30k")}
    assert names - pitts30k == set(GOLDEN["cities"])
    assert {path.stem for path in (unified / "Dataframes").iterdir()} == names
    assert {path.name for path in unified.iterdir()} == {"Dataframes", "Images", LOCK}


@pytest.mark.parametrize("city", GOLDEN["cities"])
def test_rows_and_images_are_those_of_the_original(unified, city):
    rows = read_csv(unified / "Dataframes" / f"{city}.csv")
    assert rows == [COLUMNS, *GOLDEN["cities"][city]]
    expected = {}
    for place, year, month, _, _, lat, lon, panoid in GOLDEN["cities"][city]:
        name = f"{city}_{int(place):07d}_{year}_{month}_010_{float(lat)}_{float(lon)}_{panoid}.jpg"
        expected[name] = panoid
    assert {path.name for path in (unified / "Images" / city).iterdir()} == set(expected)
    for name, panoid in expected.items():
        source = told_name(unified / "Images" / city / name)
        assert (source.split("@")[7] if city == "SFXL" else source) == (panoid if city == "SFXL" else f"{panoid}.jpg")


def test_the_places_of_pitts30k_are_those_of_the_original(unified):
    places = []
    for folder in (unified / "Images").glob("Pitts30k*"):
        images = sorted(folder.iterdir(), key=lambda path: path.name.split("_")[1])
        for _, place in itertools.groupby(images, key=lambda path: path.name.split("_")[1]):
            places.append(sorted(map(told_name, place)))
    assert sorted(places) == GOLDEN["pitts30k_places"]


def test_rows_of_pitts30k(unified):
    for table in (unified / "Dataframes").glob("Pitts30k*.csv"):
        header, *rows = read_csv(table)
        assert header == COLUMNS
        for place, year, month, north, city, lat, lon, panoid in rows:
            assert (year, month, north, city) == ("2024", "09", "10", table.stem)
            name = f"{city}_{int(place):07d}_2024_09_010_{float(lat)}_{float(lon)}_{panoid}.jpg"
            fields = told_name(unified / "Images" / city / name).split("@")
            assert fields[5:9] == [lat, lon, *panoid.rsplit("-", 1)]


def test_names_are_those_that_training_expects():
    names = [name for city in CITIES for name in output_names(city)]
    assert len(names) == len(set(names)) == 413
    assert set(names) == set(TRAINING_DATASETS["unified_dataset"]) - set(GSV_CITIES)


def test_training_reads_the_result(unified):
    cities = ("Trondheim0", "bangkok9", "SFXL", "Pitts30k3")
    dataset = GSVCities(unified, PlacesConfig(cities=cities, image_size=(28, 28)))
    assert dataset.num_images == sum(len(read_csv(unified / "Dataframes" / f"{city}.csv")) - 1 for city in cities)
    for place in range(len(dataset)):
        sample = dataset[0, place]
        assert sample.images is not None and sample.images.shape == (4, 3, 28, 28)
        assert not sample.unreadable


@pytest.mark.parametrize("tables", ["train_val", "train"])
def test_images_moved_by_the_downloader_give_the_same(unified_contents, sources, tmp_path, tables):
    moved = tmp_path / "msls"
    shutil.copytree(sources[0].removeprefix("--msls="), moved, copy_function=os.link)
    for new, part in (("database", "database"), ("queries", "query")):
        (moved / "train" / new).mkdir(parents=True)
        for path in sorted((moved / "train_val").glob(f"*/{part}/images/*.jpg")):
            name = f"@0569000.00@7035000.00@32@V@063.4@0010.3@{path.stem}@@1@@@@201902@@.jpg"
            path.rename(moved / "train" / new / name)
    assert not list((moved / "train_val").rglob("*.jpg"))
    for city in ("trondheim", "bangkok"):
        (moved / "train_val" / city).rename(moved / tables / city)
    flags = [*sources, "--msls", str(moved), "--cities", "trondheim", "bangkok"]
    main([str(tmp_path / "output"), *last_of_each(flags)])
    expected = {name: digest for name, digest in unified_contents.items() if "rondheim" in name or "bangkok" in name}
    assert contents(tmp_path / "output") == expected


def test_every_image_gets_the_position_that_utm_gives_it_alone(tmp_path):
    """In one city: several zones, among them Norway's wide one, and both hemispheres."""
    rng = np.random.default_rng(0)
    degrees = [(58.0, 5.9), (58.0, 6.1), (64.5, 5.9), (-23.5, -46.6), (-0.001, 9.0), (0.001, 9.0), (75.0, 20.0)]
    degrees += list(zip(rng.uniform(-80, 84, 300), rng.uniform(-180, 180, 300), strict=True))
    lines = [
        f"{i},key{i:03d},{lon!r},{lat!r},12.9,2019-02-11,False" for i, (lat, lon) in enumerate(map(floats, degrees))
    ]
    write_msls(tmp_path, {"goa": {"database": lines[:200], "query": lines[200:]}})
    (source,) = read_sources(UnifiedConfig(output=tmp_path, msls=tmp_path, cities=("goa",)))
    assert source.names == sorted(source.names)
    assert len(source.names) == len(degrees)
    for name, file in zip(source.names, source.files, strict=True):
        _, east, north, zone, letter, lat, lon, key, *_ = name.split("@")
        expected = utm.from_latlon(*floats(degrees[int(key[3:])]))
        assert (east, north) == (f"{expected[0]:010.2f}", f"{expected[1]:010.2f}")
        assert (zone, letter) == (f"{expected[2]:02d}", expected[3])
        assert (len(lat), len(lon)) == (9, 10)
        assert np.allclose((float(lat), float(lon)), degrees[int(key[3:])], atol=6e-6)
        assert file.endswith(f"/{key}.jpg")


def floats(pair: Sequence[float]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def naive_groups(images: list[tuple[float, float, float]], grid: Grid) -> list[list[list[int]]]:
    """Places by comparing every image with every other: the definition, word by word."""

    def floor_to(value: float, step: int) -> int:
        return int(np.floor(value / step)) * step

    steps = (grid.cell_size, grid.cell_size, grid.heading_step)
    counts = (grid.cell_groups, grid.cell_groups, grid.heading_groups)

    def cell(image: tuple[float, float, float]) -> tuple[int, ...]:
        return tuple(map(floor_to, image, steps))

    def key(cell: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(part // step % count for part, step, count in zip(cell, steps, counts, strict=True))

    cells = [cell(image) for image in images]
    surviving = [i for i, c in enumerate(cells) if sum(other == c for other in cells) >= 4]
    keys = []
    for i in surviving:
        if key(cells[i]) not in keys:
            keys.append(key(cells[i]))
    groups = []
    for group_key in keys:
        order = set()
        for i in surviving:
            if key(cells[i]) == group_key:
                order.add(cells[i])
        groups.append([[i for i in surviving if cells[i] == place] for place in list(order)])
    return groups


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("grid", [STREET_GRID, SF_XL_GRID], ids=["street", "sf_xl"])
def test_groups_are_those_of_a_naive_loop(grid, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform((1e5, 0), (9e5, 1e7))
    images = []
    for _ in range(700):
        east, north = (corner + rng.integers(0, 500 * grid.cell_size, 2) / 100).tolist()
        images.append((east, north, float(rng.choice([0, 59, 60, 119.5, 300, 359.999, 360, -1]))))
    actual = group_places((grid.cell(*image) for image in images), grid)
    expected = naive_groups(images, grid)
    assert actual == expected
    assert len(expected) > grid.cell_groups**2
    assert sum(len(places) for places in expected) > 60


def test_a_city_has_at_most_its_groups_of_the_published_dataset(tmp_path):
    lines = [
        f"{i},key{i:04d},{35.9 + 0.00017 * east},{31.95 + 0.000137 * north},{heading},2019-02-11,False"
        for i, (east, north, heading, _) in enumerate(itertools.product(range(6), range(6), (30, 90), range(8)))
    ]
    write_msls(tmp_path, {city: {"database": lines, "query": []} for city in ("amman", "goa")})
    config = UnifiedConfig(output=tmp_path / "output", msls=tmp_path, cities=("goa", "amman"))
    summaries, num_new = build(config)
    assert [(summary.city, summary.groups) for summary in summaries] == [("goa", 18), ("amman", 17)]
    assert num_new == 35
    assert summaries[0].in_other_groups == 0
    assert summaries[1].images + summaries[1].in_other_groups == summaries[0].images
    assert not (tmp_path / "output" / "Dataframes" / "Amman17.csv").exists()


def test_panoramas_are_skipped_before_anything_else_is_read(small):
    table = small / "msls" / "train_val" / "trondheim" / "query" / "raw.csv"
    table.write_text(table.read_text() + "\n9,pano1,?,?,?,?,True\n")
    summaries, _ = build(UnifiedConfig(output=small / "output", msls=small / "msls", cities=("trondheim",)))
    assert (summaries[0].images, summaries[0].panoramas) == (9, 1)


def test_empty_files_of_msls_are_left_out_and_counted(small):
    """MSLS itself holds three. The place has four images more without them."""
    table = small / "msls" / "train_val" / "trondheim" / "query" / "raw.csv"
    table.write_text(table.read_text() + "\n" + ROW.format("EMPTY"))
    (table.parent / "images" / "keyEMPTY.jpg").touch()
    summaries, _ = build(UnifiedConfig(output=small / "output", msls=small / "msls", cities=("trondheim",)))
    assert (summaries[0].images, summaries[0].empty_files) == (9, 1)
    assert not [path for path in (small / "output").rglob("*.jpg") if "EMPTY" in path.name]


def test_hidden_and_system_files_are_no_images_and_no_difference(small, caplog):
    expected = [Path(file).name for file in next(iter(read_sources(sf_xl_config(small)))).files]
    folder = small / "sf_xl" / "images" / "train"
    (name, *_) = expected
    write_files(folder, [f"._{name}", f"@eaDir/{name}", f".ipynb_checkpoints/{name}"])
    assert [Path(file).name for file in next(iter(read_sources(sf_xl_config(small)))).files] == expected
    assert "3 hidden or system files and folders" in caplog.text and "@eaDir" in caplog.text
    build(sf_xl_config(small))
    for table in (small / "output" / "Dataframes").iterdir():
        (small / "output" / "Images" / table.stem / ".DS_Store").touch()
        table.unlink()
    assert build(sf_xl_config(small))[1] == 1  # the images are complete: only the table is written


def sf_xl_config(small):
    return UnifiedConfig(output=small / "output", sf_xl=small / "sf_xl", cities=("sf_xl",))


# ---- Name collisions of SF-XL


@pytest.fixture
def colliding(tmp_path) -> Path:
    """Place A: five panoramas, one of them with two crops. Place B: four images, two of which are of one panorama."""
    names = [sf_xl_name(pano=f"a{i}") for i in range(5)] + [sf_xl_name("a2", 20)]
    names += [sf_xl_name(pano=f"b{i}", easting=544932.17) for i in range(3)] + [sf_xl_name("b0", 20, 544932.17)]
    write_files(tmp_path / "sf_xl" / "images" / "train", names)
    return tmp_path


def test_each_row_has_a_file_of_its_own(colliding):
    config = UnifiedConfig(output=colliding / "output", sf_xl=colliding / "sf_xl", cities=("sf_xl",))
    summaries, _ = build(config)
    rows = read_csv(config.output / "Dataframes" / "SFXL.csv")[1:]
    assert [row[7] for row in rows] == [f"a{i}" for i in range(5)]
    images = [told_name(path) for path in (config.output / "Images" / "SFXL").iterdir()]
    assert len(images) == 5
    assert sf_xl_name("a2", 20) in images  # the later one, which the original keeps too
    assert summaries[0].name_collisions == 5  # one crop of A, and B, which is left with three images
    assert (summaries[0].places, summaries[0].images) == (1, 5)


def test_a_flag_gives_the_rows_of_the_original(colliding):
    run_small(colliding, "--allow_name_collisions", cities=["sf_xl"])
    rows = read_csv(colliding / "output" / "Dataframes" / "SFXL.csv")[1:]
    by_place = [[row[7] for row in rows if row[0] == place] for place in "01"]
    assert sorted(by_place) == [["a0", "a1", "a2", "a2", "a3", "a4"], ["b0", "b0", "b1", "b2"]]
    images = {path.name: told_name(path) for path in (colliding / "output" / "Images" / "SFXL").iterdir()}
    assert len(images) == 8
    (kept,) = [name for name in images.values() if "@a2@" in name]
    assert kept == sf_xl_name("a2", 20)  # the later one


def test_complete_cities_are_not_built_again(unified, sources, capsys):
    before = states(unified)
    main([str(unified), *sources])
    assert states(unified) == before
    assert "0 of them are new" in capsys.readouterr().out


def test_a_removed_city_is_built_again_alone(small):
    run_small(small, cities=["trondheim", "sf_xl"])
    output, expected = small / "output", contents(small / "output")
    before = states(output)
    shutil.rmtree(output / "Images" / "SFXL")
    (output / "Dataframes" / "SFXL.csv").unlink()
    run_small(small, cities=["trondheim", "sf_xl"])
    assert contents(output) == expected
    changed = {name for name, state in states(output).items() if state != before.get(name)}
    assert changed and all("SFXL" in name for name in changed)


def test_gsv_cities_is_left_alone(small):
    output = small / "output"
    for path in ("Images/Boston/Boston_1.jpg", "Dataframes/Boston.csv", "Images/Trondheim0.txt", "notes/mine.txt"):
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_text("mine")
    before, text = states(output), contents(output)
    run_small(small)
    assert {name: state for name, state in states(output).items() if name in before} == before
    assert {name: digest for name, digest in contents(output).items() if name in text} == text


@pytest.mark.parametrize("foreign", ["Dataframes/Trondheim0.csv", "Images/Trondheim0/other.jpg", "Images/Trondheim0"])
def test_a_foreign_city_of_the_same_name_is_left_alone(small, foreign):
    path = small / "output" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    error = refusal(run_small, small)
    assert "Trondheim0 exists in" in error and "Choose another output" in error
    assert path.read_text() == "mine"
    assert not (small / "output" / "Images" / "Trondheim1").exists()


def test_a_complete_city_without_an_image_is_reported(small):
    run_small(small)
    next((small / "output" / "Images").glob("*/*key1.jpg")).unlink()
    assert "lacks 1 of the " in refusal(run_small, small)


def test_links(unified_contents, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").symlink_to(Path(sources[1].removeprefix("--pitts30k=")))
    flags = [*sources[:1], "--pitts30k=relative", *sources[2:], "--symlink"]
    main(["output", *flags])
    monkeypatch.chdir(ROOT)  # the links do not depend on the working directory
    images = list((tmp_path / "output" / "Images").glob("*/*.jpg"))
    assert images and all(path.is_symlink() for path in images)
    assert contents(tmp_path / "output") == unified_contents


def test_a_run_may_end_at_any_step(small, monkeypatch):
    """Like kill -9 at each call that changes a file, one after the other: nothing is cleaned up."""

    class Killed(BaseException):
        pass

    def counted(function, step, last):
        def call(*args, **options):
            if next(step) == last:
                monkeypatch.setattr(shutil, "rmtree", lambda path: None)
                monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: None)
                raise Killed
            return function(*args, **options)

        return call

    run_small(small, cities=["trondheim", "sf_xl"])
    output, expected = small / "output", contents(small / "output")
    for last in itertools.count():
        shutil.rmtree(output)
        step = itertools.count()
        for owner, name in ((shutil, "copyfile"), (os, "replace"), (os, "fsync"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, counted(getattr(owner, name), step, last))
        try:
            run_small(small, "--workers=1", cities=["trondheim", "sf_xl"])
            finished = True
        except Killed:
            finished = False
        monkeypatch.undo()
        for table in output.glob("Dataframes/*.csv"):
            assert len(read_csv(table)) - 1 == len(list((output / "Images" / table.stem).iterdir()))
        if finished:
            break
        run_small(small, cities=["trondheim", "sf_xl"])
        assert contents(output) == expected, last
    assert last > 20


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_continue(unified_contents, sources, tmp_path, number, status):
    output = tmp_path / "output"
    running = start_script("datasets.unified", output, *sources, cwd=tmp_path)
    while not unfinished_in(output) and running.process.is_alive():
        time.sleep(0.005)
    os.kill(running.process.pid, number)
    result = running.result(60)
    assert (result.status, result.stderr) == (status, "interrupted; run the same command again to continue\n")
    assert not unfinished_in(output)
    assert contents(output).items() <= unified_contents.items()
    main([str(output), *sources])
    assert contents(output) == unified_contents


def test_an_interrupt_does_not_wait_for_the_rest_of_the_city(small, monkeypatch):
    write_files(small / "sf_xl" / "images" / "train", [sf_xl_name(pano=f"p{i}") for i in range(60)])
    copyfile, copied = shutil.copyfile, []

    def slow(source, target):
        time.sleep(0.02)
        copied.append(copyfile(source, target))

    def interrupt(bar, count):
        if bar.total == 60:  # that of copying; those of reading know no total
            raise Stopped(signal.SIGINT)

    monkeypatch.setattr("datasets.unified.builder.IMAGES_PER_TASK", 1)
    monkeypatch.setattr(shutil, "copyfile", slow)
    monkeypatch.setattr("datasets.unified.builder.tqdm.update", interrupt)
    with pytest.raises(Stopped):
        run_small(small, "--workers=2", cities=["sf_xl"])
    assert 0 < len(copied) < 30
    assert contents(small / "output") == {}


def test_a_second_builder_is_refused(small, monkeypatch):
    monkeypatch.setattr("model.saving.LOCK_SECONDS", 0.2)
    (small / "output").mkdir()
    with FileLock(small / "output" / LOCK):
        assert "Another process is writing to" in refusal(run_small, small)
    assert [path.name for path in (small / "output").iterdir()] == [LOCK]


def test_a_disk_that_is_too_small(small, monkeypatch):
    usage = shutil.disk_usage(small)._replace(free=2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    error = refusal(run_small, small)
    size = sum(path.stat().st_size for path in (small / "msls").rglob("*.jpg"))
    assert f"needs {size / 1000:.1f} kB, but only 2.0 kB are free" in error and "--symlink" in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in (small / "output").iterdir()] == [LOCK]
    run_small(small, "--symlink")


def test_a_disk_that_fills_up(small, monkeypatch):
    copyfile, copied = shutil.copyfile, itertools.count()

    def fill_up(source, target):
        if next(copied) == 10:  # the second image of SFXL
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device", target)
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", fill_up)
    error = refusal(run_small, small, cities=["sf_xl", "trondheim"])
    assert "No space left on device" in error and "run the same command again" in error
    assert len(error.splitlines()) == 1
    assert not unfinished_in(small / "output")
    assert all(len(list((small / "output" / name).iterdir())) == 1 for name in ("Images", "Dataframes"))
    monkeypatch.undo()
    run_small(small, cities=["sf_xl", "trondheim"])
    assert len(list((small / "output" / "Images").rglob("*.jpg"))) == 13


@pytest.mark.parametrize(
    "line, message",
    [
        ("0,new,10.39,63.43,10.5", "Expected 7, separated by commas"),
        ("0,new,10.39,63.43,north,2019-02-11,False", "ca is 'north'. Expected a number"),
        ("0,new,10.39,63.43,,2019-02-11,False", "ca is ''. Expected a number"),
        ("0,new,10.39,63.43,nan,2019-02-11,False", "ca is 'nan'"),
        ("0,new,10.39,84.1,10.5,2019-02-11,False", "lat is '84.1'. Expected a number from -80 to 84"),
        ("0,new,-180.5,63.43,10.5,2019-02-11,False", "lon is '-180.5'. Expected a number from -180 to 180"),
        ("0,new,10.39,63.43,10.5,2019-13-11,False", "captured_at is '2019-13-11'. Expected YYYY-MM-DD"),
        ("0,new,10.39,63.43,10.5,,False", "the column captured_at is empty"),
        ("0,new,10.39,63.43,10.5,2019-02-11,maybe", "pano is 'maybe'. Expected True or False"),
        ("0,../new,10.39,63.43,10.5,2019-02-11,False", "key is '../new'"),
        ('0,"new,10.39,63.43,10.5,2019-02-11,False', "Check its quotes"),
        ("0,key1,10.39,63.43,10.5,2019-02-11,False", "the key key1 is listed for the second time"),
        ("0,new,10.39,63.43,10.5,2019-02-11,False", "the image new.jpg is missing"),
    ],
)
def test_a_bad_line_is_named(small, line, message):
    table = small / "msls" / "train_val" / "trondheim" / "query" / "raw.csv"
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *lines[:2], line, *lines[2:], ""]))
    error = refusal(run_small, small)
    assert error.startswith(f"{table}, line 4: ")
    assert message in error
    assert len(error.splitlines()) <= 2
    assert not (small / "output").exists()


@pytest.mark.parametrize("header", ["", ",key,lon,lat,captured_at,pano", "0,abc,10.39,63.43,10.5,2019-02-11,False"])
def test_missing_columns_are_named(small, header):
    table = small / "msls" / "train_val" / "trondheim" / "database" / "raw.csv"
    table.write_text(f"{header}\n")
    error = refusal(run_small, small)
    assert f"{table} lacks the columns" in error and "ca" in error
    assert not (small / "output").exists()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "ending"])
def test_line_endings_make_no_difference(small, ending, last):
    run_small(small)
    expected = contents(small / "output")
    shutil.rmtree(small / "output")
    for table in (small / "msls").rglob("raw.csv"):
        table.write_bytes((ending.join(table.read_text().splitlines()) + (ending if last else "")).encode())
    run_small(small)
    assert contents(small / "output") == expected


@pytest.mark.parametrize(
    "name, message",
    [
        ("image.jpg", "has 0 fields; expected 13 or more of @easting@northing"),
        ("@0544882.17@4173730.30@10@S@037.70972@-122.49080@pano@.jpg", "fields; expected 13"),
        (sf_xl_name("new").replace("0544882.17", "east"), "easting, northing and heading are east, "),
        (sf_xl_name("new").replace("0544882.17", "inf"), "expected finite numbers"),
        (sf_xl_name("new").replace("@10@@", "@@@"), "easting, northing and heading are"),
        (sf_xl_name("new").replace("201908", "2019"), "the timestamp is '2019'; expected YYYYMM"),
        (sf_xl_name("new").replace("201908", "201913"), "the timestamp is '201913'; expected YYYYMM"),
        (sf_xl_name("new").replace("037.70972", "here"), "latitude and longitude are 'here'"),
    ],
)
def test_a_bad_name_of_sf_xl_is_named(small, name, message):
    path = small / "sf_xl" / "images" / "train" / "37.71" / name
    write_files(path.parent, [name])
    error = refusal(run_small, small, cities=["sf_xl"])
    assert error.startswith(f"{path}: ")
    assert message in error
    assert len(error.splitlines()) <= 2
    assert not (small / "output").exists()


@pytest.mark.parametrize(
    "name, message",
    [
        ("@0585602.16@4477075.06@17@T@040.43992@-079.99066@hhgr-a@.jpg", "fields; expected 8 or more"),
        ("@0585602.16@4477075.06@17@T@040.43992@-079.99066@hhgr-a@x@@@@@@@.jpg", "the tile is 'x'"),
        ("@0585602.16@nan@17@T@040.43992@-079.99066@hhgr-a@01@@@@@@@.jpg", "expected finite numbers"),
    ],
)
def test_a_bad_name_of_pitts30k_is_named(tmp_path, name, message):
    folder = tmp_path / "pitts30k" / "images" / "train"
    write_files(folder / "queries", [name])
    (folder / "database").mkdir()
    error = refusal(main, [str(tmp_path / "output"), f"--pitts30k={tmp_path / 'pitts30k'}", "--cities=pitts30k"])
    assert error.startswith(f"{folder / 'queries' / name}: ")
    assert message in error
    assert not (tmp_path / "output").exists()


def test_all_missing_sources_are_named_at_once(small):
    flags = [f"--msls={small / 'msls'}", f"--pitts30k={small / 'nowhere'}"]
    error = refusal(main, [str(small / "output"), *flags])
    assert "--sf_xl is not given" in error
    for part in ("database", "queries"):
        assert f"there is no folder {small / 'nowhere' / 'images' / 'train' / part}" in error
    assert "for amsterdam, helsinki, tokyo," in error and "trondheim" not in error
    assert len(error.splitlines()) <= 2
    assert not (small / "output").exists()


def test_only_the_sources_of_the_cities_are_needed(small):
    main([str(small / "output"), f"--sf_xl={small / 'sf_xl'}", "--cities", "sf_xl"])
    assert [path.name for path in (small / "output" / "Dataframes").iterdir()] == ["SFXL.csv"]


def test_unknown_cities(small):
    error = refusal(UnifiedConfig, output=small, cities=("trondheim", "atlantis"))
    assert "Unknown city atlantis. Choose from: trondheim, amsterdam," in error and "pitts30k, sf_xl" in error


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workers=0"], "--workers 0: expected 1 or more"),
        (["--copy", "--symlink"], "--copy and --symlink exclude each other"),
        (["--cities", "atlantis"], "Unknown city atlantis"),
    ],
)
def test_settings_that_are_refused(small, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(small / "output"), *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("path", ["output", "output/Images", "output/Dataframes", f"output/{LOCK}"])
def test_an_output_that_cannot_be_written(small, path):
    file = small / path
    file.parent.mkdir(exist_ok=True)
    if path.endswith(LOCK):
        file.mkdir()
    else:
        file.write_text("mine")
    error = refusal(run_small, small)
    assert len(error.splitlines()) <= 2
    assert file.is_dir() or file.read_text() == "mine"


def test_a_city_without_places(small):
    for path in list((small / "sf_xl").rglob("*.jpg"))[1:]:
        path.unlink()
    assert "No place of sf_xl has 4 or more images" in refusal(run_small, small, cities=["sf_xl"])


def test_a_source_image_that_disappears(small, monkeypatch):
    monkeypatch.setattr(
        "datasets.unified.builder._check_space", lambda *args: next((small / "sf_xl").rglob("*.jpg")).unlink()
    )
    error = refusal(run_small, small, cities=["sf_xl"])
    assert "No such file or directory" in error and "@p" in error
    assert contents(small / "output") == {}


def test_the_summary_adds_up(small, capsys):
    write_files(small / "sf_xl" / "images" / "train", [sf_xl_name(f"far{i}", easting=600000) for i in range(3)])
    write_files(small / "sf_xl" / "images" / "train", [sf_xl_name(f"next{i}", easting=544892.17) for i in range(4)])
    run_small(small, cities=["trondheim", "sf_xl"])
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert lines[0].split() == (
        "city groups places images panoramas empty files in small places in other groups name collisions".split()
    )
    assert table["sf_xl"] == "1 1 4 0 0 3 4 0".split()
    groups = table["trondheim"][0]
    assert table["trondheim"] == [groups, "2", "9", "0", "0", "0", "0", "0"]
    assert table["total"] == [str(int(groups) + 1), "3", "13", "0", "0", "3", "4", "0"]
    assert f"{int(groups) + 1} of them are new" in lines[-1]
