"""Image files as a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datasets.views import image_view
from model.errors import InputError
from model.image_files import TURNS, exif_orientation_of, load_image


class ImageSample(NamedTuple):
    """Pixels [..., 3, H, W], float32 in [0, 1]; whether EXIF says that they are turned, which was not applied."""

    pixels: Tensor
    turned: bool


class ImageBatch(NamedTuple):
    """Pixels [B, ..., 3, H, W], float32 in [0, 1]; how many images EXIF says are turned, which was not applied."""

    pixels: Tensor
    num_turned: int


class ImageDataset(Dataset):
    """Image files as samples: see `datasets.views.image_view`; an InputError if one cannot be read.

    size = (H, W); method: one of TEST_METHODS; exif_orientation as for load_image. The error is returned rather than
    raised: raised in a worker process, it would arrive wrapped in the worker's traceback.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        size: tuple[int, int],
        *,
        antialias: bool = True,
        method: str = "hard_resize",
        exif_orientation: bool = False,
    ) -> None:
        self.paths = paths
        self.size = size
        self.antialias = antialias
        self.method = method
        self.exif_orientation = exif_orientation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> ImageSample | InputError:
        try:
            image = load_image(self.paths[i], exif_orientation=self.exif_orientation)
        except InputError as error:
            return error
        try:
            pixels = image_view(image, self.method, self.size, self.antialias)
        except InputError as error:
            return InputError(f"Cannot use the image {self.paths[i]}: {error}")
        return ImageSample(pixels, turned=not self.exif_orientation and exif_orientation_of(image) in TURNS)


def collate_images(samples: list[ImageSample | InputError]) -> ImageBatch | list[InputError]:
    """One batch of the images, or the errors if there are any."""
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    images = [sample for sample in samples if isinstance(sample, ImageSample)]
    if errors:
        return errors
    return ImageBatch(default_collate([image.pixels for image in images]), sum(image.turned for image in images))
