"""serve.py as a process: its answers are search.py's; load, changes of the index, stop signals and bad input."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.processes import run_python, run_script, start_script
from helpers.services import ASSETS, DATABASE, QUERIES, served, start_server, until_open
from PIL import Image

from model import PlaceRecognizer, load_any_model
from model.weights import model_content
from utils.retrieval.config import AcceptConfig
from utils.service.library import CannotSearch, FolderLibrary

pytestmark = pytest.mark.slow

pytest.importorskip("fastapi", reason="the packages of requirements-serve.txt are not installed")
MODEL = ASSETS / "model.safetensors"


def make_index(folder, images=DATABASE):
    recognizer = PlaceRecognizer(MODEL)
    recognizer.add(images, positions=[list(map(float, image.name.split("@")[1:3])) for image in images])
    recognizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("index") / "index")


@pytest.fixture(scope="module")
def server(index, tmp_path_factory):
    flags = ["--max_bytes=200000", "--max_pixels=1000000", "--upload_seconds=1", "--show_paths"]
    with served(index, *flags, cwd=tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def expected(index, tmp_path_factory):
    """{query: what search.py --json says}."""
    flags = [f"--index={index}", "--results=5", "--json", "--device=cpu"]
    result = run_script("search.py", *QUERIES, *flags, cwd=tmp_path_factory.mktemp("search"))
    assert result.status == 0, result.stderr
    return dict(zip(QUERIES, json.loads(result.stdout)["queries"], strict=True))


def require_same(answer, expected):
    """The answer for an image is that of search.py, up to rounding."""
    assert [match["name"] for match in answer["matches"]] == [match["path"] for match in expected["matches"]]
    for ours, theirs in zip(answer["matches"], expected["matches"], strict=True):
        assert ours["distance"] == pytest.approx(theirs["distance"], abs=1e-4)
        for name in ("rank", "metric", "easting", "northing", "latitude", "longitude"):
            assert ours[name] == theirs[name]
    place = {name: pytest.approx(value, abs=1e-2) for name, value in expected["place"].items() if value is not None}
    assert answer["place"] == {**dict.fromkeys(answer["place"]), **place}


def form(data, name="image", kind="image/jpeg"):
    """(body, headers) of a form with one file."""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\nContent-Type: {kind}\r\n\r\n'
    return head.encode() + data + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def test_answers_are_those_of_search_py(server, expected):
    for query, theirs in expected.items():
        reply = server.search(query)
        assert reply.status == 200
        require_same(reply.content, theirs)
        assert reply.content["accepted"] is None and reply.content["seconds"].keys() >= {"prepare", "describe"}
    reply = server.ask("POST", "/search?k=1", *form(QUERIES[0].read_bytes()))
    assert reply.content["matches"] == server.search(QUERIES[0], "?k=1").content["matches"]


def test_a_distance_decides_what_is_unknown(server):
    distance = server.search(QUERIES[0], "?k=1").content["matches"][0]["distance"]
    for limit, accepted in ((distance + 0.01, True), (distance - 0.01, False)):
        answer = server.search(QUERIES[0], f"?k=1&max_distance={limit}").content
        assert answer["accepted"] is accepted and (answer["place"] is not None) is accepted
        assert len(answer["matches"]) == 1


def test_requests_that_arrive_together_are_described_together(server, expected):
    images, batches = (server.metric(f"described_{name}_total") for name in ("images", "batches"))
    queries = QUERIES * 5
    with ThreadPoolExecutor(30) as pool:
        for query, reply in zip(queries, pool.map(server.search, queries), strict=True):
            assert reply.status == 200
            require_same(reply.content, expected[query])
    assert server.metric("described_images_total") - images == len(queries)
    assert server.metric("described_batches_total") - batches < len(queries)


def png(width, height):
    """A PNG whose header claims a size, and that has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


LARGE = io.BytesIO()
Image.new("RGB", (1500, 1000)).save(LARGE, "png")
PHOTO = QUERIES[0].read_bytes()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/search", b"", 400, "no image"),
        ("POST", "/search", b"\0" * 99, 400, "not a JPEG or PNG"),
        ("POST", "/search", PHOTO[: len(PHOTO) // 2], 400, "damaged or truncated"),
        ("POST", "/search", png(60_000, 60_000), 400, "pixels"),
        ("POST", "/search", png(2**31 - 1, 1), 400, "pixels"),
        ("POST", "/search", LARGE.getvalue(), 400, "1500 x 1000 pixels. At most 1,000,000"),
        ("POST", "/search", b"\0" * 400_000, 413, "too large"),
        ("POST", "/search?k=0", PHOTO, 400, "k is '0'"),
        ("POST", "/search?k=many", PHOTO, 400, "k is 'many'"),
        ("POST", "/search?max_distance=-1", PHOTO, 400, "max_distance is '-1'"),
        ("POST", "/search?max_distance=inf", PHOTO, 400, "max_distance is"),
        ("POST", "/search?max_distance=nan", PHOTO, 400, "max_distance is"),
        ("POST", "/images", PHOTO, 404, "nothing at this address"),
        ("GET", "/search", None, 405, "Method Not Allowed"),
        ("GET", "/images/99", None, 404, "no image 99"),
        ("GET", "/images/-1", None, 400, "id is '-1'"),
        ("GET", f"/images/{2**70}", None, 400, "id is"),
        ("GET", "/images/model.safetensors", None, 400, "id is 'model.safetensors'"),
        ("GET", "/images/../../../../etc/passwd", None, 404, "nothing"),
        ("GET", "/images/..%2f..%2f..%2fetc%2fpasswd", None, 404, "nothing"),
        ("GET", "/images//etc/passwd", None, 404, "nothing"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(server, method, path, body, status, words):
    reply = server.ask(method, path, body)
    assert reply.status == status and words in reply.content["error"], reply
    assert (
        reply.headers["x-content-type-options"] == "nosniff"
        and "default-src 'none'" in reply.headers["content-security-policy"]
    )
    assert server.search(QUERIES[1], "?k=1").status == 200


def test_forms_without_a_file_and_damaged_ones_are_refused(server):
    body, headers = form(b"")
    assert "no image" in server.ask("POST", "/search", body, headers).content["error"]
    assert (
        "no image" in server.ask("POST", "/search", body.replace(b'; filename="a.jpg"', b""), headers).content["error"]
    )
    assert server.ask("POST", "/search", body[:30], headers).status == 400
    assert server.ask("POST", "/search", body, {"Content-Type": "multipart/form-data"}).status == 400


def test_an_upload_that_grows_or_comes_slowly_is_ended(server):
    large = server.ask("POST", "/search", iter([b"\0" * 100_000] * 3))  # in chunks
    assert large.status == 413 and "too large" in large.content["error"]
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        assert b" 408 " in slow.recv(1000)
    for begun in (b"", b"POST /search HTTP/1.1\r\nHost: local"):  # headers that do not come to an end
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(begun)
            assert slow.recv(1000) == b""
    with socket.create_connection(("127.0.0.1", server.port)) as gone:
        gone.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    assert server.search(QUERIES[0]).status == 200
    assert server.metric("queue_images") == 0


def test_pages_of_other_servers_are_refused(server):
    reply = server.ask("GET", "/healthz", headers={"Host": "evil.example"})
    assert reply.status == 403 and "names of this machine" in reply.content["error"]
    reply = server.ask("POST", "/search", PHOTO, {"Origin": "http://evil.example"})
    assert reply.status == 403 and "page of another server" in reply.content["error"]


def test_a_thumbnail_is_a_small_jpeg_of_an_image_of_the_index(server):
    reply = server.ask("GET", "/images/3")
    assert reply.headers["content-type"] == "image/jpeg"
    thumbnail = Image.open(io.BytesIO(reply.body))
    assert thumbnail.format == "JPEG" and max(thumbnail.size) <= 320


def test_names_have_no_folders_unless_asked_for_and_the_queue_has_an_end(tmp_path, index):
    with served(index, "--queue=1", cwd=tmp_path) as server:
        names = {match["name"] for match in server.search(QUERIES[0], "?k=12").content["matches"]}
        assert names == {image.name for image in DATABASE}
        with ThreadPoolExecutor(24) as pool:
            replies = list(pool.map(server.search, QUERIES * 6))
        assert {reply.status for reply in replies} == {200, 503}
        refused = next(reply for reply in replies if reply.status == 503)
        assert int(refused.headers["retry-after"]) >= 1 and "wait to be described" in refused.content["error"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_finishes_what_has_begun(tmp_path, index, number):
    server = start_server(index, cwd=tmp_path)
    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(10)]
    for connection in connections:  # half of an image has arrived
        connection.putrequest("POST", "/search")
        connection.putheader("Content-Length", str(len(PHOTO)))
        connection.endheaders(PHOTO[:1000])
    server.wait_for(lambda: server.ask("GET", "/healthz").status == 200)
    server.send(number)
    server.wait_for(lambda: not accepts(server.port))
    for connection in connections:
        connection.send(PHOTO[1000:])
    replies = [connection.getresponse() for connection in connections]
    assert [reply.status for reply in replies] == [200] * 10
    assert all(len(json.loads(reply.read())["matches"]) == 5 for reply in replies)
    result = server.running.result()
    assert result.status == (130 if number == signal.SIGINT else 143), result.stderr
    assert "Traceback" not in result.stderr
    assert ("Stopping after the requests" in result.stderr) == (number == signal.SIGINT)


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:
        return False
    return True


def test_a_changed_index_is_opened_again_without_a_lost_request(tmp_path):
    index = make_index(tmp_path / "index", DATABASE[:6])
    with served(index, cwd=tmp_path) as server:
        stopped, statuses = threading.Event(), []

        def ask():
            while not stopped.is_set():
                statuses.append(server.search(QUERIES[0]).status)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        other = PlaceRecognizer.open(index)
        other.add(DATABASE[6:])
        other.save(index)
        server.wait_for(lambda: server.ask("GET", "/healthz").content["images"] == 12)
        assert server.search(DATABASE[9], "?k=1").content["matches"][0]["name"] == DATABASE[9].name
        other.remove([0, 1])
        other.save(index)
        server.wait_for(lambda: server.ask("GET", "/healthz").content["images"] == 10)
        compacted = run_script("build_index.py", "--compact", f"--index={index}", cwd=tmp_path)
        assert compacted.status == 0, compacted.stderr
        server.wait_for(lambda: server.metric("index_reopened_total") == 3)
        (index / "manifest.jsonl").rename(tmp_path / "manifest.jsonl")
        server.wait_for(lambda: server.ask("GET", "/healthz").content["status"] == "stale")
        assert server.search(DATABASE[9], "?k=1").content["matches"][0]["name"] == DATABASE[9].name
        (tmp_path / "manifest.jsonl").rename(index / "manifest.jsonl")
        server.wait_for(lambda: server.ask("GET", "/healthz").content["status"] == "ok")
        stopped.set()
        for thread in asking:
            thread.join()
        assert set(statuses) == {200} and len(statuses) > 10


def test_a_file_that_is_cut_is_a_problem_until_the_index_is_another(tmp_path):
    recognizer = PlaceRecognizer.open(index := make_index(tmp_path / "index"))
    library, description = FolderLibrary(recognizer, index, AcceptConfig()), recognizer.describe(QUERIES[0])
    library.refresh()
    content = (index / "descriptors.bin").read_bytes()
    os.truncate(index / "descriptors.bin", 100)
    with pytest.raises(CannotSearch):
        library.find(description, 5, None)
    library.refresh()
    assert "descriptors.bin is damaged: it has become shorter" in library.problem
    (index / "descriptors.bin").write_bytes(content)
    other = PlaceRecognizer.open(index)
    other.remove(0)
    other.save(index)
    library.refresh()
    assert library.problem is None and len(library.find(description, 5, None).matches) == 5


def test_images_are_added_and_removed_on_the_disk(tmp_path):
    index = make_index(tmp_path / "index", DATABASE[:6])
    with served(index, "--writable", cwd=tmp_path) as server:
        hostile = os.path.relpath(DATABASE[0], tmp_path / "server")  # a file that its sender cannot read
        reply = server.ask("POST", f"/images?name={hostile}", QUERIES[3].read_bytes())
        assert reply.status == 200 and reply.content == {"id": 6}
        assert server.search(QUERIES[3], "?k=1").content["matches"][0]["id"] == 6
        assert server.ask("GET", "/images/6").status == 404
        reply = server.ask("POST", "/images?name=yard&easting=5&northing=7&time=3", QUERIES[4].read_bytes())
        assert reply.content == {"id": 7}
        match = PlaceRecognizer.open(index).search(QUERIES[4], k=1)[0][0]
        assert (match.id, match.name, match.position, match.time) == (7, "yard", (5.0, 7.0), 3.0)
        assert server.ask("DELETE", "/images/6").status == 204
        assert server.ask("DELETE", "/images/6").status == 404
        other = PlaceRecognizer.open(index)
        assert len(other) == 7
        other.add(DATABASE[6:8])
        other.save(index)
        assert server.ask("POST", "/images", QUERIES[5].read_bytes()).content == {"id": 10}
        assert server.ask("GET", "/healthz").content["images"] == 10
        for path, words in (
            ("?easting=5", "Give both"),
            ("?easting=1e9&northing=1", "up to 1e+08"),
            ("?easting=nan&northing=1", "easting"),
            ("?name=a%0Ab", "line"),
            (f"?name={DATABASE[0]}", "absolute path"),
        ):
            reply = server.ask("POST", f"/images{path}", PHOTO)
            assert reply.status == 400 and words in reply.content["error"]
        assert server.ask("POST", "/images", PHOTO, {"Origin": "http://evil.example"}).status == 403
        (index / "manifest.jsonl").rename(tmp_path / "manifest.jsonl")
        reply = server.ask("POST", "/images", PHOTO)
        assert reply.status == 503 and str(tmp_path) not in reply.content["error"]
        reply = server.ask("DELETE", "/images/7")
        assert reply.status == 503 and str(tmp_path) not in reply.content["error"]
        (tmp_path / "manifest.jsonl").rename(index / "manifest.jsonl")
        assert server.ask("DELETE", "/images/7").status == 204
        assert server.ask("POST", "/images", PHOTO).status == 200
        assert len(PlaceRecognizer.open(index)) == server.ask("GET", "/healthz").content["images"] == 10


def test_on_a_full_disk_nothing_is_added_and_the_search_goes_on(tmp_path):
    index = make_index(tmp_path / "index", DATABASE[:6])
    limit = max(path.stat().st_size for path in index.iterdir()) + 100
    prelude = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    with served(index, "--writable", cwd=tmp_path, prelude=prelude) as server:
        reply = server.ask("POST", "/images", PHOTO)
        assert reply.status == 503 and "could not be written" in reply.content["error"]
        assert server.ask("GET", "/healthz").content == {"status": "ok", "images": 6}
        assert server.search(DATABASE[2], "?k=1").content["matches"][0]["id"] == 2
    assert len(PlaceRecognizer.open(index)) == 6


def test_killed_while_it_adds_it_has_kept_what_it_acknowledged(tmp_path):
    index = make_index(tmp_path / "index", DATABASE[:2])
    server = start_server(index, "--writable", cwd=tmp_path)
    added, enough = [], threading.Event()

    def add(image):
        while True:
            try:
                added.append(server.ask("POST", "/images", image.read_bytes()).content["id"])
            except (OSError, http.client.HTTPException):
                return
            if len(added) > 12:
                enough.set()

    threads = [threading.Thread(target=add, args=(image,)) for image in QUERIES[:3]]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    server.send(signal.SIGKILL)
    for thread in threads:
        thread.join()
    server.running.process.join()
    assert set(added) <= set(PlaceRecognizer.open(index).known().ids.tolist())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--index=nowhere"], "nowhere"),
        (["--model=nothing.pth"], "nothing.pth"),
        (["--host=203.0.113.7", "--plain_http"], "Cannot listen on 203.0.113.7"),
        (["--accept=missing.json"], "no file missing.json"),
        (["--port=70000"], "--port is 70000"),
        (["--image_root=moved"], "--image_root: no folder moved"),
    ],
)
def test_what_cannot_be_served_ends_the_script(tmp_path, index, flags, words):
    result = run_script("serve.py", f"--index={index}", "--port=0", "--device=cpu", *flags, cwd=tmp_path)
    assert result.status == 2 and words in result.stderr, result.stderr


def test_without_its_packages_the_script_says_what_to_install(tmp_path, index):
    code = "import runpy, sys; sys.argv[:] = ['serve.py', *sys.argv[1:]]; runpy.run_path('{}', run_name='__main__')"
    script = str(ASSETS.parents[1] / "serve.py")
    result = run_python(code.format(script), f"--index={index}", "--device=cpu", cwd=tmp_path, without=("fastapi",))
    assert result.status == 2 and "pip install -r requirements-serve.txt" in result.stderr


def test_of_frames_the_newest_wins_and_the_others_are_counted(tmp_path, index, expected):
    client = pytest.importorskip("websockets.sync.client")
    with served(index, "--max_bytes=100000", "--show_paths", cwd=tmp_path) as server:
        address = f"ws://127.0.0.1:{server.port}/frames?k=5"
        with client.connect(address) as frames:
            frames.send(PHOTO)
            answer = json.loads(frames.recv(30))
            require_same(answer, expected[QUERIES[0]])
            assert (answer["frame"], answer["dropped"]) == (0, 0)
            frames.send(b"no image")
            assert "not a JPEG or PNG" in json.loads(frames.recv(30))["error"]
            for _ in range(200):
                frames.send(QUERIES[1].read_bytes())
            answers = [json.loads(frames.recv(30))]
            while answers[-1]["frame"] < 201:
                answers.append(json.loads(frames.recv(30)))
            require_same(answers[-1], expected[QUERIES[1]])
            assert len(answers) + answers[-1]["dropped"] == 200 and answers[-1]["dropped"] > 0
            assert server.metric("dropped_frames_total") == answers[-1]["dropped"]  # while the camera is connected
        with client.connect(address) as frames:
            frames.send(b"\0" * 100_001)
            with pytest.raises(Exception, match="1009"):
                frames.recv(30)
        refused = [(address, "http://evil.example"), ("ws://evil.example/frames", None)]
        for address, origin in refused:
            connection = socket.create_connection(("127.0.0.1", server.port))
            with pytest.raises(Exception, match="403|during handshake"):  # in newer and older versions
                client.connect(address, sock=connection, origin=origin).close()


def test_the_city_of_the_demo_is_served(tmp_path):
    """Of a folder as the demo leaves it, but with the small model and its photos."""
    demo, model = tmp_path / "demo", load_any_model(MODEL)
    for run in ("stage_two", "two_stage"):
        (demo / "logs" / run / "time").mkdir(parents=True)
    shutil.copytree(ASSETS / "images", demo / "city" / "synthetic" / "images")
    torch.save(model_content(model), demo / "logs" / "stage_two" / "time" / "best_model.pth")
    found = {"95": {"distance": 1.05, "radius": 30.0, "accepted": 9}, "99": None, "100": None}
    calibration = {
        "weights_sha256": model.fingerprint,
        "image_size": model.image_config.resize,
        "antialias": model.image_config.antialias,
        "descriptor_dim": model.descriptor_dim,
        "test_method": "hard_resize",
        "queries": 12,
        "first_match": {"metric": "l2", "at_precision": found},
    }
    (demo / "logs" / "two_stage" / "time" / "calibration.json").write_text(json.dumps(calibration))
    server = until_open(start_script("examples.serve_demo", "--port=0", cwd=tmp_path))
    answer = server.search(QUERIES[3], "?k=1").content
    assert answer["accepted"] is True and answer["place"]["radius"] == 30
    assert b"Where was this taken?" in server.ask("GET", "/").body
    assert server.ask("GET", "/examples/3").body in [query.read_bytes() for query in QUERIES]
    server.send(signal.SIGTERM)
    assert server.running.result().status == 143
