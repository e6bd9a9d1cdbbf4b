"""The container of serve.py: what it copies is all that the service needs; and, where Docker runs, the container."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from helpers.processes import ROOT
from helpers.services import ASSETS, DATABASE, QUERIES

from model import PlaceRecognizer

pytest.importorskip("fastapi", reason="the packages of requirements-serve.txt are not installed")
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())


def instructions(name):
    """The arguments of the instructions with a name."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def make_index(folder):
    recognizer = PlaceRecognizer(ASSETS / "model.safetensors")
    recognizer.add(DATABASE)
    recognizer.save(folder)
    return folder


def test_what_it_copies_is_sent_to_the_builder():
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    assert sorted(copied) == sorted(sent) and all((ROOT / source).exists() for source in sent)


@pytest.mark.slow
def test_what_it_copies_is_all_that_the_service_needs(tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    for line in instructions("COPY"):
        for source in line.split()[:-1]:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, app / source)
    [[_, *entry]] = map(json.loads, instructions("ENTRYPOINT"))
    [[_, *check]] = map(json.loads, re.findall(r"CMD (.*)", instructions("HEALTHCHECK")[0]))
    index = make_index(tmp_path / "index")
    command = [sys.executable, *entry, f"--index={index}", "--port=0"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    service = subprocess.Popen(command, cwd=app, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = re.search(r"Open http://[^:/]+:(\d+)/", service.stdout.readline())[1]
        assert ":8000/" in check[-1]
        check = [sys.executable, *check[:-1], check[-1].replace(":8000/", f":{port}/")]
        assert subprocess.run(check, check=False).returncode == 0
        assert search(int(port)) == PlaceRecognizer.open(index).search(QUERIES[3], k=1)[0][0].id
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)
    gone = subprocess.run(check, check=False, stderr=subprocess.DEVNULL)
    assert gone.returncode == 1


def search(port):
    """The id of the best match of a photo."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/search?k=1", QUERIES[3].read_bytes(), timeout=60) as reply:
        return json.load(reply)["matches"][0]["id"]


def docker(*words, **options):
    return subprocess.run(["docker", *map(str, words)], check=True, text=True, stdout=subprocess.PIPE, **options).stdout


@pytest.mark.proof
def test_the_container_serves_without_rights(tmp_path):
    """As docs/serving.md runs it: not as root, on a file system that cannot be written, and well by its own check."""
    if not shutil.which("docker"):
        pytest.skip("there is no Docker")
    if subprocess.run(["docker", "info"], check=False, capture_output=True).returncode:
        pytest.skip("no Docker daemon answers")
    docker("build", "--tag=selavpr-test", ROOT)
    index = make_index(tmp_path / "index")
    for path in (tmp_path, index, *index.iterdir()):
        path.chmod(0o755)
    flags = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
    flags += ["--publish=127.0.0.1:0:8000", "--health-interval=2s", f"--volume={index}:/index:ro"]
    flags += [f"--volume={ASSETS}:/assets:ro"]
    name = docker("run", "--detach", *flags, "selavpr-test", "--index=/index", "--model=/assets/model.safetensors")
    name = name.strip()
    try:
        end = time.monotonic() + 120
        while docker("inspect", "--format={{.State.Health.Status}}", name).strip() != "healthy":
            assert time.monotonic() < end, docker("logs", name, stderr=subprocess.STDOUT)
            time.sleep(1)
        assert docker("exec", name, "id", "-u").strip() == "10001"
        port = int(docker("port", name, "8000").rsplit(":", 1)[1])
        assert search(port) == PlaceRecognizer.open(index).search(QUERIES[3], k=1)[0][0].id
        docker("stop", "--time=40", name)
        assert docker("inspect", "--format={{.State.ExitCode}}", name).strip() == "143"
    finally:
        docker("rm", "--force", name)
