"""The published weights as data: which models exist, and where they can be downloaded.

Used by the hub entry, --pretrained and --foundation_model_path.
"""

from dataclasses import dataclass

from model.config import ModelConfig
from model.errors import InputError

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_{0}/dinov2_{0}_pretrain.pth"
DINOV2_NAMES = {"dinov2-small": "vits14", "dinov2-base": "vitb14", "dinov2-large": "vitl14"}
DINOV2_SHA256: dict[str, str] = {}  # by backbone, of the file; verified where it is given
MIRRORS = (
    "https://github.com/Lu-Feng/SelaVPRplusplus/releases/download/SelaVPR%2B%2B/{}",
    "https://huggingface.co/fenglu96/SelaVPRplusplus/resolve/main/{}",
)


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A checkpoint of the authors: model, file name, millions of parameters, dimension of the descriptor.

    sha256: of the file; verified where it is given.
    """

    config: ModelConfig
    file: str
    parameters_m: float
    descriptor_dim: int
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
        parameters_m=97.9,
        descriptor_dim=2048,
    ),
    PublishedModel(
        config=ModelConfig(backbone="dinov2-large"),
        file="SelaVPRplusplus_large.pth",
        parameters_m=331.3,
        descriptor_dim=4096,
    ),
    PublishedModel(
        config=ModelConfig(backbone="dinov2-base", hashing=True, rerank=True),
        file="SelaVPRplusplus_base_rerank.pth",
        parameters_m=108.0,
        descriptor_dim=2048,
    ),
    PublishedModel(
        config=ModelConfig(backbone="dinov2-large", hashing=True, rerank=True),
        file="SelaVPRplusplus_large_rerank.pth",
        parameters_m=354.5,
        descriptor_dim=4096,
    ),
]


def find_published(config: ModelConfig) -> PublishedModel:
    """The published checkpoint of a model. Raises InputError, which lists the published ones, if there is none."""
    for entry in MODEL_ZOO:
        if entry.config == config:
            return entry
    published = "; ".join(f"{c.backbone} {c.aggregation} {c.kind}" for c in (entry.config for entry in MODEL_ZOO))
    raise InputError(
        f"No weights are published for {config.backbone} {config.aggregation} {config.kind}. Published: {published}."
    )
