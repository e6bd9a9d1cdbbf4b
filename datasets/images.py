"""Image files as a dataset."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datasets.views import image_view
from model.errors import InputError


def load_image(
    path: str | Path, draft_size: tuple[int, int] | None = None, *, exif_orientation: bool = False
) -> Image.Image:
    """The decoded RGB image. Raises InputError, which names the file, if it is missing, unreadable or truncated.

    exif_orientation: turn the image as its EXIF orientation says. Phones store images as the sensor reads them, and in
    EXIF how they were held.

    With draft_size = (H, W) a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as neither side falls below
    draft_size. This is faster, and differs slightly from decoding and resizing the full image.
    """
    try:
        with Image.open(path) as image:
            if draft_size is not None:
                image.draft("RGB", draft_size[::-1])  # ignored by other formats
            return (ImageOps.exif_transpose(image) if exif_orientation else image).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"Cannot read the image {path}: there is no such file.") from None
    except IsADirectoryError:
        raise InputError(f"Cannot read the image {path}: this is a folder. Give image files.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise InputError(f"Cannot read the image {path}: {error}. The file may be damaged or truncated.") from error


class ImageDataset(Dataset):
    """Image files as float32 tensors in [0, 1]: see `datasets.views.image_view`; an InputError if one cannot be read.

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

    def __getitem__(self, i: int) -> Tensor | InputError:
        try:
            image = load_image(self.paths[i], exif_orientation=self.exif_orientation)
            return image_view(image, self.method, self.size, self.antialias)
        except InputError as error:
            return error


def collate_images(images: list[Tensor | InputError]) -> Tensor | InputError:
    """Images [..., 3, H, W] -> batch [B, ..., 3, H, W], or the first error if there is one."""
    errors = [image for image in images if isinstance(image, InputError)]
    return errors[0] if errors else default_collate(images)
