"""Where the images of a benchmark lie: the folder layouts that exist, and the images below a folder."""

import fnmatch
import glob
import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from datasets.config import GroundTruthConfig, PositionConfig
from datasets.msls_layout import QUERIES as MSLS_QUERIES
from datasets.msls_layout import VAL_CITIES, find_cities, warn_of_missing
from model.errors import InputError
from model.video_files import frame_of, is_video, list_frames
from utils.runtime.flags import Values, flag, user_path
from utils.runtime.text_files import NameTable, read_lines, shorten

HEIC_SUFFIXES = (".heic", ".heif", ".hif") if importlib.util.find_spec("pillow_heif") else ()
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", *HEIC_SUFFIXES)
UNSUPPORTED_SUFFIXES = tuple(  # of images and videos that are not read; a warning says so
    ".heic .heif .hif .avif .webp .gif .tif .tiff .bmp .jp2 .j2k .jpx .jxl .jxr .mpo .insp .dng .arw .cr2 .cr3 .nef "
    ".orf .raf .rw2 .pef .srw .raw .mp4 .m4v .mov .avi .mkv .webm .insv .360".split()
)
SYSTEM_NAMES = {  # of folders and files that systems add, in lower case; most names of this kind begin with a dot
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "lost+found", "$recycle.bin",
    "recycler", "system volume information",
}  # fmt: skip
DATABASE_FOLDERS, QUERIES_FOLDERS = ("database", "gallery", "ref"), ("queries", "query")
VPR_BENCH_TRUTH = "ground_truth_new.npy"
PATH_LIST_SUFFIX = "_images_paths.txt"
EXPECTED = "Expected <datasets_folder>/<dataset_name>/[images/]<split>/{database,queries}."
NO_DATASETS_FOLDER = "Give --datasets_folder, or set the environment variable DATASETS_FOLDER."


def _folder_of_environment(_: Values) -> Path | None:
    folder = os.environ.get("DATASETS_FOLDER")
    return user_path(folder) if folder else None


def datasets_folder_flag() -> Any:
    """The field datasets_folder."""
    return flag(
        "folder of the datasets (or set the environment variable DATASETS_FOLDER)",
        name="datasets_folder",
        group="data",
        default_from=_folder_of_environment,
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Which images to evaluate, and what is known about them.

    Either one split of a dataset in `datasets_folder`, optionally with other folders of queries than "queries"
    (`queries_subfolders`), or any two folders, `database_folder` and `queries_folder`. `queries_list`: a file that
    selects some of the queries. `positions`: where they come from. `labels`: whether it is known which images are
    right. `threshold`: the distance in metres up to which (inclusive) a database image is a positive of a query, unless
    `ground_truth` says otherwise. `per_city`: each query is searched in its city alone. Raises InputError for
    combinations without a meaning.
    """

    name: str
    datasets_folder: Path | None = None
    split: str = "test"
    queries_subfolders: tuple[str, ...] = ()
    database_folder: Path | None = None
    queries_folder: Path | None = None
    queries_list: Path | None = None
    positions: PositionConfig = PositionConfig(source="names")
    labels: bool = True
    threshold: float = 25.0
    ground_truth: GroundTruthConfig = GroundTruthConfig()
    per_city: bool = False

    def __post_init__(self) -> None:
        if self.queries_subfolders and self.queries_folder:
            raise InputError(
                "--queries_subfolder applies to a dataset; with --queries_folder, name that folder itself."
            )
        if self.labels and self.positions.source == "none" and not self.ground_truth.is_given:
            raise InputError("--positions none leaves no recalls. Evaluate without them (--no_labels).")
        if self.positions.csv and not self.labels:
            raise InputError("--positions_csv gives positions, which --no_labels ignores; leave one of them out.")
        if self.ground_truth.is_given and not self.labels:
            given = "matches_csv" if self.ground_truth.matches_csv else "frame_tolerance"
            raise InputError(
                f"--{given} says which images are right, which --no_labels ignores; leave one of them out."
            )
        duplicates = {name for name in self.queries_subfolders if self.queries_subfolders.count(name) > 1}
        if duplicates:
            raise InputError(f"--queries_subfolder names {', '.join(sorted(duplicates))} more than once.")


class Layout(NamedTuple):
    """Folders of a benchmark: `folder`, above all others; the database's (None: not wanted); those of the queries.

    vpr_bench: the ground truth of VPR-Bench, if it is there. cities: those of MSLS as it is published, each with images
    of the database and, in the folder of `queries` with the same number, of queries.
    """

    folder: Path
    database: Path | None
    queries: list[Path]
    vpr_bench: Path | None = None
    cities: tuple[Path, ...] = ()


def find_layout(config: BenchmarkConfig, *, has_database: bool = True) -> Layout:
    """The folders of a benchmark. Raises InputError if one is missing, which says what exists instead."""
    if config.queries_folder:
        return _given_folders(config, has_database)
    folder = _split_folder(config)
    cities = find_cities(folder, VAL_CITIES if folder.name == "train_val" else None)
    if cities:
        _require_own_layout(config, folder)
        if config.split == "test":
            warn_of_missing(cities)
        queries = [city / MSLS_QUERIES for city in cities]
        return Layout(folder, folder if has_database else None, queries, cities=tuple(cities))
    database = database_folder(folder) if has_database else None
    truth = folder / VPR_BENCH_TRUTH
    return Layout(folder, database, _query_folders(folder, config), vpr_bench=truth if truth.exists() else None)


def _require_own_layout(config: BenchmarkConfig, folder: Path) -> None:
    """Raises InputError for settings that MSLS as it is published has no use for."""
    given = {
        "queries_subfolder": bool(config.queries_subfolders),
        "positions_csv": config.positions.csv is not None,
        f"positions {config.positions.source}": config.positions.source in ("auto", "exif"),
    }
    for name, is_given in given.items():
        if is_given:
            raise InputError(
                f"--{name} does not apply to MSLS as it is published, in {folder}: its folders and CSV files say where "
                "the queries are and where images were taken. Leave it out."
            )


def folder_above(queries: Path, database: Path | None) -> Path:
    """The deepest folder above the images of these two folders, which is not that of the queries itself."""
    folders = [queries.absolute(), *([database.absolute()] if database else [])]
    above = Path(os.path.commonpath(list(map(os.path.abspath, folders))))
    return above.parent if above == folders[0] else above


def is_system_name(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or added by the system: no image, and no folder of images.

    Such are the copies of attributes that macOS writes (._a.jpg), Jupyter's .ipynb_checkpoints, thumbnails
    (.thumbnails, @eaDir) and trash (.Trash-1000).
    """
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM_NAMES


def list_images(folder: Path) -> list[str]:
    """The paths of the images in a folder and its subfolders, sorted. Symbolic links to folders are followed.

    What is_system_name tells is skipped, and named in a warning.

    If the file `<folder>_images_paths.txt` lies beside the folder, its lines are the images, relative to the folder:
    listing millions of files takes longer than reading their names. Paths are strings, because millions of Path
    objects would take gigabytes. Raises InputError if the folder is missing or contains no images, links lead in a
    circle, a listed image is missing, a subfolder or file cannot be read as such, or a name has a line break.
    """
    path_list = Path(f"{os.path.abspath(folder)}{PATH_LIST_SUFFIX}")
    if folder.is_file():
        raise InputError(f"{folder} is a file. Expected a folder of images.")
    if not folder.is_dir():
        raise InputError(f"No folder {folder}. {_contents(folder.parent)}".rstrip())
    if path_list.is_file():
        return _check_names(sorted(_read_path_list(path_list, folder)))
    skipped: list[str] = []
    paths = _supported(sorted(_walk(str(folder), skipped)), folder)
    warn_of_skipped(skipped, folder)
    if not paths:
        raise InputError(f"No images in {folder}. Looked for {', '.join(IMAGE_SUFFIXES)} in it and its subfolders.")
    return _check_names(paths)


def list_source(source: Path, *, fps: float) -> list[str]:
    """The images of a folder, see list_images; or the frames of a video, see list_frames. Videos in a folder are none
    of its images. Raises InputError as these functions do.
    """
    return _check_names(list_frames(source, fps)) if is_video(source) and source.is_file() else list_images(source)


def find_images(names: Sequence[str], *, fps: float = 1.0) -> list[str]:
    """The images that names stand for, in the order of the names: image files; folders and videos, see list_source;
    frames of videos; and patterns.

    A pattern, such as "trip/*.jpg" or "trip/**/*.jpg", stands for the image files that it matches, sorted; folders that
    it matches are not entered. Raises InputError for a folder or pattern without images, and for a file that does not
    exist.
    """
    return [path for name in names for path in _images_of(os.path.expanduser(name), fps)]


def _images_of(name: str, fps: float) -> list[str]:
    if os.path.isdir(name) or is_video(name) and os.path.lexists(name):
        return list_source(Path(name), fps=fps)
    frame = frame_of(name)
    if frame and os.path.isfile(frame.video):
        return [name]
    if os.path.lexists(name):  # the names of files may contain brackets
        return [name]
    if not glob.has_magic(name):
        raise InputError(f"Cannot read the image {name}: there is no such file.")
    skipped: list[str] = []
    found = sorted(path for path in _glob(name, skipped) if not os.path.isdir(path))
    candidates = [path for path in found if path.lower().endswith(IMAGE_SUFFIXES + UNSUPPORTED_SUFFIXES)]
    named = set(name.split(os.sep))  # an entry that the pattern itself names is wanted
    skipped += [path for path in candidates if any(map(is_system_name, {*path.split(os.sep)} - named))]
    hidden = set(skipped)
    candidates = [path for path in candidates if path not in hidden]
    warn_of_skipped(skipped, name)
    paths = _supported(candidates, name)
    if not paths:
        raise InputError(f"No images match {name}. Looked for files that end with {', '.join(IMAGE_SUFFIXES)}.")
    return paths


def _supported(paths: list[str], source: str | Path) -> list[str]:
    """Those of the image files that can be read, by their suffixes. Warns of the others."""
    supported, others = list[str](), list[str]()
    for path in paths:
        (supported if path.lower().endswith(IMAGE_SUFFIXES) else others).append(path)
    if others:
        counts = Counter(os.path.splitext(path)[1].lower() for path in others)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        message = "%d files in %s are ignored, such as %s. Convert them to JPEG or PNG. (%s)"
        logging.warning(message, len(others), source, os.path.basename(others[0]), kinds)
    return supported


def warn_of_skipped(skipped: list[str], source: str | Path) -> None:
    """Warns of hidden and system entries that were skipped."""
    if skipped:
        names = ", ".join(dict.fromkeys(map(os.path.basename, sorted(skipped)[:1000])))
        message = "%d hidden or system files and folders in %s are skipped: %s"
        logging.warning(message, len(skipped), source, shorten(names))


def _check_names(paths: list[str]) -> list[str]:
    for path in paths:
        if "\n" in path or "\r" in path:
            raise InputError(
                f"The path of an image contains a line break: {path!r}. Indexes and lists have one path per line. "
                "Rename it."
            )
    return paths


def _given_folders(config: BenchmarkConfig, has_database: bool) -> Layout:
    assert config.queries_folder, "find_layout calls this for given folders only"
    above = folder_above(config.queries_folder, config.database_folder)
    return Layout(above, config.database_folder if has_database else None, [config.queries_folder])


def _split_folder(config: BenchmarkConfig) -> Path:
    """`<datasets_folder>/<name>/images/<split>`, or the same without `images`, or for `test` without both."""
    assert config.datasets_folder, "either a datasets folder or a queries folder"
    dataset = config.datasets_folder / config.name
    folders = [dataset / "images" / config.split, dataset / config.split]
    if config.split == "val" and (dataset / "train_val" / VAL_CITIES[0]).is_dir():  # MSLS as it is published
        folders.append(dataset / "train_val")
    for folder in folders:
        if folder.is_dir():
            return folder
    for folder in (config.datasets_folder, dataset):
        if not folder.is_dir():
            raise InputError(f"No folder {folder}. {_contents(folder.parent)}{EXPECTED}")
    queries = config.queries_subfolders or QUERIES_FOLDERS
    if config.split == "test" and all(_existing(dataset, names) for names in (DATABASE_FOLDERS, queries)):
        return dataset
    parent = dataset / "images" if (dataset / "images").is_dir() else dataset
    raise InputError(f"No folder {parent / config.split}. {_contents(parent)}{EXPECTED}")


def _existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_dir()]


def database_folder(folder: Path) -> Path:
    """The folder of the database below that of a split. Raises InputError if there is none, or more than one."""
    existing = _existing(folder, DATABASE_FOLDERS)
    if len(existing) > 1:
        raise InputError(
            f"{folder} contains both {existing[0].name} and {existing[1].name}. Rename or remove the one that is not "
            "the database, or give the folders with --database_folder and --queries_folder."
        )
    if not existing:
        raise InputError(f"No folder {folder / 'database'}, nor gallery or ref. {_contents(folder)}{EXPECTED}")
    return existing[0]


def _query_folders(folder: Path, config: BenchmarkConfig) -> list[Path]:
    if not config.queries_subfolders and (existing := _existing(folder, QUERIES_FOLDERS)):
        return existing[:1]
    folders = [folder / name for name in config.queries_subfolders or ("queries",)]
    for queries in folders:
        if not queries.is_dir():
            others = sorted(path.name for path in folder.glob("queries*") if path.is_dir())
            hint = f"Choose from these with --queries_subfolder: {', '.join(others)}." if others else EXPECTED
            raise InputError(f"No folder {queries}. {hint}")
    return folders


def _contents(folder: Path) -> str:
    """A sentence about what a folder contains, or nothing if there is no such folder."""
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_system_name(path.name))
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{folder} contains {', '.join(names[:10]) or 'no folders'}{more}. "


def _walk(folder: str, skipped: list[str], wanted: Collection[str] = ()) -> Iterator[str]:
    """The images below a folder, of unsupported kinds too. Raises InputError for a circle of links.

    skipped: gets the hidden and system entries that are images, or folders, but for those of the names `wanted`.
    """
    pending: list[tuple[str, tuple]] = [(folder, ())]  # no recursion: folders may be nested more deeply than calls
    while pending:
        folder, parents = pending.pop()
        try:
            status = os.stat(folder)
            identity = status.st_dev, status.st_ino
            if identity in parents:
                real_path = os.path.realpath(folder)
                raise InputError(f"{folder} leads back to {real_path}, a folder above it. Remove the symbolic link.")
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name.lower()
                    if is_system_name(name) and entry.name not in wanted:
                        if name.endswith(IMAGE_SUFFIXES + UNSUPPORTED_SUFFIXES) or entry.is_dir():
                            skipped.append(entry.path)
                    elif entry.is_dir():
                        pending.append((entry.path, (*parents, identity)))
                    elif name.endswith(IMAGE_SUFFIXES) and not entry.is_file():
                        raise InputError(f"{entry.path} is {_kind_of(entry.path)}, not an image. Remove it.")
                    elif name.endswith(IMAGE_SUFFIXES + UNSUPPORTED_SUFFIXES):
                        yield entry.path
                    elif entry.is_symlink() and not os.path.exists(entry.path):  # it may be a folder of images
                        raise InputError(f"{entry.path} is {_kind_of(entry.path)}. Repair the link, or remove it.")
        except OSError as error:
            raise InputError(
                f"Cannot list the images in {error.filename or folder}: {error.strerror}. Make it readable, or remove "
                "it."
            ) from None


def _glob(pattern: str, skipped: list[str]) -> Iterator[str]:
    """The paths that a pattern matches, as glob.glob gives them: but ** enters no circle of links, of which two have
    2^n ways through them.
    """
    if f"/{pattern}".endswith("/**"):
        pattern += "/*"
    if "/**/" not in f"/{pattern}":
        yield from glob.iglob(pattern, recursive=True)
        return
    above, _, below = f"/{pattern}".partition("/**/")
    above = above.removeprefix("/") or ("/" if pattern.startswith("/") else "")
    for folder in glob.glob(above) if above else [os.curdir]:
        for path in _walk(folder, skipped, below.split("/")) if os.path.isdir(folder) else ():
            name = os.path.relpath(path, folder)
            if _matches(name.split(os.sep), ["**", *below.split("/")]):
                yield name if not above else path


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether the names of folders and a file match a pattern's. ** stands for any folders that are not hidden."""
    if not names or not pattern:
        return not names and not pattern
    if pattern[0] == "**":
        visible = next((i for i, name in enumerate(names) if name.startswith(".")), len(names))
        return any(_matches(names[i:], pattern[1:]) for i in range(visible + 1))
    is_hidden = names[0].startswith(".") and not pattern[0].startswith(".")
    return not is_hidden and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _kind_of(path: str) -> str:
    """What a path is that is neither a folder nor a regular file."""
    return "a named pipe, socket or device" if os.path.exists(path) else "a broken symbolic link"


def _read_path_list(path_list: Path, folder: Path) -> Iterator[str]:
    lines = read_lines(path_list)
    names = list({os.path.normpath(name): name for name in reversed(lines)}.values())
    if len(names) < len(lines):
        message = "%s: %d lines repeat an earlier one. Each image counts once."
        logging.warning(message, path_list, len(lines) - len(names))
    skipped = {name for name in names if any(map(is_system_name, name.split("/")))}
    warn_of_skipped(list(skipped), path_list)
    names = [name for name in names if name not in skipped]
    if not names:
        raise InputError(f"{path_list} lists no images. Remove it, and the images in {folder} will be used.")
    present: NameTable[str] | None = None  # listed only if a name is not there as it is written
    for name in tqdm(names, desc=f"Checking {path_list.name}", unit="image", leave=False, delay=1):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            present = present or NameTable((path, path) for path in _walk(str(folder), []))
            found = present.find(path)
            if len(found) != 1:
                raise InputError(
                    f"{path_list} lists {name}, but there is no file {path}. Correct the list, or remove it."
                )
            (path,) = found
        yield path
