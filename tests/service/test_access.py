"""Who may ask the service: tokens, names, encryption."""

import asyncio
import base64
import http.client
import json
import shutil
import socket
import ssl
import subprocess

import pytest
from helpers.processes import run_script
from helpers.services import ASSETS, DATABASE, QUERIES, served

from model import InputError, PlaceRecognizer
from utils.service.config import AccessConfig, ServiceConfig, is_local
from utils.service.metrics import Metrics

pytest.importorskip("fastapi", reason="the packages of requirements-serve.txt are not installed")
from utils.service.guard import MAX_CAMERAS, Guard

TOKEN = "0123456789abcdef-secret"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


def basic(password, name="anybody"):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"token": "short"}, "16 or more"),
        ({"token": "with blanks in between"}, "16 or more"),
        ({"token": "é" * 20}, "16 or more"),
        ({"tls_cert": "cert.pem"}, "Give --tls_cert and --tls_key"),
        ({"host": "0.0.0.0"}, "open to the network"),
        ({"host": "0.0.0.0", "token": TOKEN}, "--plain_http"),
        ({"host": "::"}, "open to the network"),
        ({"host": "places.example.org"}, "open to the network"),
        ({"port": 70000}, "--port is 70000"),
    ],
)
def test_what_is_not_safe_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        AccessConfig(**settings)


def test_other_interfaces_need_encryption_or_a_word():
    AccessConfig(host="0.0.0.0", plain_http=True)
    AccessConfig(host="0.0.0.0", tls_cert="cert.pem", tls_key="key.pem")
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1", "a.localhost"):
        AccessConfig(host=host)
    assert not is_local("localhost.example.org") and not is_local("")


def test_the_address_that_is_printed_can_be_opened():
    def name(host, **settings):
        return AccessConfig(host=host, plain_http=True, **settings).name

    assert name("192.0.2.7") == "192.0.2.7" and name("localhost") == "localhost"
    assert name("0.0.0.0") == name("::") == socket.gethostname()
    assert name("0.0.0.0", public_names=("places.example.org",)) == "127.0.0.1"  # not refused, as others are


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A service with a token, a public name and a certificate, and a client's context that trusts it."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl")
    folder = tmp_path_factory.mktemp("secured")
    recognizer = PlaceRecognizer(ASSETS / "model.safetensors")
    recognizer.add(DATABASE[:3])
    recognizer.save(folder / "index")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *extension], cwd=folder, check=True, capture_output=True)
    certificate = [f"--tls_cert={folder / 'cert.pem'}", f"--tls_key={folder / 'key.pem'}"]
    names = ["--public_name", "places.example.org"]
    prelude = f"import os; os.environ['SELAVPR_TOKEN'] = '{TOKEN}'"
    with served(folder / "index", "--writable", *certificate, *names, cwd=folder, prelude=prelude) as server:
        yield server, ssl.create_default_context(cafile=folder / "cert.pem")


@pytest.fixture
def ask(secured):
    """Sends a request, and returns its answer's status, headers and content."""
    server, context = secured

    def ask(method, path, headers, body=None):
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return ask


@pytest.mark.slow
def test_without_the_token_nothing_is_answered_but_that_it_is_well(ask):
    photo = QUERIES[0].read_bytes()
    paths = [("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/metrics"), ("GET", "/images/0")]
    paths += [("POST", "/search"), ("POST", "/images"), ("DELETE", "/images/0"), ("GET", "/healthz/"), ("GET", "/x")]
    for method, path in paths:
        status, headers, body = ask(method, path, {}, photo if method == "POST" else None)
        assert status == 401 and "needs its token" in json.loads(body)["error"], path
        assert headers["www-authenticate"].startswith("Basic ")
    assert json.loads(ask("GET", "/healthz", {})[2])["images"] == 3
    assert ask("GET", "/", RIGHT)[0] == 200
    assert ask("POST", "/search", RIGHT, photo)[0] == 200


@pytest.mark.slow
def test_a_token_is_that_of_bearer_or_the_password_of_basic(ask):
    for headers in (RIGHT, {"Authorization": f"bearer  {TOKEN}"}, basic(TOKEN), basic(TOKEN, name="")):
        assert ask("GET", "/metrics", headers)[0] == 200, headers
    wrong = ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Digest {TOKEN}", "Basic ä="]
    wrong += [f"Basic {TOKEN}", "Basic ====", basic(TOKEN[:-1])["Authorization"], basic("", TOKEN)["Authorization"]]
    for value in wrong:
        assert ask("GET", "/metrics", {"Authorization": value.encode("latin-1")})[0] == 401, value


@pytest.mark.slow
def test_a_proxy_passes_on_its_public_names(ask):
    photo, name = QUERIES[0].read_bytes(), "places.example.org"
    page = {"Host": name, "Origin": f"https://{name}"}
    assert ask("POST", "/search", RIGHT | page, photo)[0] == 200
    for host in ("evil.example", "", "[", "places.example.org.evil.example"):
        assert ask("GET", "/healthz", RIGHT | {"Host": host})[0] == 403
    for origin in ("https://evil.example", "null", "https://[", f"https://{name}:8443"):
        assert ask("POST", "/search", RIGHT | page | {"Origin": origin}, photo)[0] == 403


def test_a_certificate_that_cannot_be_used_ends_the_script(tmp_path):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    flags = ["--index=nowhere", "--port=0", "--tls_cert=cert.pem", "--tls_key=key.pem"]
    result = run_script("serve.py", *flags, cwd=tmp_path)
    assert result.status == 2 and "cert.pem with the key key.pem cannot be used" in result.stderr


def guard_around(app, **access):
    """A Guard, and what it has counted as text."""
    metrics = Metrics()
    return Guard(app, config=ServiceConfig(), access=AccessConfig(**access), metrics=metrics), lambda: metrics.text({})


async def connect(guard, **headers):
    """Lets a camera connect, until it leaves or is refused. Returns what it was sent."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    headers = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    await guard({"type": "websocket", "path": "/frames", "headers": headers}, receive, send)
    return sent


def test_cameras_are_limited_in_number():
    async def run():
        may_leave = asyncio.Event()

        async def app(scope, receive, send):
            await may_leave.wait()

        guard, counted = guard_around(app)
        cameras = [asyncio.create_task(connect(guard)) for _ in range(MAX_CAMERAS)]
        await asyncio.sleep(0)  # they begin
        assert await asyncio.wait_for(connect(guard), 10) == ["websocket.close"]
        assert 'selavpr_requests_total{path="/frames",status="503"} 1' in counted()
        may_leave.set()
        assert await asyncio.gather(*cameras) == [[]] * MAX_CAMERAS
        assert await connect(guard) == []  # there is room again

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer wrong"}, 401),
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 403),
    ],
)
def test_cameras_that_are_refused_are_counted(headers, status):
    guard, counted = guard_around(None, token=TOKEN)
    assert asyncio.run(connect(guard, **headers)) == ["websocket.close"]
    assert f'selavpr_requests_total{{path="/frames",status="{status}"}} 1' in counted()
