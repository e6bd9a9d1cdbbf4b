"""What an ONNX file of this project states in its metadata."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from model import ImageConfig, InputError, ModelConfig
from model.config import check_image_size
from model.images import IMAGENET_MEAN, IMAGENET_STD
from model.versions import VERSION

PROJECT = "SelaVPR++"
INPUTS = {  # {whether the file itself normalises its images: what these are}
    True: "RGB in [0, 1]",
    False: "RGB in [0, 1], minus mean {}, divided by std {}".format(
        *(" ".join(map(str, values)) for values in (IMAGENET_MEAN, IMAGENET_STD))
    ),
}
INTERPOLATIONS = {True: "bilinear, antialiased", False: "bilinear, not antialiased"}  # {antialias: text}


@dataclass(frozen=True, kw_only=True)
class OnnxMetadata:
    """The model of an ONNX file; "fp32" or "fp16", in which it computes; the size of its images, and how they are
    resized; whether the file itself normalises them; the fingerprint of the model from which it was exported, or None
    for a file that does not state it.
    """

    model: ModelConfig
    precision: str
    images: ImageConfig
    normalize: bool
    weights_sha256: str | None

    @property
    def outputs(self) -> list[str]:
        """The names of the file's outputs."""
        return ["code", "logits"] * self.model.hashing + ["descriptor"] * self.model.has_float_branch

    def to_properties(self) -> dict[str, str]:
        """What `parse` reads."""
        return {
            "project": f"{PROJECT} {VERSION}",
            "model": self.model.flags,
            "precision": self.precision,
            "resize": " ".join(map(str, self.images.resize)),  # height, width
            "interpolation": INTERPOLATIONS[self.images.antialias],
            "input": INPUTS[self.normalize],
            "outputs": " ".join(self.outputs),
        } | ({"weights_sha256": self.weights_sha256} if self.weights_sha256 else {})

    @staticmethod
    def parse(properties: Mapping[str, str]) -> "OnnxMetadata":
        """Raises InputError for the metadata of another project, and for values that no export of this one has."""
        if not properties.get("project", "").startswith(f"{PROJECT} "):
            raise InputError("it was not exported by this project")
        try:
            images = ImageConfig(
                resize=_size(properties["resize"]), antialias=_key(INTERPOLATIONS, properties["interpolation"])
            )
            found = OnnxMetadata(
                model=_model(properties["model"]),
                precision=properties["precision"],
                images=images,
                normalize=_key(INPUTS, properties["input"]),
                weights_sha256=properties.get("weights_sha256"),
            )
            check_image_size(found.model, images.resize)
        except (KeyError, ValueError, InputError) as error:
            raise InputError(f"its metadata is damaged, or of a later version: {str(error)[:200]}") from error
        return found


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split())
    return height, width


def _key(texts: Mapping[bool, str], text: str) -> bool:
    """The key of a text. Raises ValueError, which names it, if it is none of these."""
    for key, known in texts.items():
        if text == known:
            return key
    raise ValueError(f"{text!r} is none of {', '.join(map(repr, texts.values()))}")


def _model(flags: str) -> ModelConfig:
    """The model whose ModelConfig.flags these are. Raises ValueError or InputError if there is none."""
    match = re.fullmatch(r"--backbone=(\S+) --aggregation=(\S+)( --hashing)?( --rerank)?", flags)
    if not match:
        raise ValueError(f"the model {flags!r}")
    backbone, aggregation, hashing, rerank = match.groups()
    return ModelConfig(backbone=backbone, aggregation=aggregation, hashing=bool(hashing), rerank=bool(rerank))
