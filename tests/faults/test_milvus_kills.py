"""kill -9 of exports to Milvus, and of the server during one: nothing is lost and nothing is there twice."""

import random
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from helpers.milvus import TOKEN, LivingIndex, assert_same_results, is_copy, write
from helpers.models import build
from processes import GRACE, start_forked, wait_until
from trials import SEED

from benchmarks.milvus_server import MilvusProcess, missing
from model import InputError
from utils.integrations.milvus import export_index, open_index
from utils.retrieval.config import EngineAddress, ExtractionConfig
from utils.retrieval.index import Index, metadata_of

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ROWS, KILLS = 20_000, 10
SMALL_CHUNKS = "import utils.integrations.milvus.writer as writer; writer.CHUNK_SIZE = 64"  # 313 of them
REASON = missing()
CERTIFICATE = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
    "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if REASON:
        pytest.skip(f"no Milvus server can be started here: {REASON}")
    server = MilvusProcess(tmp_path_factory.mktemp("milvus"), **{"common.security.authorizationEnabled": "true"})
    yield server
    server.close()


@pytest.fixture(scope="module")
def local_index(tmp_path_factory):
    metadata = metadata_of(build("vit-tiny", hashing=True, rerank=True), ExtractionConfig(resize=(56, 56)))
    return write(tmp_path_factory.mktemp("index") / "index", metadata, ROWS)


@pytest.mark.parametrize("shards", [1, 4])
def test_an_export_that_is_killed_ten_times_is_complete(tmp_path, server, local_index, shards, tally):
    rng = random.Random(f"{SEED} {shards}")
    address = EngineAddress.parse(f"milvus://{server.address}/killed_{shards}", token=TOKEN)
    flags = [f"--index={local_index}", f"--to={address}", f"--token={TOKEN}", f"--shards={shards}"]
    for kill in range(KILLS):
        subject = start_forked("export.py", ["milvus", *flags], tmp_path, SMALL_CHUNKS)
        # The first kill comes at any time, even while the collections are created, the others while rows are written.
        if kill:
            subject.wait_for_start()
            wait_until(lambda subject=subject: "Exporting" in subject.stderr or subject.wait(0) is not None, 120)
        subject.wait(rng.uniform(0, 1 if kill else 10))
        subject.signal(signal.SIGKILL, [subject.pid])
        subject.wait(GRACE)
        problems = []
        try:
            problems.append(f"an incomplete index of {len(open_index(address))} images can be opened")
        except InputError as error:
            if "No index" not in str(error) and "incomplete" not in str(error):
                problems.append(str(error))
        *_, progress = re.findall(r"(\d+)/\d+ \[", subject.stderr) or ["0"]
        tally.add(f"kill {kill}, {shards} shards, image {progress}", problems)
    assert export_index(local_index, address).copied > 0
    assert_same_results(local_index, open_index(address), 100)
    assert_complete(local_index, open_index(address))
    tally.finish()


def test_an_append_that_is_killed_leaves_the_earlier_or_the_present_state(tmp_path, server, tally):
    """Images are added, replaced and removed between exports, and the exports killed while they write."""
    rng = random.Random(f"{SEED} append")
    metadata = metadata_of(build("vit-tiny", hashing=True, rerank=True), ExtractionConfig(resize=(56, 56)))
    living = LivingIndex(tmp_path / "index", metadata, SEED)
    address = EngineAddress.parse(f"milvus://{server.address}/appended", token=TOKEN)
    export_index(held := Index(living.folder), address)
    flags = ["milvus", f"--index={living.folder}", f"--to={address}", f"--token={TOKEN}", "--append"]
    for kill in range(KILLS):
        for kind in ("add", "remove", "replace", "add"):
            living.change(kind)
        index = Index(living.folder)
        subject = start_forked("export.py", flags, tmp_path / f"kill_{kill}", SMALL_CHUNKS.replace("64", "4"))
        subject.wait_for_start()
        wait_until(lambda subject=subject: "Exporting" in subject.stderr or subject.wait(0) is not None, 120)
        subject.wait(rng.uniform(0, 6))
        subject.signal(signal.SIGKILL, [subject.pid])
        subject.wait(GRACE)
        copy = open_index(address)
        states = [state for state in (held, index) if is_copy(state, copy)]
        problems = [] if states else [f"{len(copy)} images: neither {len(held)} nor {len(index)}"]
        held = states[0] if states else held
        assert_same_results(held, copy, 30)
        tally.add(f"kill {kill} of an append, {'after' if held is index else 'before'} its end", problems)
    export_index(index, address, append=True)
    assert_same_results(index, open_index(address), 30)
    tally.finish()


def test_a_server_that_is_killed_during_an_export_loses_nothing(tmp_path, server, local_index, tally):
    address = EngineAddress.parse(f"milvus://{server.address}/server_killed", token=TOKEN)
    flags = [f"--index={local_index}", f"--to={address}", f"--token={TOKEN}", "--shards=4"]
    subject = start_forked("export.py", ["milvus", *flags], tmp_path, SMALL_CHUNKS)
    subject.wait_for_start()
    wait_until(lambda: "Exporting" in subject.stderr, 120)
    time.sleep(1)
    server.kill()
    problems = []
    if subject.wait(GRACE) != 2 or "error: " not in subject.stderr:
        problems.append(f"status {subject.wait(0)}: {subject.stderr[-300:]}")
    server.start()
    assert 0 < export_index(local_index, address).copied < ROWS
    assert_same_results(local_index, open_index(address), 100)
    assert_complete(local_index, open_index(address))
    tally.add("the server killed", problems)
    tally.finish()


def test_an_encrypted_connection(tmp_path, local_index):
    if REASON:
        pytest.skip(f"no Milvus server can be started here: {REASON}")
    files = [tmp_path / "server.key", tmp_path / "server.pem"]
    subprocess.run([*CERTIFICATE.split(), "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    settings = {"common.security.tlsMode": 1, "tls.serverKeyPath": files[0], "tls.serverPemPath": files[1]}
    server = MilvusProcess(tmp_path / "milvus", **settings)
    try:
        address = EngineAddress.parse(f"milvus+tls://{server.address}/encrypted", tls_ca=files[1])
        assert export_index(local_index, address) == (ROWS, 0)
        assert_same_results(local_index, open_index(address), 100)
        for text, tls_ca in ((str(address), None), (str(address).replace("+tls", ""), None)):
            with pytest.raises(InputError, match="No Milvus server answers"):
                open_index(EngineAddress.parse(text, tls_ca=tls_ca))
    finally:
        server.close()


def assert_complete(index, copy):
    """Every row is there, once."""
    features = index.features()
    for start in range(0, ROWS, 1000):
        ids = range(start, start + 1000)
        rows = copy._collections.rows(copy._collections.codes, ids, ["code", "path"])
        assert [rows[i]["path"] for i in ids] == features.images.paths[start : start + 1000]
        assert [rows[i]["code"] for i in ids] == [code.tobytes() for code in features.codes[start : ids.stop]]
        rows = copy.features().descriptors[start : ids.stop]
        np.testing.assert_array_equal(rows, features.descriptors[start : ids.stop])
