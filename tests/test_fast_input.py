"""The fast ways from files to input tensors against plain ways: resizing, decoding at a fraction of the size, the training transform."""
import sys

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from test_gsv_cities import photo_name, row_of, write_csv
from torchvision.transforms import v2

from datasets.gsv_cities import GSVCities
from datasets.photos import read_photo
from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize_photo, training_transform
from model import InputError
from utils import training
from utils.arguments import parse_training
from utils.checkpoint import Progress, restore, save_checkpoint

BILINEAR = v2.InterpolationMode.BILINEAR


def photo_of(height, width, seed=0):
    """Smooth colours with an edge and noise."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth) + random.normal(0, 6, (height, width, 3))
    pixels[height // 3:, width // 2:] -= 60
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(photo, path, **options):
    photo.save(path, **options)
    return path


# ---- Resizing

@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [
    ((480, 640), (322, 322)), ((481, 639), (322, 322)), ((60, 80), (224, 210)), ((70, 90), (70, 90)), ((70, 90), (70, 42)), ((90, 70), (42, 70)),
    ((301, 17), (33, 98)), ((1, 1), (14, 28)), ((5, 900), (14, 14)), ((200, 300), (1, 1)),
])
def test_resizing_is_torchvisions_of_the_float_image(old, new, antialias):
    photo = photo_of(*old)
    expected = TF.resize(TF.pil_to_tensor(photo).float().div(255), list(new), antialias=antialias)
    image = resize_photo(photo, new, antialias)
    assert image.shape == (3, *new) and image.dtype == torch.float32 and image.is_contiguous()
    torch.testing.assert_close(image, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(resize_photo(photo, new, not antialias), TF.resize(TF.pil_to_tensor(photo) / 255, list(new), antialias=not antialias),
                               rtol=0, atol=2e-6)  # matrices kept for one are not taken for the other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalizing(dtype):
    images = torch.rand(2, 3, 5, 4).to(dtype)
    before = images.clone()
    with torch.inference_mode():  # its constants must serve outside of it too
        first = normalize(images)
    expected = (images - torch.tensor(IMAGENET_MEAN, dtype=dtype).view(3, 1, 1)) / torch.tensor(IMAGENET_STD, dtype=dtype).view(3, 1, 1)
    assert torch.equal(first, expected) and torch.equal(images, before)
    normalize(images.requires_grad_()).sum().backward()
    torch.testing.assert_close(images.grad, (1 / torch.tensor(IMAGENET_STD, dtype=dtype)).view(3, 1, 1).expand(2, 3, 5, 4))


# ---- Decoding at a fraction of the size

@pytest.mark.parametrize(("draft_size", "decoded"), [
    ((224, 224), (240, 320)), ((240, 320), (240, 320)), ((241, 320), (480, 640)), ((240, 321), (480, 640)), ((60, 80), (60, 80)),
    ((14, 14), (60, 80)), ((100, 320), (240, 320)), ((320, 100), (480, 640)), ((120, 14), (120, 160)), ((481, 641), (480, 640)),
])
def test_a_jpeg_is_decoded_no_smaller_than_asked_for(tmp_path, draft_size, decoded):
    path = saved(photo_of(480, 640), tmp_path / "photo.jpg", quality=90)
    photo = read_photo(path, draft_size)
    assert photo.mode == "RGB" and photo.size == decoded[::-1]
    exact = read_photo(path).resize(photo.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(photo, float) - np.asarray(exact, float)).mean() < 1.0


def test_other_photos_are_decoded_as_ever(tmp_path):
    photo = photo_of(480, 640)
    for path in (saved(photo, tmp_path / "photo.png"), saved(photo, tmp_path / "named.jpg", format="PNG"),
                 saved(photo_of(90, 100), tmp_path / "small.jpg", quality=90)):
        assert read_photo(path, (64, 64)) == read_photo(path)
    assert read_photo(path).size == (100, 90)
    with pytest.raises(InputError, match="missing.jpg"):
        read_photo(tmp_path / "missing.jpg", (64, 64))


def test_a_grey_jpeg_becomes_an_rgb_photo(tmp_path):
    path = saved(photo_of(480, 640).convert("L"), tmp_path / "grey.jpg")
    assert read_photo(path, (224, 224)).mode == "RGB" and read_photo(path, (224, 224)).size == (320, 240)


# ---- The training transform

@pytest.mark.parametrize(("old", "size", "ops"), [((60, 80), (42, 56), 3), ((42, 56), (42, 56), 1), ((31, 45), (71, 29), 4), ((60, 80), (42, 28), 0)])
def test_the_training_transform_is_torchvisions(old, size, ops):
    plain = v2.Compose([v2.Resize(list(size), interpolation=BILINEAR), v2.RandAugment(ops, interpolation=BILINEAR), v2.PILToTensor()])
    ours = training_transform(size, ops)
    for seed in range(80):  # enough for each operation in both directions
        photo = photo_of(*old, seed)
        torch.manual_seed(seed)
        expected, following = plain(photo), torch.rand(())
        torch.manual_seed(seed)
        image = ours(photo)
        assert torch.rand(()) == following, seed
        assert image.dtype == torch.uint8 and torch.equal(image, expected), seed


# ---- Training data with and without exact decoding

@pytest.fixture
def folder(tmp_path):
    """One place with two JPEG photos."""
    (tmp_path / "Images" / "Oslo").mkdir(parents=True)
    write_csv(tmp_path, "Oslo", [row_of("Oslo", 0, number) for number in range(2)])
    for number in range(2):
        saved(photo_of(120, 160, number), tmp_path / "Images" / photo_name("Oslo", 0, number), quality=90)
    return tmp_path


def test_training_photos_are_decoded_exactly_only_if_asked(folder):
    settings = {"folder": folder, "cities": ["Oslo"], "image_size": (42, 56), "images_per_place": 2, "randaugment_ops": 0}
    drafts, exact = (GSVCities(**settings, exact_decoding=exact)[0, 0].images.float() for exact in (False, True))
    assert torch.equal(GSVCities(**settings)[0, 0].images.float(), drafts)
    assert not torch.equal(drafts, exact)
    assert (drafts - exact).abs().mean() < 2.0
    plain = v2.Compose([v2.Resize([42, 56], interpolation=BILINEAR), v2.PILToTensor()])
    photos = [plain(Image.open(path).convert("RGB")).float() for path in sorted((folder / "Images" / "Oslo").iterdir())]
    assert any(torch.equal(exact, torch.stack(order)) for order in (photos, photos[::-1]))


@pytest.mark.parametrize("flags", [[], ["--exact_decoding"]])
def test_the_flag_reaches_the_training_data(flags, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def training_data(*values):
        raise Asked(dict(zip(GSVCities.__init__.__code__.co_varnames[1:], values, strict=False)))

    monkeypatch.setattr(sys, "argv", ["train.py", f"--datasets_folder={tmp_path}", "--device=cpu", *flags])
    monkeypatch.setattr(training, "GSVCities", training_data)
    with pytest.raises(Asked) as caught:
        training.Training(parse_training("A test."), None, None, False)
    assert caught.value.args[0]["exact_decoding"] is bool(flags)


def test_a_run_goes_on_with_the_decoding_that_it_began_with(tmp_path):
    model = torch.nn.Linear(2, 1)
    parts = model, torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=False)
    # The first is from before the flag, when all decoding was exact.
    began_with = {"seed": 0}, {"seed": 0, "exact_decoding": False}, {"seed": 0, "exact_decoding": True}
    for i, (arguments, exact) in enumerate(zip(began_with, (True, False, True), strict=True)):
        path = tmp_path / f"{i}.pth"
        save_checkpoint(path, *parts, Progress(epoch=i), arguments)
        checkpoint = torch.load(path)
        assert restore(checkpoint, path, *parts, {"seed": 0, "exact_decoding": exact}).epoch == i
        with pytest.raises(InputError, match=f"--exact_decoding {not exact} .was {exact}"):
            restore(checkpoint, path, *parts, {"seed": 0, "exact_decoding": not exact})
