"""The rooms of the tests: independent of each other, and no obstacle to imports of the project's packages."""

import importlib
import re
from pathlib import Path

import pytest
from helpers.processes import ROOT, run_script


def test_no_test_module_imports_another():
    importing = re.compile(r"^ *(?:from|import) +test_", re.MULTILINE)
    assert [path for path in (ROOT / "tests").rglob("*.py") if importing.search(path.read_text())] == []


@pytest.mark.parametrize("name", ["model", "datasets", "benchmarks"])
def test_a_folder_of_tests_does_not_hide_the_package_of_the_same_name(name):
    assert (ROOT / "tests" / name).is_dir()
    assert Path(importlib.import_module(name).__file__) == ROOT / name / "__init__.py"


def test_a_forked_script_does_not_see_the_tests(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print(*sys.path, sep='\\n')")
    result = run_script(tmp_path / "script.py", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert str(ROOT) in result.stdout.splitlines() and str(ROOT / "tests") not in result.stdout
