"""Keeps the modules of a hub model's repository apart from those of this project.

Such repositories have modules named `model`, `utils` or `datasets`, as this project has, and import them when they are
loaded, or not before the first forward pass. Python has one table of modules for all, sys.modules, so that whoever
imports `utils` second would get the wrong one. Whatever runs a repository's code therefore does so in
`ForeignModules.importable`, which exchanges the two sets of modules before and after.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[3]
OURS = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))}


class ForeignModules:
    """The modules of a repository, which no import finds but those of its own code.

    folder: of the repository. Modules of other repositories that it loads through torch.hub belong to it too; packages
    that are installed stay common to all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[str, ModuleType] = {}

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """While this is entered, imports find the repository's modules and not this project's; afterwards sys.modules,
        sys.path and the working directory are what they were before. What is printed goes to standard error: standard
        output belongs to the script's results.

        This project's code must not import anything meanwhile, in no thread; what it has imported before works.
        """
        path, working_directory = sys.path[:], os.getcwd()
        ours = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_named_as_ours(name)}
        before = set(sys.modules)
        sys.modules.update(self._modules)
        sys.path[:] = [str(self.folder), *(entry for entry in path if Path(entry).resolve() != ROOT)]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            # All are looked at before one is taken out: the path of a namespace package is asked of its parent.
            theirs = [name for name in sys.modules.keys() - before if self._is_theirs(name)]
            self._modules = {name: sys.modules.pop(name) for name in theirs}
            sys.modules.update(ours)
            sys.path[:] = path
            os.chdir(working_directory)

    def _is_theirs(self, name: str) -> bool:
        module = getattr(sys.modules[name], "__dict__", {})  # of None, which forbids an import, too
        files = [module.get("__file__"), *(module.get("__path__") or ())]
        roots = [os.path.realpath(root) + os.sep for root in (self.folder, torch.hub.get_dir())]
        return _is_named_as_ours(name) or any(
            os.path.realpath(file).startswith(root) for file in files if file for root in roots
        )


def _is_named_as_ours(module: str) -> bool:
    return module.partition(".")[0] in OURS
