"""The model of a command line: a published one, or a file."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model import BACKBONES, InputError, ModelChoice, ModelConfig
from model.config import AGGREGATION_NAMES, check_image_size
from model.zoo import DEFAULT_MODEL, MODEL_ZOO, PublishedModel, find_model, find_published
from utils.retrieval.hub.config import HubChoice
from utils.runtime.flags import fixed, flag, part, switch

KINDS = {"float": (False, False), "hashing": (True, False), "two-branch": (True, True)}  # hashing, rerank
SCRIPTS = {"float": "{}.py", "hashing": "{}_hashing.py", "two-branch": "{}_rerank.py"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The model that a user states; None: the checkpoint decides. kind: that of the script, or None for any.

    Raises InputError, which names the right script, for flags that belong to another one.
    """

    backbone: str | None = flag(
        f"vision transformer (default: that of the checkpoint, otherwise {ModelConfig.backbone})",
        choices=tuple(BACKBONES),
        default=None,
    )
    aggregation: str | None = flag(
        f"aggregation of the float descriptor (default: that of the checkpoint, otherwise {ModelConfig.aggregation})",
        choices=AGGREGATION_NAMES,
        default=None,
    )
    hashing: bool = switch("a model with binary codes; implied by the hashing and rerank scripts")
    rerank: bool = switch("with --hashing: a two-branch model; implied likewise")
    kind: str | None = fixed(None)

    def __post_init__(self) -> None:
        hashing, rerank = KINDS[self.kind] if self.kind else (True, True)
        if (self.hashing and not hashing) or (self.rerank and not rerank):
            given = " ".join(["--hashing"] * self.hashing + ["--rerank"] * self.rerank)
            raise InputError(f"{given} {_names_another_script('two-branch' if self.rerank else 'hashing')}")
        choice = self.choice
        if choice.hashing and not choice.rerank and self.aggregation not in (None, "gem"):
            raise InputError(
                f"--aggregation {self.aggregation} applies to float descriptors. Hashing-only models have none, and "
                "use gem. Leave it out."
            )

    @property
    def choice(self) -> ModelChoice:
        """The model, as far as the script and the flags state it."""
        if self.kind:
            hashing, rerank = KINDS[self.kind]
            return ModelChoice(backbone=self.backbone, aggregation=self.aggregation, hashing=hashing, rerank=rerank)
        branches = {"hashing": self.hashing, "rerank": self.rerank} if self.hashing or self.rerank else {}
        return ModelChoice(backbone=self.backbone, aggregation=self.aggregation, **branches)


def model_name_flag(text: str, **options: Any) -> Any:
    """A field with the flag --model, which names a model as find_model takes it."""
    return flag(text, name="model", default=None, metavar="NAME_OR_FILE", **options)


HUB = {"hub": part("model", default=HubChoice())}  # what a script changes to take hub models
MODEL_HELP = f"{', '.join(entry.name for entry in MODEL_ZOO)}, or the file of a model: a checkpoint or safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Architecture):
    """A model with its weights: `name`, the file `resume`, or the published model of the stated architecture.

    required: whether the script has no default. hub: another project's model in place of these, in scripts that have
    the flags of HUB. Raises InputError for several of these, for none if one is required,
    for a name that does not exist, and for a published model of another architecture than the stated one.
    """

    name: str | None = model_name_flag(MODEL_HELP)
    resume: Path | None = flag("the model's file; the reference's flag for it", default=None)
    pretrained: bool = switch("the published model that --backbone, --aggregation, --hashing and --rerank state")
    required: bool = fixed(True)
    hub: HubChoice = fixed(HubChoice())

    def __post_init__(self) -> None:
        if self.hub.name:
            if self._is_of_this_project:
                raise InputError("--hub names the model. Leave other flags of the model out, such as --model.")
            return
        given = sum(map(bool, (self.name, self.resume, self.pretrained)))
        if given > 1 or (self.required and not given):
            raise InputError(
                f"Give one model, with --model NAME_OR_FILE: {MODEL_HELP}. --resume FILE and --pretrained are accepted "
                "in its place."
            )
        super().__post_init__()
        source = self.source
        if isinstance(source, Path):
            return
        if self.kind not in (None, source.config.kind):
            raise InputError(f"--model {source.name} {_names_another_script(source.config.kind)}")
        if super().choice.resolve(source.config) != source.config:
            raise InputError(
                f"--model {source.name} is {source.config.flags}, and other flags state another model. Leave them out."
            )

    @property
    def is_stated(self) -> bool:
        """Whether the user names a model, or a part of its architecture."""
        return bool(self.hub.name) or self._is_of_this_project

    @property
    def _is_of_this_project(self) -> bool:
        return any(
            (self.name, self.resume, self.pretrained, self.backbone, self.aggregation, self.hashing, self.rerank)
        )

    @property
    def choice(self) -> ModelChoice:
        """The model, as far as the script, the flags and the name of a published model state it."""
        return super().choice if isinstance(self.source, Path) else ModelChoice(**asdict(self.source.config))

    def check_image_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if the model, as far as it is known by now, cannot take images of size (H, W)."""
        if self.hub.name:
            return  # a trial tells
        try:
            check_image_size(self.choice.resolve(), size)
        except InputError as error:
            raise InputError(f"--resize: {error}") from None

    @property
    def source(self) -> PublishedModel | Path:
        """The published model, or the file."""
        stated = super().choice
        if self.name or self.resume or stated == ModelChoice():
            return self.resume or find_model(self.name or DEFAULT_MODEL)
        return find_published(stated.resolve())

    @property
    def any_source(self) -> PublishedModel | Path | HubChoice:
        """The same, or the hub model."""
        return self.hub if self.hub.name else self.source

    @property
    def file(self) -> Path | None:
        """The file; None for a published model, and for a hub model."""
        return self.any_source if isinstance(self.any_source, Path) else None

    @property
    def label(self) -> str:
        """The published model's name, the file's path, or REPO:ENTRY."""
        source = self.any_source
        return source.name if isinstance(source, PublishedModel) else str(source)


def _names_another_script(kind: str) -> str:
    """The second half of the error for a model of a kind that another script takes."""
    script = Path(sys.argv[0]).name
    stem = script.split("_")[0].removesuffix(".py")
    return f"does not apply to {script}; use {SCRIPTS[kind].format(stem)}."
