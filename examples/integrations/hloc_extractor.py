"""SelaVPR++ as a global feature of hloc. Copy this file to hloc/extractors/selavpr.py.

    from hloc import extract_features, pairs_from_retrieval

    conf = {"output": "global-feats-selavpr", "model": {"name": "selavpr"}, "preprocessing": {}}
    features = extract_features.main(conf, images, outputs)
    pairs_from_retrieval.main(features, outputs / "pairs.txt", num_matched=20)

Leave `preprocessing` empty: the recogniser resizes images itself, to the size that its model was trained for.
"""

import torch
from hloc.utils.base_model import BaseModel
from selavprplusplus import InputError, PlaceRecognizer


class SelaVPR(BaseModel):
    """The float descriptor of a float or two-branch model: a published name, or a checkpoint file."""

    default_conf = {"model": "SelaVPRplusplus_base", "precision": "fp32"}
    required_inputs = ["image"]

    def _init(self, conf: dict) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"  # as hloc chooses it
        self.recognizer = PlaceRecognizer(conf["model"], device=device, precision=conf["precision"])

    def _forward(self, data: dict) -> dict:
        """image: float32 [B, 3, H, W], RGB in [0, 1]; global_descriptor: float32 [B, dim], each of length 1."""
        images = (255 * data["image"]).round().to(torch.uint8)  # the 8 bits that hloc read
        descriptor = self.recognizer.describe(list(images)).descriptor
        if descriptor is None:
            raise InputError(f"The model {self.conf['model']} gives codes only. hloc needs one with a float branch.")
        return {"global_descriptor": torch.from_numpy(descriptor)}
