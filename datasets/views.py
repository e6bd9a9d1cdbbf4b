"""How a query is cut to size: the test methods of the VG benchmark (Berton et al., CVPR 2022)."""

from PIL import Image
from torch import Tensor, stack

from datasets.resizing import resize_image
from model.config import MAX_IMAGE_SIDE, PATCH_SIZE
from model.errors import InputError


def image_view(image: Image.Image, method: str, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """RGB image -> float32 in [0, 1], resized bilinearly; size = (H, W).

    hard_resize: [3, H, W], regardless of the aspect ratio. single_query: [3, h, w] with the aspect ratio kept: the
    shorter side is min(H, W), the longer one is rounded to a multiple of 14. central_crop: [3, H, W], the centre of the
    smallest resized image that covers it. five_crops, nearest_crop, maj_voting: [3, 3, s, s] with s = min(H, W), crops
    of the image whose shorter side is s: at its start (left or top), its centre and its end. These are the benchmark's
    five crops: of the four corners, two coincide at each end.

    Raises InputError if a side would exceed MAX_IMAGE_SIDE: the image is much longer than wide.
    """
    height, width = size
    shorter = min(size)
    if method == "hard_resize":
        return resize_image(image, size, antialias)
    if method == "single_query":
        longer = PATCH_SIZE * round(max(image.size) * shorter / min(image.size) / PATCH_SIZE)
        return resize_image(image, _checked(image, _oriented(image, shorter, longer)), antialias)
    if method == "central_crop":
        scale = max(height / image.height, width / image.width)
        covering = _checked(image, (round(image.height * scale), round(image.width * scale)))
        resized = resize_image(image, covering, antialias)
        top, left = (round((big - small) / 2) for big, small in zip(resized.shape[1:], size, strict=True))
        return resized[:, top : top + height, left : left + width].contiguous()
    longer = int(shorter * max(image.size) / min(image.size))
    resized = resize_image(image, _checked(image, _oriented(image, shorter, longer)), antialias)
    axis = 1 if image.height > image.width else 2
    starts = (0, round((longer - shorter) / 2), longer - shorter)
    return stack([resized.narrow(axis, start, shorter) for start in starts])


def _checked(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The size that an image would get. Raises InputError if it is too large."""
    if max(size) > MAX_IMAGE_SIDE:
        raise InputError(
            f"it has {image.width} x {image.height} pixels, which the test method would make {size[1]} x {size[0]}; no "
            f"side may exceed {MAX_IMAGE_SIDE}. Crop it, or use --test_method hard_resize."
        )
    return size


def _oriented(image: Image.Image, shorter: int, longer: int) -> tuple[int, int]:
    """(height, width) with the longer side where the image has it."""
    return (longer, shorter) if image.height > image.width else (shorter, longer)
