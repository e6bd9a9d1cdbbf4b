"""SelaVPR++ as the global descriptor of RTAB-Map, which calls `init` and `extract` of this file.

    export SELAVPR_MODEL=SelaVPRplusplus_base  # or a checkpoint file
    rtabmap --Mem/GlobalDescriptorStrategy 1 --PyDescriptor/Path rtabmap_descriptor.py --PyDescriptor/Dim 2048

RTAB-Map has to be built with Python (-DWITH_PYTHON=ON), the one that selavprplusplus is installed for.
"""

import os

import numpy as np
import torch
from selavprplusplus import PlaceRecognizer

recognizer: PlaceRecognizer


def init(dim: int) -> None:
    """Loads the model. Raises ValueError if its descriptors do not have `dim` values."""
    global recognizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recognizer = PlaceRecognizer(os.environ.get("SELAVPR_MODEL", "SelaVPRplusplus_base"), device=device)
    descriptor = extract(np.zeros((480, 640, 3), np.uint8))  # the first call is slow
    if descriptor.shape[1] != dim:
        raise ValueError(f"PyDescriptor/Dim is {dim}. The model's descriptors have {descriptor.shape[1]} values.")


def extract(image: np.ndarray) -> np.ndarray:
    """An image of OpenCV, uint8 [H, W, 3] in the order BGR or [H, W] -> its descriptor, float32 [1, dim]."""
    descriptor = recognizer.describe(image, bgr=True).descriptor
    if descriptor is None:
        raise ValueError("The model gives codes only. RTAB-Map needs one with a float branch.")
    return descriptor
