"""SelaVPR++ models. Needs only torch and the standard library.

Imports within this package are relative: hubconf.py loads it under a name of its own, and `pip install` calls it
selavprplusplus.
"""

from .aggregation import AGGREGATIONS
from .config import BACKBONES, ModelChoice, ModelConfig
from .errors import InputError
from .inference import InferenceModel, prepare_for_inference
from .network import CODE_BITS, GeoLocalizationNet, HashingOutput, TwoBranchOutput
from .weights import load_any_model

__all__ = [
    "AGGREGATIONS",
    "BACKBONES",
    "CODE_BITS",
    "GeoLocalizationNet",
    "HashingOutput",
    "InferenceModel",
    "InputError",
    "ModelChoice",
    "ModelConfig",
    "TwoBranchOutput",
    "load_any_model",
    "prepare_for_inference",
]
