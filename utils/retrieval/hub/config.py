"""The hub model that a user states."""

import ast
import os
import re
from dataclasses import dataclass, replace
from typing import Any

from model.config import HubConfig, check_hub_arguments
from model.errors import InputError
from utils.runtime.flags import fixed, flag, switch

ON_GITHUB = re.compile(r"(?P<owner>[A-Za-z0-9][\w-]*)/(?P<name>[\w.-]+)(:(?P<ref>[\w./-]+))?")
EXPECTED = "Expected REPO:ENTRY, where REPO is OWNER/NAME or OWNER/NAME:REF on GitHub, or a local folder"
TORCH_HUB_ARGUMENTS = {"repo_or_dir", "model", "source", "trust_repo", "force_reload", "verbose", "skip_validation"}
UNTRUSTED = (
    "{} runs the code of {} on this machine, with your rights. Add --trust_repo if you trust its authors; read its "
    "hubconf.py first."
)


@dataclass(frozen=True, kw_only=True)
class HubChoice:
    """A hub model: REPO:ENTRY, or None for none, and its arguments, as KEY=VALUE each.

    trust_repo: whether its code may run. allow_batch_dependence: whether the descriptor of an image may depend on the
    others of its batch. commit: that of an index, which is loaded in place of the newest. Raises InputError for a name
    that is none, for code that is not trusted, and for flags that do not go together.
    """

    name: str | None = flag(
        "in place of --model, another project's model: the function ENTRY in hubconf.py of REPO, which is a folder, or "
        "OWNER/NAME or OWNER/NAME:REF on GitHub; see docs/models.md",
        name="hub",
        default=None,
        metavar="REPO:ENTRY",
    )
    arguments: tuple[str, ...] = flag(
        "keywords of ENTRY, such as backbone=ResNet50 fc_output_dim=512",
        name="hub_args",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
    )
    trust_repo: bool = switch("run the code of that project, with your rights: only if you trust its authors")
    allow_batch_dependence: bool = switch(
        "take a hub model whose descriptor of an image depends on the other images of its batch"
    )
    commit: str | None = fixed(None)

    def __post_init__(self) -> None:
        if self.name is None:
            for name, value in {
                "hub_args": self.arguments,
                "allow_batch_dependence": self.allow_batch_dependence,
            }.items():
                if value:
                    raise InputError(f"--{name} applies to the model of --hub REPO:ENTRY; give that too.")
            return
        if not self.repository or not self.entry.isidentifier():
            raise InputError(f"--hub {self.name}: {EXPECTED}.")
        if self.is_local and not os.path.isfile(os.path.join(self.repository, "hubconf.py")):
            problem = "has no hubconf.py" if os.path.isdir(self.repository) else "does not exist"
            raise InputError(f"--hub {self.name}: the folder {self.repository} {problem}. {EXPECTED} with one.")
        check_hub_arguments(self.keywords)
        if of_torch_hub := TORCH_HUB_ARGUMENTS & self.keywords.keys():
            raise InputError(
                f"--hub_args: {', '.join(sorted(of_torch_hub))} would be taken by torch.hub itself, and never reach "
                f"{self.entry}. Write an entry of your own, in a folder, that gives it."
            )
        if not self.trust_repo:
            raise InputError(UNTRUSTED.format("--hub", self.repository))

    def __str__(self) -> str:
        return str(self.name)

    def of_index(self, config: HubConfig, index: object) -> "HubChoice":
        """The model of an index, in the repository that the user states, or that of the index.

        Raises InputError, which names the index, if the user does not trust its code.
        """
        if not self.trust_repo:
            begin = f"The index {index} was built with {config.flags}. Describing images as it does"
            raise InputError(UNTRUSTED.format(begin, config.repository))
        try:
            return replace(
                self,
                name=self.name or f"{config.repository}:{config.entry}",
                arguments=tuple(f"{name}={value!r}" for name, value in config.arguments.items()),
                allow_batch_dependence=config.batch_dependent,
                commit=config.commit,
            )
        except InputError as error:
            raise InputError(f"The model of the index {index} is not there. {error}") from None

    @property
    def repository(self) -> str:
        """OWNER/NAME or OWNER/NAME:REF, or the absolute path of a folder."""
        repository = (self.name or "").rpartition(":")[0]
        folder = os.path.expanduser(repository)
        is_folder = os.path.isdir(folder) or not ON_GITHUB.fullmatch(repository)
        return os.path.abspath(folder) if repository and is_folder else repository

    @property
    def entry(self) -> str:
        """The function in hubconf.py."""
        return (self.name or "").rpartition(":")[2]

    @property
    def is_local(self) -> bool:
        """Whether the repository is a folder."""
        return os.path.isabs(self.repository)

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments: numbers, True, False and None as in Python, other values as text.

        Raises InputError for one that is not KEY=VALUE, or that is given twice.
        """
        found: dict[str, Any] = {}
        for argument in self.arguments:
            name, equals, text = argument.partition("=")
            if not equals or name in found:
                problem = "is given twice" if equals else "is not KEY=VALUE"
                raise InputError(f"--hub_args: {argument} {problem}. Expected such as backbone=ResNet50.")
            try:
                found[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                found[name] = text
        return found
