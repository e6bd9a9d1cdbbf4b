"""The code of a hub model: where it is, which commit it is, and its network."""

import ast
import contextlib
import hashlib
import logging
import os
import re
import subprocess
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from torch import nn

from model import InputError
from utils.retrieval.hub.config import ON_GITHUB, HubChoice
from utils.retrieval.hub.isolation import ForeignModules

GITHUB_API = "https://api.github.com"
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 30  # to wait for GitHub
HUB_CONF = "hubconf.py"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository: its name, which HubConfig.repository has; folder, where its code is, or will be once torch.hub has
    fetched it; commit, as HubConfig has it. is_stated: whether the user or an index names a commit, branch or tag.
    """

    name: str
    folder: Path
    commit: str
    is_local: bool
    is_stated: bool = False

    def load(self, choice: HubChoice, modules: ForeignModules) -> nn.Module:
        """The network that an entry of the repository makes, as it makes it. Raises InputError if it makes none."""
        options: dict[str, Any] = {"repo_or_dir": str(self.folder), "source": "local"}
        if not self.is_local:
            # What somebody names may be a stranger's commit, of a fork: torch.hub asks whether a branch or tag has it.
            where = f"{self.name.partition(':')[0]}:{self.commit}"
            options = {"repo_or_dir": where, "source": "github", "skip_validation": not self.is_stated}
        with foreign_code(self.folder, f"{choice.entry} of {self.name}"), modules.importable():
            network = torch.hub.load(**options, model=choice.entry, trust_repo=True, verbose=False, **choice.keywords)
        if not isinstance(network, nn.Module):
            raise InputError(
                f"{choice.entry} of {self.name} gives a {type(network).__name__}. Expected a torch.nn.Module. "
                f"Entries: {', '.join(entries_of(self.folder))}."
            )
        return network


def find_repository(choice: HubChoice) -> Repository:
    """The repository of a hub model, without running its code.

    Raises InputError if GitHub does not have it, or cannot be reached and torch.hub holds no copy.
    """
    if choice.is_local:
        folder = Path(choice.repository)
        return Repository(name=choice.repository, folder=folder, commit=commit_of(folder), is_local=True)
    match = ON_GITHUB.fullmatch(choice.repository)
    assert match, "HubChoice has checked it"
    known = next((text for text in (choice.commit, match["ref"]) if text and COMMIT.fullmatch(text)), None)
    cache = f"{match['owner']}_{match['name']}_"
    commit = known or _newest_commit(f"{match['owner']}/{match['name']}", match["ref"] or "HEAD", cache)
    return Repository(
        name=choice.repository,
        folder=Path(torch.hub.get_dir()) / f"{cache}{commit}",  # as torch.hub calls it
        commit=commit,
        is_local=False,
        is_stated=bool(choice.commit or match["ref"]),
    )


def commit_of(folder: Path) -> str:
    """The commit of a folder that git keeps and whose code is unchanged; otherwise sha256: and the SHA-256 of its code.

    Weights are not a part of it: many repositories download them into their folder.
    """
    with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
        top, commit = _git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).samefile(folder) and not _git(folder, "status", "--porcelain", "--", "*.py"):
            return commit
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts) and path.is_file():
            digest.update(f"{relative.as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _newest_commit(repository: str, ref: str, cache: str) -> str:
    """The commit of a branch or tag, as GitHub says. If it does not: the one that torch.hub fetched last, with a
    warning.
    """
    headers = {"Accept": "application/vnd.github.sha"}
    if token := os.environ.get("GITHUB_TOKEN"):
        headers["Authorization"] = f"token {token}"
    try:
        with urlopen(
            Request(f"{GITHUB_API}/repos/{repository}/commits/{ref}", headers=headers), timeout=SECONDS
        ) as answer:
            commit = answer.read(100).decode("ascii", "replace").strip()
        if not COMMIT.fullmatch(commit):
            raise URLError(f"GitHub answers {commit[:80]!r} in place of a commit")
        return commit
    except HTTPError as error:
        if error.code in (404, 422):
            raise InputError(
                f"GitHub has no repository {repository}, or none that everybody may read, or no branch, tag or commit "
                f"{ref} in it. Check the name in --hub."
            ) from None
        problem: OSError = error
    except OSError as error:  # URLError is one
        problem = error
    folder = Path(torch.hub.get_dir())
    fetched = [path for path in folder.glob(f"{cache}*") if COMMIT.fullmatch(path.name.removeprefix(cache))]
    if not fetched or ref != "HEAD":
        raise InputError(
            f"GitHub cannot be asked for {repository} ({problem}), and {folder} holds no copy of what is asked for. "
            "Try again with a connection; or clone the repository elsewhere, and give its folder: --hub FOLDER:ENTRY. "
            "GITHUB_TOKEN in the environment raises GitHub's limits."
        ) from None
    latest = max(fetched, key=os.path.getmtime)
    logging.warning("GitHub cannot be asked for %s (%s): taking the copy in %s.", repository, problem, latest)
    return latest.name.removeprefix(cache)


def entries_of(folder: Path) -> list[str]:
    """The names that the hubconf.py of a repository defines or imports."""
    names = []
    for node in ast.parse((folder / HUB_CONF).read_bytes()).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return [name for name in names if not name.startswith("_")]


@contextlib.contextmanager
def foreign_code(folder: Path, what: str) -> Iterator[None]:
    """Raises InputError, which says what a user can do, for what the code of the repository in a folder raises."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, InputError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: {_explain(error, folder)}") from error


def _explain(error: BaseException, folder: Path) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
    if isinstance(error, ModuleNotFoundError) or "Missing dependencies" in text:
        return f"a package is missing that it needs ({text}). Install it into this environment."
    if "Cannot find callable" in text:
        return f"there is no such entry. Entries: {', '.join(entries_of(folder))}."
    offline = (URLError, ConnectionError, TimeoutError)
    if isinstance(error, offline) or isinstance(error.__context__, offline):  # torch.hub may fail as it handles one
        return (
            f"it could not download its code or weights ({text}). Try again with a connection, or copy what it "
            f"downloads to {torch.hub.get_dir()} from a machine that has one."
        )
    if "in https://github.com/" in text:  # of torch.hub's validation
        return (
            f"the commit is no longer the last one of a branch or tag ({text}). Clone the repository, check the commit "
            "out, and give the folder: --hub FOLDER:ENTRY."
        )
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(folder))]
    where = f" in {os.path.relpath(frames[-1].filename, folder)}, line {frames[-1].lineno}" if frames else ""
    return f"its code failed{where} ({text})."
