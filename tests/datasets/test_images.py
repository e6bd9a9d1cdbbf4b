"""Image files: the kinds that are read and their pixels, what is refused before decoding, EXIF orientation."""

import contextlib
import io
import os
import socket
import struct
import time
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.processes import ROOT
from PIL import EpsImagePlugin, Image, ImageOps

from datasets.config import TEST_METHODS
from datasets.image_set import ImageSet
from datasets.images import ImageBatch, ImageDataset, collate_images
from datasets.layouts import list_images
from model import InputError, image_files
from model.image_files import MAX_SCANS, load_image, to_rgb
from model.jpeg_files import jpeg_structure
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import extract_chunks
from utils.runtime import distributed

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY, RGB = 0, 2  # colour types of PNG


def png(width, height, depth, colour_type, pixels=b""):
    """A PNG file of these raw pixels: big-endian, rows without filter."""
    row = len(pixels) // height
    rows = b"".join(b"\0" + pixels[i * row : (i + 1) * row] for i in range(height if row else 0))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def pixels(path, **options):
    """The pixels that load_image reads, [H, W, 3], without any warning of Pillow's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(path):
    with pytest.raises(InputError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def with_alpha(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.putalpha(Image.fromarray(COLOURS[..., 0]))
    return image


KINDS = {
    "RGB": (Image.fromarray(COLOURS), "png", {}),
    "grey": (Image.fromarray(COLOURS).convert("L"), "png", {}),
    "1 bit": (Image.fromarray(COLOURS).convert("1"), "png", {}),
    "alpha": (with_alpha("RGB"), "png", {}),
    "grey with alpha": (with_alpha("L"), "png", {}),
    "palette": (Image.fromarray(COLOURS).quantize(37), "png", {}),
    "palette of 2 bits": (Image.fromarray(COLOURS).quantize(4), "png", {"bits": 2}),
    "palette with a transparent colour": (Image.fromarray(COLOURS).quantize(37), "png", {"transparency": 5}),
    "palette with transparencies": (Image.fromarray(COLOURS).quantize(37), "png", {"transparency": bytes(range(37))}),
    "RGB with a transparent colour": (Image.fromarray(COLOURS), "png", {"transparency": (1, 2, 3)}),
    "grey with a transparent value": (Image.fromarray(COLOURS).convert("L"), "png", {"transparency": 7}),
    "JPEG": (Image.fromarray(COLOURS), "jpg", {}),
    "grey JPEG": (Image.fromarray(COLOURS).convert("L"), "jpg", {}),
    "CMYK JPEG": (Image.fromarray(COLOURS).convert("CMYK"), "jpg", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_8_bits_are_those_of_pillows_conversion(tmp_path, kind):
    image, suffix, options = KINDS[kind]
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    with warnings.catch_warnings(), Image.open(path) as opened:
        warnings.simplefilter("ignore")
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(pixels(path), expected)


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    (tmp_path / "image.png").write_bytes(png(256, 256, 16, GREY, values.astype(">u2").tobytes()))
    expected = np.rint(values * 255.0 / 65535).astype(np.uint8)
    assert np.array_equal(pixels(tmp_path / "image.png"), np.stack([expected] * 3, axis=2))


def test_16_bit_colours_are_cut_to_their_upper_8_bits(tmp_path):
    values = RANDOM.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    (tmp_path / "image.png").write_bytes(png(7, 5, 16, RGB, values.astype(">u2").tobytes()))
    assert np.array_equal(pixels(tmp_path / "image.png"), values >> 8)


@pytest.mark.parametrize("mode", ["F", "HSV", "LAB", "YCbCr"])
def test_other_kinds_of_pixels_are_refused(mode):
    with pytest.raises(InputError, match=f"have the type {mode}. Expected 8 or 16 bits"):
        to_rgb(Image.new(mode, (2, 2)))


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("jpg", "MPO")])
def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path, suffix, kind):
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    path = tmp_path / f"image.{suffix}"
    first.save(path, format=kind, save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.abs(pixels(path).astype(int) - (250, 0, 0)).max() < 5


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "TIFF", "BMP"])
def test_other_formats_are_refused_whatever_their_names(tmp_path, kind):
    path = tmp_path / "image.jpg"
    try:
        Image.fromarray(COLOURS).save(path, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    assert "this is not a JPEG or PNG file" in refusal(path)


def test_an_eps_file_does_not_start_ghostscript(tmp_path, monkeypatch):
    def started(*arguments, **options):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    path = tmp_path / "image.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n")
    assert "this is not a JPEG or PNG file" in refusal(path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((20_000, 10_000), "it has 20000 x 10000 pixels. At most 178,956,970 are read"),
        ((40_000, 40_000), "it has more than 357,913,940 pixels. At most 178,956,970 are read"),
        ((1, 65_536), "it has 1 x 65536 pixels. At most 178,956,970 are read, and 65,535 per side. Scale it down."),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_images_are_refused_by_their_header(tmp_path, size, message):
    (tmp_path / "image.png").write_bytes(png(*size, 8, RGB))
    assert message in refusal(tmp_path / "image.png")


def test_a_long_thin_image_is_read(tmp_path):
    (tmp_path / "image.png").write_bytes(png(40_000, 1, 8, RGB, bytes(120_000)))
    sample = ImageDataset([tmp_path / "image.png"], (14, 14))[0]
    assert torch.equal(sample.pixels, torch.zeros(3, 14, 14))


@pytest.mark.parametrize("method", TEST_METHODS)
def test_a_long_thin_query_is_refused_where_its_shape_is_kept(tmp_path, method):
    Image.new("RGB", (4000, 10)).save(tmp_path / "thin.png")
    (sample,) = [ImageDataset([tmp_path / "thin.png"], (28, 42), method=method)[0]]
    if method == "hard_resize":
        assert sample.pixels.shape == (3, 28, 42)
    else:
        assert isinstance(sample, InputError) and str(sample).startswith(f"Cannot use the image {tmp_path}")
        assert "it has 4000 x 10 pixels, which the test method would make 11200 x 28" in str(sample)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind, monkeypatch):
    """Opening a pipe would wait for a writer for ever."""

    def opened(*arguments, **options):
        raise AssertionError("it was opened")

    path = tmp_path / "image.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    monkeypatch.setattr(Image, "open", opened)
    assert ("this is a folder" if kind == "folder" else "this is a named pipe, socket or device") in refusal(path)


# ---- What does not matter, and what takes too long


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
def test_large_metadata_of_a_png_file_does_not_matter(tmp_path, kind, place):
    """Before and after the pixels. Pillow decompresses at most 1 MB, and 64 MB in all."""
    text = bytes(1 << 21)
    body = {b"tEXt": b"k\0" + b"x" * (1 << 21), b"iTXt": b"k\0\1\0\0\0" + zlib.compress(text)}
    content = kind + body.get(kind, b"k\0\0" + zlib.compress(text))
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = png(17, 12, 8, RGB, COLOURS.tobytes())
    at = data.index(place) - 4
    (tmp_path / "a.png").write_bytes(data[:at] + chunk * (40 if kind == b"tEXt" else 1) + data[at:])
    assert np.array_equal(pixels(tmp_path / "a.png"), COLOURS)
    broken = bytearray(chunk)
    broken[-1] ^= 1
    (tmp_path / "a.png").write_bytes(data[:33] + broken + data[33:])
    assert "this is not a JPEG or PNG file" in refusal(tmp_path / "a.png")  # damage stays an error


def test_a_real_png_file_with_large_xmp(tmp_path):
    assert pixels(ROOT / "tests" / "data" / "photos" / "large_xmp.png").ndim == 3


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True, "quality": 95}, {"subsampling": 0}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_read_without_its_end_marker_but_not_without_pixels(tmp_path, options, mode):
    """Cut anywhere, it is read with all of its pixels, or not at all."""
    rough = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8))
    file = io.BytesIO()
    rough.resize((48, 40)).convert(mode).save(file, "JPEG", **options)
    data, path = file.getvalue(), tmp_path / "a.jpg"
    path.write_bytes(data)
    whole = pixels(path)
    for cut in (1, 2):
        path.write_bytes(data[:-cut])
        assert np.array_equal(pixels(path), whole)
        assert np.array_equal(pixels(path, draft_size=(14, 14)), pixels_of(data, draft_size=(14, 14)))
    for cut in range(3, len(data) - 200):
        path.write_bytes(data[:-cut])
        with contextlib.suppress(InputError):
            assert np.array_equal(pixels(path), whole), cut
    path.write_bytes(data[:-20])
    assert "truncated" in refusal(path)


def pixels_of(data, draft_size):
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", draft_size[::-1])
        return np.asarray(image.convert("RGB"))


def test_orientation_of_a_jpeg_without_its_end_marker(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(6)[:-2])
    assert ImageDataset([tmp_path / "a.jpg"], (14, 14))[0].turned
    assert load_image(tmp_path / "a.jpg", exif_orientation=True).size == (12, 17)


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(tmp_path):
    """1,500 scans of a few bytes each took 19 s. The last scan of a progressive JPEG can be repeated at will."""
    file = io.BytesIO()
    Image.new("RGB", (2000, 1500), (90, 120, 60)).save(file, "JPEG", progressive=True)
    data, path = file.getvalue(), tmp_path / "a.jpg"
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert jpeg_structure(data) == (10, True, True)
    path.write_bytes(data[:-2] + scan * (MAX_SCANS - 10) + data[-2:])
    assert pixels(path).shape == (1500, 2000, 3)
    path.write_bytes(data[:-2] + scan * 1500 + data[-2:])
    start = time.perf_counter()
    assert "it has 1510 scans. At most 100 are read" in refusal(path)
    assert time.perf_counter() - start < 1


# ---- HEIC


@pytest.fixture
def heic(tmp_path):
    """heic(orientation): a HEIC file of one colour, 64 x 48 before it is turned."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="requirements-heic.txt is not installed")
    pillow_heif.register_heif_opener()

    def save(orientation):
        path = tmp_path / "photo.heic"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (64, 48), (200, 30, 40)).save(path, "HEIF", exif=exif.tobytes())
        return path

    return save


@pytest.mark.parametrize("applied", [True, False])
def test_heic_is_read_upright_in_any_case(heic, applied):
    for orientation, size in ((1, (64, 48)), (3, (64, 48)), (6, (48, 64))):
        path = heic(orientation)
        assert load_image(path, exif_orientation=applied).size == size
        assert np.abs(pixels(path).astype(int) - (200, 30, 40)).max() < 4
        assert ImageDataset([path], (14, 14), exif_orientation=applied)[0].turned is False
        assert list_images(path.parent) == [str(path)]


def test_a_damaged_heic_file_is_refused_with_its_name(heic, tmp_path):
    whole = heic(1).read_bytes()
    for i in range(0, len(whole), 3):
        path = tmp_path / f"{i}.heic"
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :])
        with contextlib.suppress(InputError):  # no other error; some bytes change nothing, or pixels
            load_image(path)
        path.write_bytes(whole[:i])
        assert str(path) in refusal(path)


def test_without_the_package_a_heic_file_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "FORMATS", ("JPEG", "PNG"))
    monkeypatch.setattr(
        image_files, "NO_HEIC", image_files.NO_HEIC or "For HEIC: pip install -r requirements-heic.txt."
    )
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert "pip install -r requirements-heic.txt" in refusal(tmp_path / "photo.heic")


# ---- EXIF orientation


def encoded(orientation, kind="JPEG", image=None):
    """A file of an image whose EXIF holds this orientation; None: no EXIF."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    (image or Image.fromarray(COLOURS)).save(file, kind, **({} if orientation is None else {"exif": exif}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_whether_an_image_is_turned(tmp_path, kind):
    path = tmp_path / "image.jpg"
    for orientation, turned in ((None, False), (1, False), (2, True), (6, True), (8, True), (9, False), (0, False)):
        path.write_bytes(encoded(orientation, kind))
        assert ImageDataset([path], (14, 14))[0].turned is turned, orientation
        assert ImageDataset([path], (14, 14), exif_orientation=True)[0].turned is False, orientation
    grey = Image.fromarray(np.zeros((4, 6), np.uint16))
    path.write_bytes(encoded(8, "PNG", grey))
    assert ImageDataset([path], (14, 14))[0].turned
    assert load_image(path, exif_orientation=True).size == (4, 6)


@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_pillow_turns_it(tmp_path, orientation):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(orientation, "PNG"))
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(np.asarray(load_image(path, exif_orientation=True)), np.asarray(expected))


def test_damaged_exif_never_ends_in_another_error(tmp_path):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker", 0x011A: 72.0, 0x0131: "software"})
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "JPEG", exif=exif)
    data = bytearray(file.getvalue())
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(20, 140, random.integers(1, 4)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            load_image(path, exif_orientation=True)


def test_damaged_exif_is_not_turned(tmp_path):
    """The pixels are sound, and an evaluation needs nothing else."""
    path = tmp_path / "image.jpg"
    image = Image.new("CMYK", (17, 12))  # opening an RGB file looks at its EXIF already
    path.write_bytes(encoded(6, image=image).replace(b"MM\0*", b"XX\0*").replace(b"II*\0", b"XX*\0"))
    with pytest.raises(SyntaxError):
        load_image(path).getexif()
    sample = ImageDataset([path], (14, 14))[0]
    assert not sample.turned and sample.pixels.shape == (3, 14, 14)


def test_a_batch_counts_turned_images_and_passes_errors_on(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for path, orientation in zip(paths, (6, 1, 3, None), strict=True):
        path.write_bytes(encoded(orientation))
    data = ImageDataset([*paths, tmp_path / "missing.jpg"], (14, 14))
    batch = collate_images([data[i] for i in range(4)])
    assert isinstance(batch, ImageBatch) and batch.num_turned == 2
    assert torch.equal(batch.pixels, torch.stack([data[i].pixels for i in range(4)]))
    assert "missing.jpg" in str(collate_images([data[0], data[4]]))


class Mean(torch.nn.Module):
    """A model whose descriptor is the mean colour."""

    def forward(self, images, float_branch):
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ignored_orientations_are_counted_in_one_warning_per_image_set(tmp_path, caplog, monkeypatch, num_workers):
    paths = [tmp_path / f"{i}.jpg" for i in range(7)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(6 if i in (1, 4, 5) else 1))
    images = ImageSet.without_positions(paths)
    config = ExtractionConfig(resize=(14, 14), batch_size=2, num_workers=num_workers)
    monkeypatch.setattr("utils.retrieval.extraction.CHUNK_SIZE", 3)
    list(extract_chunks(Mean(), images, config))
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 7 images carry an EXIF orientation, which is ignored, as in the reference. eval*.py --exif_orientation "
        "turns them upright."
    ]
    caplog.clear()
    list(extract_chunks(Mean(), images, replace(config, exif_orientation=True)))
    list(extract_chunks(Mean(), images[:1], config))
    assert not caplog.records
    monkeypatch.setattr(distributed, "all_gather_int", lambda number: [number, 2])  # a second rank found two
    list(extract_chunks(Mean(), images, config))
    assert "5 of 7 images" in caplog.text
