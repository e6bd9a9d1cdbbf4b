"""The model of a command line: a checkpoint, or the published weights."""

import sys
from dataclasses import dataclass
from pathlib import Path

from model import BACKBONES, InputError, ModelChoice, ModelConfig
from model.config import AGGREGATION_NAMES
from utils.runtime.flags import fixed, flag, switch

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
            script = Path(sys.argv[0]).name
            stem = script.split("_")[0].removesuffix(".py")
            right = SCRIPTS["two-branch" if self.rerank else "hashing"].format(stem)
            raise InputError(f"{given} does not apply to {script}; use {right}.")
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


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Architecture):
    """A model with its weights: resume, the file, or None for the published ones.

    Raises InputError for both or none, and for published weights of a model that does not exist.
    """

    resume: Path | None = flag("checkpoint: ours, published, or bare weights; the model is recognised", default=None)
    pretrained: bool = switch("the published checkpoint of the model that these flags state, downloaded once")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.resume) == self.pretrained:
            raise InputError("Give either a checkpoint with --resume FILE, or --pretrained for the published weights.")
        if self.pretrained:
            self.choice.resolve()
