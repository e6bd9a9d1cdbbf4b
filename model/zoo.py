"""The published weights as data: which exist, where they can be downloaded, and their checksums; names of models."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .config import ModelConfig
from .errors import InputError

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_{}/dinov2_{}_pretrain.pth"
MIRRORS = (
    "https://github.com/Lu-Feng/SelaVPRplusplus/releases/download/SelaVPR%2B%2B/{}",
    "https://huggingface.co/fenglu96/SelaVPRplusplus/resolve/main/{}",
)


class Foundation(NamedTuple):
    """DINOv2's weights of a backbone, by Meta's name for them. sha256: of the file, verified where it is given."""

    name: str
    sha256: str | None = None

    @property
    def url(self) -> str:
        """The download address."""
        return DINOV2_URL.format(self.name.partition("_")[0], self.name)


FOUNDATIONS = {
    "dinov2-small": Foundation("vits14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    "dinov2-base": Foundation("vitb14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    "dinov2-large": Foundation("vitl14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    "dinov2-base-reg": Foundation("vitb14_reg4"),
    "dinov2-large-reg": Foundation("vitl14_reg4"),
}


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A checkpoint of the authors. sha256: of the file, verified where it is given."""

    config: ModelConfig
    file: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The name of its function in hubconf.py."""
        return self.file.removesuffix(".pth")

    @property
    def urls(self) -> list[str]:
        """Download addresses, in order of preference."""
        return [mirror.format(self.file) for mirror in MIRRORS]


MODEL_ZOO = [
    PublishedModel(
        config=ModelConfig(backbone="dinov2-base"),
        file="SelaVPRplusplus_base.pth",
        sha256="b048490dbd1c27dee67fce6faaec7bec267d19a044c85877af94b8588e596a62",
    ),
    PublishedModel(
        config=ModelConfig(backbone="dinov2-large"),
        file="SelaVPRplusplus_large.pth",
        sha256="b4b97320e103686872cad73f331661c06a473500ca3b33fcb18cf7f93a57a633",
    ),
    PublishedModel(
        config=ModelConfig(backbone="dinov2-base", hashing=True, rerank=True),
        file="SelaVPRplusplus_base_rerank.pth",
        sha256="da31138202b9a746916588ecd97499a56bae304e61444a50d6f34761377cdcbf",
    ),
    PublishedModel(
        config=ModelConfig(backbone="dinov2-large", hashing=True, rerank=True),
        file="SelaVPRplusplus_large_rerank.pth",
        sha256="b055346fe0ac14e48689502da2c60113c9dd4018c4fb7a10fbd48d1662e69f8a",
    ),
]

DEFAULT_MODEL = "SelaVPRplusplus_base_rerank"


def find_model(name: str) -> PublishedModel | Path:
    """The model that a user names: a published one, or a file.

    Only a word without folder and suffix is looked up among the files, since the ranks of a run need not see them all.
    Raises InputError, which names the published models, if such a word is neither.
    """
    published = {entry.name: entry for entry in MODEL_ZOO}
    if name in published:
        return published[name]
    path = Path(name)
    if path.suffix or len(path.parts) > 1 or (name and path.exists()):
        return path
    close = difflib.get_close_matches(name, published, n=1)
    raise InputError(
        f"{name!r} is neither a published model nor a file.{f' Did you mean {close[0]}?' if close else ''} Give one of "
        f"{', '.join(published)}, or a checkpoint (.pth, .safetensors)."
    )


def find_published(config: ModelConfig) -> PublishedModel:
    """The published checkpoint of a model. Raises InputError, which lists the published ones, if there is none."""
    for entry in MODEL_ZOO:
        if entry.config == config:
            return entry
    published = "; ".join(f"{c.backbone} {c.aggregation} {c.kind}" for c in (entry.config for entry in MODEL_ZOO))
    raise InputError(
        f"No weights are published for {config.backbone} {config.aggregation} {config.kind}. Published: {published}."
    )
