"""Old versions of PyTorch, and systems without Unix's modules and signals."""

import pytest
import torch
from helpers.evaluations import SCRIPTS
from helpers.evaluations import flags_for as evaluation_flags
from helpers.processes import ROOT, run_python
from helpers.trainings import flags_for as training_flags

from model import InputError
from model.versions import check_torch_version

pytestmark = pytest.mark.slow

OLD_TORCH = """
import runpy, torch
torch.__version__ = type(torch.__version__)("2.5.1+cu124")
torch.load = None  # is not reached
"""

# As on Windows: no fcntl, no resource, few signals; worker processes start afresh, as on macOS.
WINDOWS = """
import multiprocessing, os, runpy, signal, types
sys.modules.update(fcntl=None, resource=None, pwd=None, grp=None)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT"):
    delattr(signal, name)
import torch.utils.data._utils.signal_handling as signal_handling
signal_handling.IS_WINDOWS = True
sys.modules["msvcrt"] = types.SimpleNamespace(locking=lambda *_: None, LK_NBLCK=2)  # once subprocess is loaded
del os.sysconf, signal.SIGCHLD
sys.argv = sys.argv[1:]
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("version", ["1.13.1", "2.3.1", "2.5.1+cu124"])
def test_a_pytorch_that_is_too_old(version):
    with pytest.raises(InputError, match="CVE-2025-32434"):
        check_torch_version(version)


@pytest.mark.parametrize("version", ["2.6.0", "2.10.0+cpu", "2.15.0a0+git1234", "3.0.0", torch.__version__])
def test_a_pytorch_that_is_new_enough(version):
    check_torch_version(version)


def test_scripts_refuse_an_old_pytorch_in_one_line(city, checkpoints, tmp_path):
    code = OLD_TORCH + f"runpy.run_path({str(ROOT / 'train_rerank.py')!r}, run_name='__main__')"
    result = run_python(code, *training_flags(city, f"--resume={checkpoints['float']}"), cwd=tmp_path)
    assert result.status == 2
    assert result.stderr.startswith("error: PyTorch 2.5.1+cu124 is installed, but SelaVPR++ needs 2.6 or newer")
    assert result.stderr.count("\n") == 1


def test_the_hub_entry_refuses_an_old_pytorch(tmp_path):
    code = f"torch.hub.load({str(ROOT)!r}, 'SelaVPRplusplus', source='local', pretrained=False)"
    result = run_python(OLD_TORCH + code, cwd=tmp_path)
    assert result.status == 1
    assert "PyTorch 2.5.1+cu124 is installed, but SelaVPR++ needs 2.6 or newer" in result.stderr.splitlines()[-1]


def test_evaluation_on_a_system_without_unix_modules(tiny_benchmark, checkpoints, tmp_path):
    flags = evaluation_flags(tiny_benchmark, checkpoints["two_branch"], "--num_workers=1")
    saved = run_python(WINDOWS, ROOT / SCRIPTS["two_branch"], *flags, "--save_index=index", cwd=tmp_path)
    assert saved.status == 0, saved.stderr
    flags += ["--load_index=index", "--num_workers=0"]
    loaded = run_python(WINDOWS, ROOT / SCRIPTS["two_branch"], *flags, cwd=tmp_path)
    assert loaded.status == 0, loaded.stderr
    assert loaded.stdout.splitlines()[-2] == saved.stdout.splitlines()[-2]  # the recalls; then the report's path


def test_training_on_a_system_without_unix_modules(city, foundation, tmp_path):
    flags = training_flags(city, f"--foundation_model_path={foundation}", "--epochs_num=1", "--num_workers=1")
    result = run_python(WINDOWS, ROOT / "train.py", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    (metrics,) = tmp_path.glob("logs/train/*/metrics.csv")
    assert metrics.read_text().count("\n") == 2
