"""The plan of the house: imports point downwards only."""

import ast
from pathlib import Path

import pytest
from helpers.processes import ROOT

SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
ROOMS = ("model", "datasets", "utils", "benchmarks", "examples")
GROUND = {"model", "datasets", "utils.runtime"}
ALLOWED = {  # {room: what it may import of the project beside itself}; the longest name of a room counts
    "model": set(),
    "utils.runtime": {"model.errors", "model.files", "model.saving"},
    "datasets": {"model", "utils.runtime"},
    "datasets.places.__main__": {*GROUND, "utils.retrieval"},  # a command, as the scripts are
    "utils": {*GROUND, "utils"},
    "utils.engines": GROUND,
    "utils.retrieval": {*GROUND, "utils.engines", "utils.models"},
    "utils.training": {*GROUND, "utils.models", "utils.retrieval"},
    "utils.cli": {*GROUND, "utils.models", "utils.retrieval", "utils.training", "utils.service.config"},
    "utils.service": {*GROUND, "utils.retrieval"},
    "utils.integrations": {*GROUND, "utils.engines", "utils.models", "utils.retrieval"},
    "scripts": {*GROUND, *SCRIPTS, "utils.models", "utils.cli", "utils.retrieval", "utils.training"},
    "export": {*GROUND, "utils.cli", "utils.retrieval", "utils.integrations"},
    "serve": {*GROUND, "utils.cli", "utils.retrieval", "utils.service"},
    "hubconf": {"model"},
    "benchmarks": {*GROUND, *SCRIPTS, "utils", "benchmarks"},
    "examples": {*GROUND, *SCRIPTS, "utils", "examples"},
}


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str:
    rooms = [room for room in ALLOWED if is_in(module, room)]
    return max(rooms, key=len, default="scripts")


def imports(path: Path, module: str) -> list[str]:
    """The modules that a file imports, inside functions too; of a package, the names that are imported from it."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            is_package = (ROOT / source.replace(".", "/")).is_dir()
            found += [f"{source}.{alias.name}" if is_package else source for alias in node.names]
    return found


def violations(path: Path) -> set[str]:
    """The imports of a file that point upwards."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    room = room_of(module)
    allowed = {room, *ALLOWED[room]}
    ours = [name for name in imports(path, module) if name.split(".")[0] in {*ROOMS, *SCRIPTS}]
    return {f"{module} imports {name}" for name in ours if not any(is_in(name, other) for other in allowed)}


def product() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]


def test_imports_point_downwards_only():
    assert set().union(*map(violations, product())) == set()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model/network.py", "from datasets.images import load_image"),
        ("model/network.py", "from ..utils.runtime import memory"),
        ("utils/runtime/signals.py", "from model.weights import load_model"),
        ("utils/runtime/signals.py", "import datasets.layouts"),
        ("datasets/folder.py", "from utils import retrieval"),
        ("datasets/folder.py", "def read():\n    from utils.cli.search import SearchArguments"),
        ("utils/retrieval/search.py", "from utils.training.step import TrainingStep"),
        ("utils/training/step.py", "from utils.integrations import hloc"),
        ("utils/runtime/parser.py", "import eval_rerank"),
        ("search.py", "from utils.integrations.shared import common_folder"),
        ("search.py", "from utils.service.app import create_app"),
        ("utils/service/library.py", "from utils.cli.serve import ServeArguments"),
        ("hubconf.py", "from datasets.images import load_image"),
    ],
)
def test_an_arrow_upwards_is_found(file, line, monkeypatch):
    before = violations(ROOT / file)
    text = (ROOT / file).read_text()
    monkeypatch.setattr(Path, "read_text", lambda path: f"{text}\n{line}\n")
    assert len(violations(ROOT / file) - before) == 1
