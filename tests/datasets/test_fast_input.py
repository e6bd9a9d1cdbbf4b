"""The fast ways from files to input tensors against plain ways."""

import resource
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from helpers.training_places import image_name, row_of, write_csv
from PIL import Image
from torchvision.transforms import v2

from datasets import resizing
from datasets.config import PlacesConfig
from datasets.gsv_cities import GSVCities
from datasets.randaugment import RandAugment
from datasets.resizing import resize_image, resize_image_reference
from datasets.transforms import training_transform
from model import InputError
from model.image_files import load_image
from model.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from model.resizing import resizing_matrix, row_bands
from utils.cli.training import FloatTraining
from utils.runtime.parser import parse

BILINEAR = v2.InterpolationMode.BILINEAR


def image_of(height, width, seed=0):
    """Smooth colours with an edge and noise."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(smooth) + random.normal(0, 6, (height, width, 3))
    pixels[height // 3 :, width // 2 :] -= 60
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(((481, 639), (322, 322)), ((60, 80), (224, 210)), ((70, 90), (70, 90)), ((70, 90), (70, 42))),
        *(((90, 70), (42, 70)), ((301, 17), (33, 98)), ((1, 1), (14, 28)), ((5, 900), (14, 14)), ((200, 300), (1, 1))),
    ],
)
def test_resizing_is_torchvisions_of_the_float_image(old, new, antialias):
    image = image_of(*old)
    expected = TF.resize(TF.pil_to_tensor(image).float().div(255), list(new), antialias=antialias)
    resized = resize_image(image, new, antialias)
    assert resized.shape == (3, *new) and resized.dtype == torch.float32 and resized.is_contiguous()
    torch.testing.assert_close(resized, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(resized, resize_image_reference(image, new, antialias), rtol=0, atol=2e-6)
    # Matrices kept for one are not taken for the other.
    expected = TF.resize(TF.pil_to_tensor(image) / 255, list(new), antialias=not antialias)
    torch.testing.assert_close(resize_image(image, new, not antialias), expected, rtol=0, atol=2e-6)


def interpolated_identity(old, new, antialias):
    """The matrix, as PyTorch resizes the identity."""
    return F.interpolate(torch.eye(old)[None, None], (new, old), mode="bilinear", antialias=antialias)[0, 0]


SIDES = [(1, 1), (1, 14), (2, 14), (3, 7), (900, 1), (900, 14), (14, 900), (640, 322), (322, 322), (4032, 98)]
SIDES += [tuple(map(int, pair)) for pair in np.random.default_rng(0).integers(1, 500, (60, 2))]


def test_the_resizing_matrix_is_pytorchs_interpolation_of_the_identity():
    """Bit for bit with antialiasing; without it, kernels of PyTorch 2.6 differ by at most 3e-5 of a pixel here."""
    for old, new in SIDES:
        expected = interpolated_identity(old, new, True)
        assert torch.equal(resizing_matrix(old, new, True).to_dense(), expected), (old, new)
        assert resizing_matrix(old, new, True)._nnz() == expected.count_nonzero()
        matrix = resizing_matrix(old, new, False)
        torch.testing.assert_close(matrix.to_dense(), interpolated_identity(old, new, False), rtol=0, atol=4e-5)
        assert matrix._nnz() <= 2 * new


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("new", [14, 322, 30_000])
def test_a_long_side_needs_little_memory(new, antialias):
    """The identity of 20,000 pixels has 1.6 GB."""
    signal = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resized = resizing_matrix(20_000, new, antialias) @ signal
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    expected = F.interpolate(signal.t()[None, None], (3, new), mode="bilinear", antialias=antialias)[0, 0].t()
    torch.testing.assert_close(resized, expected, rtol=0, atol=2e-6 if antialias else 2e-3)


@pytest.mark.parametrize("antialias", [True, False])
def test_a_huge_image_is_resized_in_blocks_to_the_same_pixels(monkeypatch, antialias):
    image = image_of(301, 217)
    whole = resize_image(image, (42, 56), antialias)
    sizes = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda image, box: sizes.append(box[2] - box[0]) or crop(image, box))
    monkeypatch.setattr(resizing, "MAX_BLOCK_PIXELS", 301 * 50 + 7)
    assert torch.equal(resize_image(image, (42, 56), antialias), whole)
    assert sizes == [50, 50, 50, 50, 17]
    monkeypatch.setattr(resizing, "MAX_BLOCK_PIXELS", 10)  # less than a column
    assert torch.equal(resize_image(image, (42, 56), antialias), whole)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [(301, 42), (42, 301), (40, 40), (900, 1), (1, 14)])
@pytest.mark.parametrize("max_rows", [0, 7, 50, 1000])
def test_bands_of_rows_give_the_product_with_the_complete_matrix(old, new, antialias, max_rows):
    pixels = torch.rand(old, 9, generator=torch.Generator().manual_seed(0))
    bands = row_bands(old, new, antialias, max_rows=max_rows)
    product = torch.cat([matrix @ pixels[rows] for rows, matrix in bands])
    assert torch.equal(product, resizing_matrix(old, new, antialias) @ pixels)
    many = [matrix for rows, matrix in bands if rows.stop - rows.start > max_rows]
    assert all(len(matrix) == 1 for matrix in many), "only a single new row may need more old ones"
    assert len(bands) == 1 or max_rows < old


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalizing(dtype):
    images = torch.rand(2, 3, 5, 4).to(dtype)
    before = images.clone()
    with torch.inference_mode():  # its constants must serve outside of it too
        first = normalize(images)
    expected = (images - torch.tensor(IMAGENET_MEAN, dtype=dtype).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD, dtype=dtype
    ).view(3, 1, 1)
    assert torch.equal(first, expected) and torch.equal(images, before)
    normalize(images.requires_grad_()).sum().backward()
    torch.testing.assert_close(
        images.grad, (1 / torch.tensor(IMAGENET_STD, dtype=dtype)).view(3, 1, 1).expand(2, 3, 5, 4)
    )


@pytest.mark.parametrize(
    ("draft_size", "decoded"),
    [
        *(((224, 224), (240, 320)), ((240, 320), (240, 320)), ((241, 320), (480, 640)), ((240, 321), (480, 640))),
        *(((14, 14), (60, 80)), ((100, 320), (240, 320)), ((120, 14), (120, 160)), ((481, 641), (480, 640))),
    ],
)
def test_a_jpeg_is_decoded_no_smaller_than_asked_for(tmp_path, draft_size, decoded):
    path = saved(image_of(480, 640), tmp_path / "photo.jpg", quality=90)
    image = load_image(path, draft_size)
    assert image.mode == "RGB" and image.size == decoded[::-1]
    exact = load_image(path).resize(image.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(image, float) - np.asarray(exact, float)).mean() < 1.0


def test_other_images_are_decoded_as_ever(tmp_path):
    image = image_of(480, 640)
    for path in (
        saved(image, tmp_path / "photo.png"),
        saved(image, tmp_path / "named.jpg", format="PNG"),
        saved(image_of(90, 100), tmp_path / "small.jpg", quality=90),
    ):
        assert load_image(path, (64, 64)) == load_image(path)
    assert load_image(path).size == (100, 90)
    with pytest.raises(InputError, match="missing.jpg"):
        load_image(tmp_path / "missing.jpg", (64, 64))


def test_a_grey_jpeg_becomes_an_rgb_image(tmp_path):
    path = saved(image_of(480, 640).convert("L"), tmp_path / "grey.jpg")
    assert load_image(path, (224, 224)).mode == "RGB" and load_image(path, (224, 224)).size == (320, 240)


@pytest.mark.parametrize(
    ("old", "size", "ops"),
    [((60, 80), (42, 56), 3), ((42, 56), (42, 56), 1), ((31, 45), (71, 29), 4), ((60, 80), (42, 28), 0)],
)
def test_the_training_transform_is_torchvisions(old, size, ops):
    plain = v2.Compose(
        [v2.Resize(list(size), interpolation=BILINEAR), v2.RandAugment(ops, interpolation=BILINEAR), v2.PILToTensor()]
    )
    ours = training_transform(size, ops)
    for seed in range(80):  # enough for each operation in both directions
        image = image_of(*old, seed)
        torch.manual_seed(seed)
        expected, following = plain(image), torch.rand(())
        torch.manual_seed(seed)
        image = ours(image)
        assert torch.rand(()) == following, seed
        assert image.dtype == torch.uint8 and torch.equal(image, expected), seed


def test_torchvision_still_calls_the_private_method_that_is_overridden(monkeypatch):
    """Otherwise translations would silently be slow again."""
    assert RandAugment._apply_image_or_video_transform is not v2.RandAugment._apply_image_or_video_transform
    calls = {RandAugment: [], v2.RandAugment: []}
    for kind, names in calls.items():

        def spy(self, image, name, *rest, names=names, method=kind._apply_image_or_video_transform, **more):
            names.append(name)
            return method(self, image, name, *rest, **more)

        monkeypatch.setattr(kind, "_apply_image_or_video_transform", spy)
    for seed in range(80):
        torch.manual_seed(seed)
        training_transform((28, 28), 1)(image_of(30, 30))
    called = calls[RandAugment]
    assert {"TranslateX", "TranslateY"} < set(called) and len(called) == 80
    assert calls[v2.RandAugment] == [name for name in called if not name.startswith("Translate")]


@pytest.fixture
def folder(tmp_path):
    """One place with two JPEG images."""
    (tmp_path / "Images" / "Oslo").mkdir(parents=True)
    write_csv(tmp_path, "Oslo", [row_of("Oslo", 0, number) for number in range(2)])
    for number in range(2):
        saved(image_of(120, 160, number), tmp_path / "Images" / image_name("Oslo", 0, number), quality=90)
    return tmp_path


def test_training_images_are_decoded_exactly_only_if_asked(folder):
    settings = {"cities": ("Oslo",), "image_size": (42, 56), "images_per_place": 2, "randaugment_ops": 0}
    drafts, exact = (
        GSVCities(folder, PlacesConfig(**settings, exact_decoding=exact))[0, 0].images.float()
        for exact in (False, True)
    )
    assert torch.equal(GSVCities(folder, PlacesConfig(**settings))[0, 0].images.float(), drafts)
    assert not torch.equal(drafts, exact)
    assert (drafts - exact).abs().mean() < 2.0
    plain = v2.Compose([v2.Resize([42, 56], interpolation=BILINEAR), v2.PILToTensor()])
    images = [plain(Image.open(path).convert("RGB")).float() for path in sorted((folder / "Images" / "Oslo").iterdir())]
    assert any(torch.equal(exact, torch.stack(order)) for order in (images, images[::-1]))


@pytest.mark.parametrize("flags", [[], ["--exact_decoding"]])
def test_the_flag_reaches_the_training_data(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", f"--datasets_folder={tmp_path}", "--device=cpu", *flags])
    args = parse(FloatTraining, "A test.")
    assert args.places.exact_decoding is bool(flags)
    assert args.must_match["exact_decoding"] is bool(flags)  # a resumed run must repeat it
