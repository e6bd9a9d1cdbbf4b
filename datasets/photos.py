"""Photo files as a dataset."""
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datasets.transforms import resize_photo
from model.errors import InputError


def read_photo(path: str | Path, draft_size: tuple[int, int] | None = None) -> Image.Image:
    """The decoded RGB photo. Raises InputError, which names it, where it is missing, unreadable or truncated.

    With draft_size = (H, W) a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size where that leaves it no smaller than this on either
    axis: faster, and not quite the pixels that the whole photo has after resizing.
    """
    try:
        with Image.open(path) as photo:
            if draft_size is not None:
                photo.draft("RGB", draft_size[::-1])  # does nothing to other formats
            return photo.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise InputError(f"cannot read the photo {path}: {error}. Is the file damaged or truncated?") from error


class PhotoDataset(Dataset):
    """Photo files as [3, H, W] float32 images in [0, 1], size = (H, W); an InputError in the place of one that cannot be read.

    Returned, not raised: out of a worker process it would come wrapped in the worker's traceback.
    """

    def __init__(self, paths: Sequence[str | Path], size: tuple[int, int], antialias: bool = True) -> None:
        self.paths = paths
        self.size = size
        self.antialias = antialias

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor | InputError:
        try:
            return resize_photo(read_photo(self.paths[i]), self.size, self.antialias)
        except InputError as error:
            return error


def collate_photos(images: list[Tensor | InputError]) -> Tensor | InputError:
    """Images [3, H, W] -> batch [B, 3, H, W]; the first error where there is one."""
    errors = [image for image in images if isinstance(image, InputError)]
    return errors[0] if errors else default_collate(images)
