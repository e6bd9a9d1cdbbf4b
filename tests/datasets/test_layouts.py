"""Folder layouts, links, lists of paths and of queries, positions from CSV files: what is found, what is refused."""

import math
import os
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import utm
from geographiclib.geodesic import Geodesic
from helpers.evaluations import run_mode

from datasets.benchmark import Benchmark
from datasets.config import PositionConfig
from datasets.layouts import BenchmarkConfig, find_images, list_images
from model import InputError

NAMES = ["@100@200@a@.jpg", "sub/@130@200@b@.jpg", "@900@900@c@.jpg"]


def touch(folder, names=NAMES):
    """Empty files of these names; the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def town(datasets, **options):
    return BenchmarkConfig(datasets_folder=datasets, name="town", **options)


def relative(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


@pytest.mark.parametrize("split", ["town/images/test", "town/test"])
@pytest.mark.parametrize("database", ["database", "gallery"])
def test_the_folder_images_may_be_missing_and_the_database_be_called_gallery(tmp_path, split, database):
    touch(tmp_path / split / database)
    touch(tmp_path / split / "queries", NAMES[:2])
    benchmark = Benchmark(town(tmp_path))
    assert benchmark.folder == tmp_path / split
    assert relative(benchmark.database.paths, tmp_path / split / database) == sorted(NAMES)
    assert relative(benchmark.queries.paths, tmp_path / split / "queries") == sorted(NAMES[:2])


def test_database_and_gallery_together_are_refused(tmp_path):
    for name in ("database", "gallery", "queries"):
        touch(tmp_path / "town/test" / name)
    with pytest.raises(InputError, match="both database and gallery"):
        Benchmark(town(tmp_path))


def test_query_folders_are_chosen_and_kept_apart(tmp_path):
    touch(tmp_path / "town/test/database")
    touch(tmp_path / "town/test/queries_night", ["@1@1@.jpg", "@2@2@.jpg"])
    touch(tmp_path / "town/test/queries_rain", ["@3@3@.jpg"])
    with pytest.raises(InputError, match="--queries_subfolder: queries_night, queries_rain"):
        Benchmark(town(tmp_path))
    both = Benchmark(town(tmp_path, queries_subfolders=("queries_rain", "queries_night")))
    assert both.queries.utms[:, 0].tolist() == [3, 1, 2]
    conditions = {name: indices.tolist() for name, indices in both.conditions.items()}
    assert conditions == {"queries_rain": [0], "queries_night": [1, 2]}
    assert Benchmark(town(tmp_path, queries_subfolders=("queries_rain",))).conditions == {}
    with pytest.raises(InputError, match="queries_fog"):
        Benchmark(town(tmp_path, queries_subfolders=("queries_fog",)))
    with pytest.raises(InputError, match="more than once"):
        town(tmp_path, queries_subfolders=("queries_rain", "queries_rain"))


def test_a_dataset_without_a_split_may_have_other_query_folders_alone(tmp_path):
    touch(tmp_path / "town/database")
    touch(tmp_path / "town/queries_day")
    assert len(Benchmark(town(tmp_path, queries_subfolders=("queries_day",))).queries) == len(NAMES)


def test_any_two_folders(tmp_path):
    database, queries = touch(tmp_path / "map"), touch(tmp_path / "new" / "today", NAMES[:1])
    config = BenchmarkConfig(name="mine", database_folder=database, queries_folder=queries)
    benchmark = Benchmark(config)
    assert benchmark.folder == tmp_path
    assert (len(benchmark.database), len(benchmark.queries)) == (3, 1)
    inside = BenchmarkConfig(name="mine", database_folder=tmp_path / "new", queries_folder=queries)
    assert Benchmark(inside).folder == tmp_path / "new"
    with pytest.raises(InputError, match="--queries_subfolder"):
        BenchmarkConfig(name="mine", queries_folder=queries, queries_subfolders=("a",))


# ---- What is an image

SYSTEM = ["._a.jpg", ".hidden.png", ".ipynb_checkpoints/a-checkpoint.jpg", ".thumbnails/a.jpg", "@eaDir/a.jpg"]
SYSTEM += [".Trash-1000/files/a.jpg", "sub/__MACOSX/._b.jpg", "$RECYCLE.BIN/a.jpg"]


def test_hidden_and_system_files_are_skipped_and_named(tmp_path, caplog):
    folder = touch(tmp_path / ".dataset" / "photos", ["a.jpg", "sub/b.jpg", ".DS_Store", *SYSTEM])
    assert relative(list_images(folder), folder) == ["a.jpg", "sub/b.jpg"]
    (message,) = caplog.messages
    assert message.startswith(f"{len(SYSTEM)} hidden or system files and folders in {folder} are skipped: ")
    assert {"._a.jpg", "@eaDir", ".Trash-1000", "__MACOSX"} <= set(message.rpartition(": ")[2].split(", "))
    caplog.clear()
    (folder.parent / "photos_images_paths.txt").write_text("./a.jpg\nsub/b.jpg\n@eaDir/a.jpg\nsub/._b.jpg\n")
    touch(folder, ["sub/._b.jpg"])
    assert len(list_images(folder)) == 2 and "2 hidden or system" in caplog.text
    assert relative(find_images([f"{folder}/**/*.jpg"]), folder) == ["a.jpg", "sub/b.jpg"]
    assert relative(find_images([f"{folder}/**/.thumbnails/*.jpg"]), folder) == [".thumbnails/a.jpg"]
    assert relative(find_images([f"{folder}/.hidden.png", f"{folder}/.thumbnails/*"]), folder) == [
        ".hidden.png",
        ".thumbnails/a.jpg",
    ]  # which a user names


def test_all_names_of_jpeg_files_are_read_and_what_is_not_is_counted_once(tmp_path, caplog):
    names = ["a.JFIF", "b.jpe", "c.JPG", "d.jpeg", "e.Png"]
    others = "1.webp 2.WEBP 3.gif 4.jp2 5.mpo 6.dng 7.mp4 8.tif 9.MOV".split()
    folder = touch(tmp_path / "photos", [*names, *others, "notes.txt", "positions.csv"])
    assert relative(list_images(folder), folder) == sorted(names)
    (message,) = caplog.messages
    assert message.startswith(f"9 files in {folder} are ignored, such as 1.webp. Convert them to JPEG or PNG. (2 .webp")
    assert "1 .mp4" in message and "1 .mov" in message


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path / "elsewhere/deep")
    folder = touch(tmp_path / "database", ["@5@5@.jpg"])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")  # no loop: the same images under two names
    names = [f"{link}/deep/{name}" for link in ("again", "link") for name in NAMES]
    assert relative(list_images(folder), folder) == sorted(["@5@5@.jpg", *names])


@pytest.mark.parametrize("kind", ["to itself", "to its parent", "to a folder above", "in two steps"])
def test_links_that_lead_in_a_circle_are_named(tmp_path, kind):
    folder = touch(tmp_path / "top" / "database")
    link = folder / "sub" / "link"
    if kind == "to itself":
        link.symlink_to(link)
    elif kind == "to its parent":
        link.symlink_to(folder / "sub")
    elif kind == "to a folder above":
        link.symlink_to(tmp_path / "top")
    else:
        touch(tmp_path / "beside")
        link.symlink_to(tmp_path / "beside")
        (tmp_path / "beside" / "back").symlink_to(folder)
    # The system itself refuses a link to itself, but follows the others some forty times.
    message = "symbolic links" if kind == "to itself" else "leads back to .* Remove the symbolic link"
    with pytest.raises(InputError, match=message):
        list_images(folder)


def test_a_subfolder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """Without permission, that is. Root may list everything, so the system's answer is made up."""
    folder = touch(tmp_path / "database", ["a.jpg", "secret/b.jpg"])
    scandir = os.scandir

    def scandir_without_permission(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_without_permission)
    with pytest.raises(InputError, match=r"Cannot list the images in .*database/secret: Permission denied\. Make it"):
        list_images(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", r"x\.JPG is a named pipe, socket or device, not an image"),
        ("broken link", r"x\.JPG is a broken symbolic link, not an image"),
        ("link to a pipe", r"x\.JPG is a named pipe, socket or device, not an image"),
    ],
)
def test_what_is_named_like_an_image_but_is_no_file_is_refused(tmp_path, kind, message):
    folder = touch(tmp_path / "database", ["a.jpg", "also.jpg/b.jpg", "note.txt"])
    if kind == "broken link":
        (folder / "x.JPG").symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(folder / "x.JPG")
    else:
        os.mkfifo(folder / "pipe")
        (folder / "x.JPG").symlink_to("pipe")
    with pytest.raises(InputError, match=message):
        list_images(folder)
    (folder / "x.JPG").unlink()
    assert relative(list_images(folder), folder) == ["a.jpg", "also.jpg/b.jpg"]


@pytest.mark.parametrize("character", ["\n", "\r"])
@pytest.mark.parametrize("where", ["name", "folder", "listed"])
def test_a_line_break_in_a_path_is_refused(tmp_path, character, where):
    broken = f"line{character}break"
    folder = touch(tmp_path / (broken if where == "listed" else "database"), ["a.jpg"])
    if where == "listed":
        (tmp_path / f"{broken}_images_paths.txt").write_text("a.jpg\n")
    else:
        touch(folder, [f"{broken}.jpg" if where == "name" else f"{broken}/b.jpg"])
    with pytest.raises(InputError, match=r"contains a line break: '.*line\\[nr]break.*Rename it"):
        list_images(folder)


@pytest.mark.parametrize("name", ["next\x85line.jpg", "line\u2028separator.jpg", os.fsdecode(b"caf\xe9.jpg")])
def test_other_characters_do_not_end_a_line_of_a_list(tmp_path, name):
    folder = touch(tmp_path / "database", [name])
    (tmp_path / "database_images_paths.txt").write_bytes(b"\xef\xbb\xbf" + os.fsencode(name) + b"\r\n")
    assert relative(list_images(folder), folder) == [name]


def test_a_list_of_paths_replaces_the_search_for_images(tmp_path):
    folder = touch(tmp_path / "database", [*NAMES, "@7@7@unlisted@.jpg"])
    path_list = tmp_path / "database_images_paths.txt"
    path_list.write_text("".join(f"{name}\n" for name in reversed(NAMES)))
    assert relative(list_images(folder), folder) == sorted(NAMES)
    path_list.write_text("\n".join([*NAMES, "@8@8@gone@.jpg"]))
    with pytest.raises(InputError, match="lists @8@8@gone@.jpg, but there is no file"):
        list_images(folder)
    path_list.write_text("\n")
    with pytest.raises(InputError, match="lists no images"):
        list_images(folder)


def test_repeated_lines_of_a_list_count_once_and_spaces_at_the_start_are_kept(tmp_path, caplog):
    names = [" north/@1@2@a@.jpg", "north/@1@2@a@.jpg", "@3@4@b@.jpg"]
    folder = touch(tmp_path / "database", names)
    (tmp_path / "database_images_paths.txt").write_text("\n".join([*names, *names, f"./{names[2]}"]))
    assert relative(list_images(folder), folder) == sorted(names)
    assert caplog.messages[0].endswith("4 lines repeat an earlier one. Each image counts once.")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_of_names_match_in_lists_and_tables(unnamed, form):
    """A Mac writes the other form. Where both forms are there, each is itself."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name = "Zürich/Málaga.jpg"
    touch(unnamed / "town/test/queries", [unicodedata.normalize(form, name)])
    config = with_csv(
        unnamed,
        f"image,easting,northing\na.jpg,1,2\nb.jpg,3,4\nq.jpg,5,6\n{unicodedata.normalize(other, name)},3000,4000\n",
    )
    (unnamed / "list.txt").write_text(f"{unicodedata.normalize(other, name)}\n")
    assert Benchmark(replace(config, queries_list=unnamed / "list.txt")).queries.utms.tolist() == [[3000, 4000]]
    (unnamed / "town/test/queries_images_paths.txt").write_text(unicodedata.normalize(other, name))
    assert relative(Benchmark(config).queries.paths, unnamed / "town/test/queries") == [
        unicodedata.normalize(form, name)
    ]
    touch(unnamed / "town/test/queries", [unicodedata.normalize(other, name)])
    (unnamed / "town/test/queries_images_paths.txt").unlink()
    with pytest.raises(InputError, match="one row stands for both"):
        Benchmark(config)


def test_folder_names_that_begin_with_a_space_keep_it(tmp_path):
    touch(tmp_path / "town/test/database", [" a/x.jpg", "a/x.jpg"])
    touch(tmp_path / "town/test/queries", [" b/q.jpg", "b/q.jpg"])
    rows = {" a/x.jpg": (1, 2), "a/x.jpg": (3, 4), " b/q.jpg": (5, 6), "b/q.jpg": (7, 8)}
    table = "".join(f"{name},{e}000,{n}000\n" for name, (e, n) in rows.items())
    (tmp_path / "list.txt").write_text(" b/q.jpg\n\n")
    config = with_csv(tmp_path, f"image,easting,northing\n{table}")
    assert Benchmark(config).database.utms.tolist() == [[1000, 2000], [3000, 4000]]
    (tmp_path / "list.txt").write_text("b/q.jpg\n b/q.jpg\n")
    assert len(Benchmark(replace(config, queries_list=tmp_path / "list.txt")).queries) == 2
    (tmp_path / "list.txt").write_text(" b/q.jpg\nb/nowhere.jpg\n")
    with pytest.raises(InputError, match="1 of 2 entries are not queries"):
        Benchmark(replace(config, queries_list=tmp_path / "list.txt"))


@pytest.fixture
def msls(tmp_path):
    """A dataset with five queries whose names hold keys, KEY0 to KEY4."""
    touch(tmp_path / "town/test/database")
    touch(
        tmp_path / "town/test/queries",
        [f"@{i}@0@32@V@55@12@KEY{i}@@90@@@@201901@day_forward_cph@.jpg" for i in range(5)],
    )
    return tmp_path


@pytest.mark.parametrize("separator", [" ", "\n", "\r\n"])
@pytest.mark.parametrize("entries", ["keys", "names", "paths", "absolute"])
def test_queries_are_selected_by_key_or_path(msls, separator, entries):
    names = [path.name for path in sorted((msls / "town/test/queries").iterdir())]
    chosen = {
        "keys": ["KEY3", "KEY1"],
        "names": [names[3], names[1]],
        "paths": [f"queries/{names[3]}", f"queries/{names[1]}"],
        "absolute": [str(msls / "town/test/queries" / names[i]) for i in (3, 1)],
    }[entries]
    (msls / "list.txt").write_text(separator.join(chosen) + separator)
    benchmark = Benchmark(town(msls, queries_list=msls / "list.txt"))
    assert benchmark.queries.utms[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KEY1 KEY7 KEY8 KEY9 KEY10", r"4 of 5 entries are not queries .*such as KEY7, KEY8, KEY9\."),
        ("KEY1 KEY2 KEY1", "lists KEY1 more than once"),
        (" \n", "lists no queries"),
    ],
)
def test_a_list_of_queries_is_refused(msls, text, message):
    (msls / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        Benchmark(town(msls, queries_list=msls / "list.txt"))


def test_a_name_in_two_query_folders_is_ambiguous_but_its_paths_are_not(tmp_path):
    touch(tmp_path / "town/test/database")
    for part in ("queries_v1", "queries_v2"):
        touch(tmp_path / "town/test" / part, ["@1@1@.jpg"])
    config = town(tmp_path, queries_subfolders=("queries_v1", "queries_v2"), queries_list=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("@1@1@.jpg")
    with pytest.raises(InputError, match="stands for 2 queries"):
        Benchmark(config)
    (tmp_path / "list.txt").write_text("queries_v2/@1@1@.jpg")
    assert [Path(path).parent.name for path in Benchmark(config).queries.paths] == ["queries_v2"]


@pytest.fixture
def unnamed(tmp_path):
    """A dataset without positions in its names: database/a.jpg and database/b.jpg, queries/q.jpg."""
    touch(tmp_path / "town/test/database", ["a.jpg", "b.jpg"])
    touch(tmp_path / "town/test/queries", ["q.jpg"])
    return tmp_path


def with_csv(datasets, text):
    (datasets / "positions.csv").write_text(text)
    return town(datasets, positions=PositionConfig(source="csv", csv=datasets / "positions.csv"))


def test_positions_in_metres(unnamed):
    table = "northing,note,image,easting\n1,x,database/a.jpg,10\n2,y,b.jpg,20\n3,z,queries/q.jpg,30\n"
    benchmark = Benchmark(with_csv(unnamed, table))
    assert benchmark.database.utms.tolist() == [[10, 1], [20, 2]] and benchmark.queries.utms.tolist() == [[30, 3]]


def test_positions_in_metres_with_a_zone(unnamed):
    table = "image,easting,northing,zone\na.jpg,500000,6000000,32N\nb.jpg,500000,6000000,\nq.jpg,500000,4000000, 56S \n"
    benchmark = Benchmark(with_csv(unnamed, table))
    assert benchmark.database.zones.tolist() == [32, 0] and benchmark.queries.zones.tolist() == [-56]
    expected = [utm.to_latlon(500000, 6000000, 32, northern=True), (math.nan, math.nan)]
    np.testing.assert_allclose(benchmark.database.degrees, expected)
    np.testing.assert_allclose(benchmark.queries.degrees, [utm.to_latlon(500000, 4000000, 56, northern=False)])


def test_positions_in_degrees_stay_as_they_are(unnamed):
    degrees = {"a.jpg": (55.676, 12.568), "b.jpg": (-55.6765, 180), "q.jpg": (90, -180)}
    rows = [f"{name},{latitude},{longitude},?\n" for name, (latitude, longitude) in degrees.items()]
    benchmark = Benchmark(with_csv(unnamed, "image,latitude,longitude,zone\n" + "".join(rows)))
    found = np.concatenate([benchmark.database.degrees, benchmark.queries.degrees])
    assert list(map(tuple, found.tolist())) == list(degrees.values())
    assert np.isnan(benchmark.database.utms).all() and not benchmark.database.zones.any()


@pytest.mark.parametrize("where", ["zone border", "date line", "equator", "Svalbard", "pole"])
def test_distances_across_a_border_of_utm_are_right(unnamed, where):
    """The query lies some 22 m from a.jpg, on the other side; b.jpg lies farther on the first side."""
    points = {
        "zone border": ((45.0, 11.99995), (45.0, 12.00023), (45.0, 11.999)),
        "date line": ((10.0, 179.99995), (10.0, -179.99985), (10.0, 179.999)),
        "equator": ((-0.00005, 20.0), (0.00015, 20.0), (-0.001, 20.0)),
        "Svalbard": ((78.2, 20.9995), (78.2, 21.0005), (78.2, 20.99)),
        "pole": ((89.9999, 0.0), (89.9999, 180.0), (89.999, 0.0)),
    }[where]
    rows = [f"{name},{y!r},{x!r}" for name, (y, x) in zip(("a.jpg", "q.jpg", "b.jpg"), points, strict=True)]
    benchmark = Benchmark(with_csv(unnamed, "\n".join(["image,latitude,longitude", *rows])))
    expected = [Geodesic.WGS84.Inverse(*points[1], *point)["s12"] for point in (points[0], points[2])]
    assert benchmark.ground.metres(0, np.array([0, 1])) == pytest.approx(expected)
    assert expected[0] == pytest.approx(22, abs=2)
    assert [found.tolist() for found in benchmark.positives] == [[0]]


def test_a_position_far_from_all_others_is_a_warning(unnamed, caplog):
    Benchmark(with_csv(unnamed, "image,latitude,longitude\na.jpg,55,12\nb.jpg,12,55\nq.jpg,55.1,12\n"))
    assert caplog.messages == [
        f"1 of 3 images in {unnamed / 'town/test'} lie more than 100 km from all others: database/b.jpg. Check the "
        "letters and signs of their positions, and the order of latitude and longitude."
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "image,easting\na.jpg,1\n",
            r"has the columns image, easting\. Expected image, easting and northing, or image, l",
        ),
        ("", r"has the columns \(none\)"),
        ("image,easting,northing\na.jpg,1,2\na.jpg,1,2\nb.jpg,1,2\nq.jpg,1,2\n", "lists a.jpg more than once"),
        ("image,easting,northing\na.jpg,1,2\n", "has no position for .*b.jpg"),
        (
            "image,easting,northing\na.jpg,1,2\ndatabase/a.jpg,1,2\nb.jpg,1,2\nq.jpg,1,2\n",
            "has two positions for .*a.jpg",
        ),
        ("image,easting,northing\na.jpg,1,east\n", "line 2: northing is 'east'. Expected a number"),
        ("image,easting,northing\na.jpg,1\n", "line 2: northing is None"),
        ("image,easting,northing\na.jpg,1,inf\n", "line 2: northing is 'inf'"),
        (
            "image,latitude,longitude\na.jpg,1,2\nb.jpg,91,2\n",
            "line 3: latitude is '91'. Expected a number from -90 to 90",
        ),
        ("image,latitude,longitude\na.jpg,1,200\n", "line 2: longitude is '200'. Expected a number from -180 to 180"),
        ("image,latitude,longitude\n", "lists no images"),
        ("image,easting,northing\n,1,2\n", "line 2: the column image is empty"),
        ('image,easting,northing,note\na.jpg,1,2,"two\nlines"\nb.jpg,1,east,\n', "line 4: northing is 'east'"),
        (
            'image,easting,northing\na.jpg,1,2\n\n"b.jpg,1,2\nq.jpg,1,2\n',
            r"line 4: .*\. Expected a CSV file in UTF-8\. Check its quotes",
        ),
        (
            f"image,easting,northing\na.jpg,1,2\n{'b' * 140_000},1,2\n",
            r"line 3: field larger .*\. Expected a CSV file in UTF-8",
        ),
        ("image,easting,northing\na.jpg,500000,5,4000000,5\n", "line 2: 5 values. Expected 3, .* decimal points"),
        ("image,easting,northing\na.jpg,1,2,\n", "line 2: 4 values. Expected 3"),
        ("image,easting,northing,Easting \na.jpg,1,2,3\n", "has the column easting more than once"),
        ("image,easting,northing,latitude,longitude\na.jpg,1,2,3,4\n", "positions both in metres and in degrees"),
        ("image,easting,northing\na.jpg,1_000,2\n", "line 2: easting is '1_000'. Expected a number"),
        ("image,easting,northing\na.jpg,１２,2\n", "line 2: easting is '１２'. Expected a number"),
        ("image,easting,northing\na.jpg,1e17,2\n", r"line 2: easting is '1e17'. Expected a number from -1e\+08 to"),
        ("image,easting,northing\na.jpg,1,-3e38\n", "line 2: northing is '-3e38'"),
        ("image,latitude,longitude\na.jpg,nan,2\n", "line 2: latitude is 'nan'"),
        *(
            (
                f"image,easting,northing,zone\na.jpg,1,2,{zone}\n",
                f"line 2: zone is '{zone}'. Expected a UTM zone with its",
            )
            for zone in ("32", "32V", "61N", "0N", "N", "32n", "-32")
        ),
        ("image,latitude,longitude\na.jpg,151.2,-33.9\n", "latitude is '151.2'.*Are latitude and longitude swapped"),
        (f"image,easting,northing\na.jpg,1,{'2' * 400}\n", r"line 2: northing is '2{199}\.\.\.\. Expected a number"),
    ],
)
def test_a_table_of_positions_is_refused(unnamed, table, message):
    with pytest.raises(InputError, match=message):
        Benchmark(with_csv(unnamed, table))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,easting,northing\n\x00", r"line 2: a NUL byte\. Expected a .* file in UTF-8"),
        ("image,easting,northing\n".encode("utf-16"), r"line 1: a NUL byte\. Expected a .* file in UTF-8"),
        (b"\xff\n", ""),
    ],
)
def test_files_that_are_no_text_are_refused(unnamed, content, message):
    (unnamed / "positions.csv").write_bytes(content)
    table = unnamed / "positions.csv"
    positions = PositionConfig(source="csv", csv=table)
    for config in (town(unnamed, positions=positions), town(unnamed, queries_list=table, labels=False)):
        with pytest.raises(InputError, match=rf"positions\.csv.*{message}"):
            Benchmark(config)


def test_names_that_are_not_utf8_are_found_in_a_table_and_in_a_list(unnamed):
    """Linux names files by bytes; these are Latin-1."""
    (unnamed / "town/test/queries/q.jpg").rename(unnamed / "town/test/queries" / os.fsdecode(b"caf\xe9.jpg"))
    (unnamed / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    config = with_csv(unnamed, "")
    config.positions.csv.write_bytes(b"image,easting,northing\na.jpg,10,1\nb.jpg,20,2\ncaf\xe9.jpg,3000,4000\n")
    assert Benchmark(replace(config, queries_list=unnamed / "list.txt")).queries.utms.tolist() == [[3000, 4000]]


def test_a_row_that_stands_for_two_images_is_refused(tmp_path):
    for part in ("database", "queries"):
        touch(tmp_path / "town/test" / part, ["a.jpg"])
    with pytest.raises(InputError, match="one row stands for both .*database/a.jpg and .*queries/a.jpg"):
        Benchmark(with_csv(tmp_path, "image,easting,northing\na.jpg,1,2\n"))
    same = tmp_path / "town/test/database"
    config = with_csv(tmp_path, "Image, Easting, Northing\na.jpg, 1000, 2000\n")
    config = replace(config, datasets_folder=None, database_folder=same, queries_folder=same)
    assert Benchmark(config).queries.utms.tolist() == [[1000, 2000]]


def test_what_may_be_a_mistake_is_a_warning(unnamed, caplog):
    Benchmark(with_csv(unnamed, "image,easting,northing\na.jpg,55,12\nb.jpg,55,12\nq.jpg,55,12\n"))
    assert "If they are degrees, name the columns longitude, latitude" in caplog.text
    touch(unnamed / "town/test/queries", ["IMG_1.WEBP", "IMG_2.WEBP", "notes.txt"])
    assert len(list_images(unnamed / "town/test/queries")) == 1
    assert "2 files in" in caplog.text and "such as IMG_1.WEBP. Convert them" in caplog.text


@pytest.mark.parametrize(
    ("rows", "warned"),
    [
        ("latitude,longitude\na.jpg,77.2,28.6\nb.jpg,77.3,28.5\nq.jpg,77.2,28.6\n", True),  # New Delhi
        ("latitude,longitude\na.jpg,28.6,77.2\nb.jpg,28.5,77.3\nq.jpg,28.6,77.2\n", False),
        ("easting,northing\na.jpg,6172710,347092\nb.jpg,6172711,347092\nq.jpg,6172712,347092\n", True),
        ("easting,northing\na.jpg,347092,6172710\nb.jpg,347092,6172711\nq.jpg,347092,6172712\n", False),
    ],
)
def test_swapped_columns_are_a_warning_where_that_is_plausible(unnamed, caplog, rows, warned):
    Benchmark(with_csv(unnamed, f"image,{rows}"))
    assert ("Are they swapped?" in caplog.text) is warned


def test_an_image_of_another_zone_is_no_positive(tmp_path):
    """Names state the zones of all images. In zone 33 the same metres are another place."""
    names = ["@500000@6000000@32@U@a@.jpg", "@500010@6000000@33@U@b@.jpg", "@500010@6000000@c@.jpg"]
    touch(tmp_path / "town/test/database", names)
    touch(tmp_path / "town/test/queries", ["@500001@6000000@32@U@q@.jpg", "@500001@6000000@33@U@q@.jpg"])
    assert [found.tolist() for found in Benchmark(town(tmp_path)).positives] == [[0, 2], [1, 2]]
    for name in names[1:]:
        (tmp_path / "town/test/database" / name).unlink()  # the zone of all is known; that of the queries is not
    assert [found.tolist() for found in Benchmark(town(tmp_path)).positives] == [[0], []]


def copy_layout(layout, images, folder):
    """The split `images` in another layout below `folder`: its configuration."""
    if layout == "folders":
        return BenchmarkConfig(name="mine", database_folder=images / "database", queries_folder=images / "queries")
    split = folder / "town" / ("test" if layout == "without images" else "images/test")
    if layout == "links":
        for part in ("database", "queries"):
            (split / part).mkdir(parents=True)
            (split / part / "linked").symlink_to(images / part)
    else:
        shutil.copytree(images, split)
    if layout == "gallery":
        (split / "database").rename(split / "gallery")
    if layout == "path list":
        for part in ("database", "queries"):
            names = sorted((path.name for path in (split / part).iterdir()), reverse=True)
            (split / f"{part}_images_paths.txt").write_text("\n".join(names))
            shutil.copy(split / part / names[0], split / part / "@0@0@unlisted@.jpg")
    return town(folder)


@pytest.mark.parametrize("layout", ["without images", "gallery", "folders", "links", "path list"])
def test_layouts_give_the_same_benchmark(tiny_benchmark, tmp_path, layout):
    expected = Benchmark(BenchmarkConfig(datasets_folder=tiny_benchmark, name="tiny"))
    found = Benchmark(copy_layout(layout, tiny_benchmark / "tiny/images/test", tmp_path))
    for ours, theirs in ((found.database, expected.database), (found.queries, expected.queries)):
        assert list(map(os.path.basename, ours.paths)) == list(map(os.path.basename, theirs.paths))
        np.testing.assert_array_equal(ours.utms, theirs.utms)
    assert list(map(list, found.positives)) == list(map(list, expected.positives))


@pytest.mark.slow
def test_without_labels_the_predictions_are_the_same(tiny_benchmark, checkpoints, tmp_path):
    run = partial(run_mode, "two_branch", tiny_benchmark, checkpoints)
    labelled, unlabelled = run(tmp_path / "labels"), run(tmp_path / "none", "--no_labels")
    assert len(labelled.rows) == 160 and {row["correct"] for row in labelled.rows} == {"0", "1"}
    assert unlabelled.rows == [{**row, "correct": ""} for row in labelled.rows]
    printed = "\n".join(unlabelled.lines)
    assert "R@1" not in printed and "without labels" in printed


@pytest.mark.parametrize("names", [["{}"], ["{}/**/*.jpg"], ["{}/**"], ["{}/*/**/a.jpg"]])
def test_two_circles_of_links_are_an_error_and_not_endless(tmp_path, names):
    """There are 2^40 ways through them."""
    for name in ("one", "two"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(InputError, match="leads back to .*/photos, a folder above it. Remove the symbolic link"):
        find_images([name.format(tmp_path / "photos") for name in names])


@pytest.mark.parametrize("name", ["d", "d/**/*.jpg"])
def test_folders_nested_more_deeply_than_calls_may_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").touch()
    os.chdir(tmp_path)
    assert find_images([name]) == ["d/" * 1200 + "a.jpg"]
    subprocess.run(["rm", "-r", "d"], check=True)  # pytest's own removal would fail


def test_a_broken_link_is_an_error_because_it_may_be_a_folder_of_images(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "2019").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match=r"2019 is a broken symbolic link. Repair the link, or remove it\."):
        list_images(tmp_path)
