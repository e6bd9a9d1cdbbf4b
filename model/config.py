"""What a model is made of: the backbones, and the choice of backbone, aggregation and branches."""

from dataclasses import asdict, dataclass, field
from math import isfinite
from types import NoneType
from typing import Any, ClassVar

from .errors import InputError

PATCH_SIZE = 14
CODE_BITS = 512  # of a binary code of a model; the default for codes that are made of descriptors
CODE_METHODS = ("itq", "random")  # that make codes of descriptors
MAX_CODE_BITS = 2048  # the search on a GPU counts up to that exactly
MAX_IMAGE_SIDE = 4480  # pixels, 320 patches: a larger size is a typing error and would fill the memory
MAX_TRIAL_PATCHES = 1024
MAX_HUB_TEXT = 4096  # characters of a repository's name or path
AGGREGATION_NAMES = ("gem", "boq", "salad")  # the keys of AGGREGATIONS, which needs torch


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Size of a vision transformer. Its last `num_adapters` blocks have an adapter (paper: 12 of 12, 16 of 24).

    gem_dim: dimension of the float descriptor with the aggregation gem. num_registers: register tokens, as in DINOv2's
    models "with registers", whose position embedding is resized in another way too.
    """

    embed_dim: int
    depth: int
    num_heads: int
    num_adapters: int
    gem_dim: int
    num_registers: int = 0


PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # number formats, and PyTorch's names
FLOAT_DTYPES = {"fp32": "<f4", "fp16": "<f2"}  # number formats of stored descriptors, and NumPy's names
DESCRIPTOR_DTYPES = {**FLOAT_DTYPES, "int8": "|i1"}
BACKBONES = {
    "dinov2-base": ViTConfig(embed_dim=768, depth=12, num_heads=12, num_adapters=12, gem_dim=2048),
    "dinov2-large": ViTConfig(embed_dim=1024, depth=24, num_heads=16, num_adapters=16, gem_dim=4096),
    "dinov2-small": ViTConfig(embed_dim=384, depth=12, num_heads=6, num_adapters=12, gem_dim=1024),
    "dinov2-base-reg": ViTConfig(embed_dim=768, depth=12, num_heads=12, num_adapters=12, gem_dim=2048, num_registers=4),
    "dinov2-large-reg": ViTConfig(
        embed_dim=1024, depth=24, num_heads=16, num_adapters=16, gem_dim=4096, num_registers=4
    ),
    "vit-tiny": ViTConfig(embed_dim=192, depth=12, num_heads=3, num_adapters=12, gem_dim=512),
    "vit-nano": ViTConfig(embed_dim=128, depth=6, num_heads=2, num_adapters=6, gem_dim=512),
    "vit-pico": ViTConfig(embed_dim=96, depth=6, num_heads=3, num_adapters=6, gem_dim=512),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to build.

    backbone: a key of BACKBONES. aggregation: one of AGGREGATION_NAMES, for the float branch. Neither `hashing` nor
    `rerank`: the float model; `hashing` alone: the hashing-only model; both: the two-branch model. Raises InputError
    for anything else.
    """

    backbone: str = "dinov2-large"
    aggregation: str = "gem"
    hashing: bool = False
    rerank: bool = False

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("backbone", self.backbone, BACKBONES),
            ("aggregation", self.aggregation, AGGREGATION_NAMES),
        ):
            if value not in choices:
                raise InputError(f"Unknown {what} {value!r}. Choose from: {', '.join(choices)}.")
        if self.rerank and not self.hashing:
            raise InputError("rerank=True needs hashing=True: re-ranking orders what a search by binary codes found.")
        if not self.has_float_branch and self.aggregation != "gem":
            raise InputError(
                f"{self.aggregation!r} applies to the float branch only; hashing-only models use GeM. Choose "
                "aggregation 'gem', or add rerank=True for the two-branch model."
            )

    @property
    def has_float_branch(self) -> bool:
        """Whether the model gives float descriptors."""
        return self.rerank or not self.hashing

    @property
    def code_bits(self) -> int:
        """Length of the model's codes; 0: it gives none."""
        return CODE_BITS if self.hashing else 0

    @property
    def kind(self) -> str:
        """The model in a word: float, hashing or two-branch."""
        return "two-branch" if self.rerank else "hashing" if self.hashing else "float"

    @property
    def flags(self) -> str:
        """The model as the scripts' flags."""
        branches = " --hashing" * self.hashing + " --rerank" * self.rerank
        return f"--backbone={self.backbone} --aggregation={self.aggregation}{branches}"

    @property
    def label(self) -> str:
        """The model in words."""
        return f"{self.backbone}, {self.kind}" + f", {self.aggregation}" * (self.kind == "float")


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Another project's model, which torch.hub loads: it gives one float descriptor an image.

    repository: OWNER/NAME or OWNER/NAME:REF on GitHub, or the absolute path of a folder. commit: that of git, or
    sha256:... of the code where git knows none. entry: the function in hubconf.py. arguments: its keywords; their
    values are text, numbers, booleans or None. batch_dependent: whether the descriptor of an image depends on the other
    images of its batch. Raises InputError for anything else.
    """

    repository: str
    commit: str
    entry: str
    arguments: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    batch_dependent: bool = False
    hashing: ClassVar[bool] = False
    rerank: ClassVar[bool] = False
    has_float_branch: ClassVar[bool] = True
    code_bits: ClassVar[int] = 0
    kind: ClassVar[str] = "float"

    def __post_init__(self) -> None:
        texts = [self.repository, self.commit, self.entry]
        if any(type(text) is not str or not text.isprintable() or not 0 < len(text) <= MAX_HUB_TEXT for text in texts):
            raise InputError("The repository, the commit and the entry of a hub model must each be a line of text.")
        if type(self.batch_dependent) is not bool:
            raise InputError("batch_dependent must be true or false.")
        check_hub_arguments(self.arguments)

    @property
    def flags(self) -> str:
        """The model as the scripts' flags."""
        arguments = "".join(f" {name}={value}" for name, value in self.arguments.items())
        return f"--hub={self.repository}:{self.entry}" + f" --hub_args{arguments}" * bool(arguments)

    @property
    def label(self) -> str:
        """The model in words."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.repository}:{self.entry}({arguments}), float"


def check_hub_arguments(arguments: dict[str, Any]) -> None:
    """Raises InputError if these are no keywords with values of HubConfig.arguments."""
    if type(arguments) is not dict or not all(type(name) is str and name.isidentifier() for name in arguments):
        raise InputError("The arguments of a hub model must have names, such as backbone=resnet50.")
    for name, value in arguments.items():
        if type(value) not in (str, int, float, bool, NoneType) or (type(value) is float and not isfinite(value)):
            raise InputError(f"The argument {name} is {str(value)[:80]}. Expected text, a number, True, False or None.")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What a model's images are resized to, and how: (H, W) in pixels, with or without antialiasing."""

    resize: tuple[int, int] = (322, 322)
    antialias: bool = True

    def __str__(self) -> str:
        return f"{self.resize[0]} x {self.resize[1]} with{'' if self.antialias else 'out'} antialiasing"


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """What a user states about a model: fields of ModelConfig, or None for those that the checkpoint decides."""

    backbone: str | None = None
    aggregation: str | None = None
    hashing: bool | None = None
    rerank: bool | None = None

    def resolve(self, checkpoint: ModelConfig | None = None) -> ModelConfig:
        """The model, where a field that is None is that of the checkpoint's model, or has ModelConfig's default.

        Where the user states something else than the checkpoint, the user's value is used, and loading the checkpoint
        fails. Raises InputError as ModelConfig does.
        """
        stated = {name: value for name, value in asdict(self).items() if value is not None}
        fields = (asdict(checkpoint) if checkpoint else {}) | stated
        if fields.get("hashing") and not fields.get("rerank") and self.aggregation is None:
            fields.pop("aggregation", None)  # hashing-only models always use GeM, whatever the checkpoint is
        return ModelConfig(**fields)


def check_code_bits(bits: int) -> None:
    """Raises InputError for a code length that is no multiple of 8, or too large."""
    if bits % 8 or not 0 < bits <= MAX_CODE_BITS:
        raise InputError(f"Codes of {bits} bits. Choose a multiple of 8, from 8 to {MAX_CODE_BITS}.")


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Number of patches (h, w) of an image. Raises InputError if a side is not a multiple of 14 pixels."""
    if height < PATCH_SIZE or width < PATCH_SIZE or height % PATCH_SIZE or width % PATCH_SIZE:
        near = [max(1, round(side / PATCH_SIZE)) * PATCH_SIZE for side in (height, width)]
        raise InputError(
            f"Image size {height} x {width} (height x width): both sides must be multiples of {PATCH_SIZE}, the "
            f"patch size. The nearest valid size is {near[0]} x {near[1]}."
        )
    return height // PATCH_SIZE, width // PATCH_SIZE


def check_image_size(config: ModelConfig | HubConfig, size: tuple[int, int]) -> None:
    """Raises InputError if the model cannot take images of size (H, W), or if a side exceeds MAX_IMAGE_SIDE.

    Which sizes a hub model takes, only a trial tells.
    """
    h, w = patch_grid(*size) if isinstance(config, ModelConfig) else size
    if not 0 < min(size) <= max(size) <= MAX_IMAGE_SIDE:
        raise InputError(
            f"Image size {size[0]} x {size[1]} (height x width): no side may exceed {MAX_IMAGE_SIDE} pixels. The "
            "memory needed grows with the number of pixels. Use smaller images."
        )
    if isinstance(config, HubConfig):
        return
    # An aggregation refuses grids that are too small. Trying a large one would take minutes.
    if config.has_float_branch and config.aggregation != "gem" and h * w <= MAX_TRIAL_PATCHES:
        import torch

        from .aggregation import AGGREGATIONS

        dim = BACKBONES[config.backbone].embed_dim
        with torch.device("cpu"), torch.no_grad():  # also where a caller builds a model without values
            AGGREGATIONS[config.aggregation](dim)(torch.zeros(1, 1 + h * w, dim), (h, w))


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What counts as a loop: one of the k nearest images of those that are at least min_gap rows before an image, if it
    is within max_distance. Of loops whose rows both differ by less than `suppress`, the nearest one stays; 0 keeps all.
    """

    max_distance: float
    min_gap: int = 50
    suppress: int = 25
    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1 or self.min_gap < 1:
            raise InputError(f"k is {self.k}, and min_gap {self.min_gap}. Expected 1 or more.")
        if self.suppress < 0:
            raise InputError(f"suppress is {self.suppress}. Expected 1 or more, or 0, which keeps every loop.")
        if not self.max_distance >= 0:  # NaN is not
            raise InputError(f"max_distance is {self.max_distance}. Expected a distance of 0 or more.")
