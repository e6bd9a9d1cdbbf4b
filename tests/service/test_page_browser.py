"""The page of the service in a headless Chromium: an image is found, with the keyboard too, nothing leaves the machine,
and an accessibility checker finds nothing. Needs Chromium with its driver, and the packages selenium and
axe-core-python.
"""

import base64
import math
import shutil

import pytest
from helpers.browser import requested, show, violations
from helpers.processes import run_script
from helpers.services import ASSETS, DATABASE, QUERIES, served

from model import PlaceRecognizer

pytestmark = pytest.mark.slow

pytest.importorskip("fastapi", reason="the packages of requirements-serve.txt are not installed")
SAME_PLACE = next(image for image in DATABASE if QUERIES[3].name.split("@")[3][:7] in image.name)
SEND = """  // an image, as a user drops, pastes or chooses it
const [way, text, name] = arguments;
const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], name, { type: "image/jpeg" }));
if (way === "drop") document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
if (way === "paste") document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files }));
if (way === "choose") {
  document.getElementById("file").files = files.files;
  document.getElementById("file").dispatchEvent(new Event("change"));
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page, whose index has an image with a hostile name, and one with a position in degrees alone."""
    folder = tmp_path_factory.mktemp("page")
    hostile = folder / "<img src=x onerror=document.title='owned'>.jpg"
    shutil.copy(DATABASE[0], hostile)
    recognizer = PlaceRecognizer(ASSETS / "model.safetensors")
    images = [hostile, *DATABASE[1:]]
    recognizer.add(images, positions=[list(map(float, image.name.split("@")[1:3])) for image in DATABASE])
    recognizer.save(folder / "index")
    flags = [f"--examples={QUERIES[0].parent}", "--max_distance=1.05"]
    with served(folder / "index", *flags, cwd=folder) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.fixture
def opened(driver, page):
    show(driver, page, 1280, "light")
    return driver


def wait_for(driver, script):
    driver.set_script_timeout(30)
    code = f"""const done = arguments[0];
    (function look() {{ if ({script}) done(); else setTimeout(look, 20); }})();"""
    driver.execute_async_script(code)


def send(driver, way, image):
    driver.execute_script("document.getElementById('status').textContent = ''")
    driver.execute_script(SEND, way, base64.b64encode(image.read_bytes()).decode(), image.name)
    wait_for(driver, "/[.]$/.test(document.getElementById('status').textContent)")


def captions(driver):
    return driver.execute_script("return [...document.querySelectorAll('#matches figcaption')].map((e) => e.innerText)")


def press(driver, *keys):
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_is_found(opened, way):
    send(opened, way, QUERIES[3])
    first, *others = captions(opened)
    assert first.startswith("✔ 1: ") and SAME_PLACE.name in first and len(others) == 9
    assert opened.find_element("id", "verdict").text == "A known place"
    kinds = opened.execute_script("return [...document.querySelectorAll('#matches figure')].map((e) => e.className)")
    distances = [float(caption.split(": ")[1].split()[0]) for caption in (first, *others)]
    assert kinds == ["correct" if distance <= 1.05 else "beyond" for distance in distances]
    wait_for(opened, "[...document.images].every((i) => i.complete)")
    assert opened.execute_script("return [...document.images].filter((i) => !i.naturalWidth).length") == 0
    assert opened.execute_script("return document.querySelectorAll('#selected .match').length") == 10
    assert opened.get_log("browser") == []


def test_the_place_is_drawn_at_the_dot_of_its_image(opened):
    send(opened, "drop", DATABASE[5])
    place, dots = opened.execute_script(
        """const place = document.querySelector("#selected .place");
        const dots = document.querySelector("#map .database");
        return [[place.cx.baseVal.value, place.cy.baseVal.value], dots.outerHTML];"""
    )
    near = [dot.split() for dot in dots.split('d="M')[1].split('h0"')[0].split("h0M")]
    assert any(abs(float(x) - place[0]) <= 2 and abs(float(y) - place[1]) <= 2 for x, y in near)


def test_an_unknown_place_is_said_to_be_one(opened):
    send(opened, "drop", QUERIES[9])
    verdict, first = opened.find_element("id", "verdict").text, captions(opened)[0]
    is_known = float(first.split(": ")[1].split()[0]) <= 1.05
    assert verdict == ("A known place" if is_known else "An unknown place")


def test_what_is_no_image_and_hostile_names_are_text(opened, tmp_path):
    (tmp_path / "notes.jpg").write_text("notes")
    send(opened, "drop", tmp_path / "notes.jpg")
    assert "not a JPEG or PNG" in opened.find_element("id", "status").text
    send(opened, "drop", DATABASE[0])
    assert "<img src=x onerror=document.title='owned'>.jpg" in captions(opened)[0]
    assert opened.title == "Where was this taken?"


def test_the_keyboard_chooses_an_example_and_moves_through_the_matches(opened):
    press(opened, "4")
    wait_for(opened, "document.querySelectorAll('#matches li').length")
    current = "return [...document.querySelectorAll('#matches li')].indexOf(document.activeElement)"
    for key, expected in (("\ue014", 0), ("\ue014", 1), ("\ue014", 2), ("\ue012", 1)):
        press(opened, key)
        assert opened.execute_script(current) == expected
    assert opened.execute_script("return document.querySelectorAll('#selected .current').length") == 1
    assert opened.execute_script("return document.querySelectorAll('#matches [tabindex=\"0\"]').length") == 1


@pytest.mark.parametrize("part", ["", "docs"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_an_accessibility_checker_finds_nothing_and_no_request_leaves_the_machine(driver, page, part, width, scheme):
    requested(driver)
    show(driver, page + part, width, scheme)
    if not part:
        assert violations(driver) == []
        send(driver, "drop", QUERIES[0])
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert violations(driver) == []
    assert all(address.startswith((page, "blob:", "data:")) for address in requested(driver))


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """The address of a page whose images have degrees, and the place of one, (latitude, longitude)."""
    folder = tmp_path_factory.mktemp("city")
    places = {image: (47.37 + i / 2000, 8.54 + i / 3000) for i, image in enumerate(DATABASE)}
    rows = [f"{image.name},{latitude},{longitude}" for image, (latitude, longitude) in places.items()]
    (folder / "positions.csv").write_text("\n".join(["image,latitude,longitude", *rows]))
    flags = [f"--index={folder / 'index'}", f"--positions_csv={folder / 'positions.csv'}", "--device=cpu"]
    built = run_script(
        "build_index.py", DATABASE[0].parent, *flags, f"--model={ASSETS / 'model.safetensors'}", cwd=folder
    )
    assert built.status == 0, built.stderr
    with served(folder / "index", cwd=folder) as server:
        yield f"http://127.0.0.1:{server.port}/", places[DATABASE[5]]


def test_streets_are_asked_for_only_where_the_user_switches_them_on(driver, city):
    page, (latitude, longitude) = city
    show(driver, page, 390, "light")
    send(driver, "drop", DATABASE[5])
    asked = requested(driver)
    assert not [address for address in asked if "openstreetmap" in address]
    assert not driver.find_element("id", "attribution").is_displayed()
    driver.find_element("id", "tiles-on").click()
    wait_for(driver, "document.querySelectorAll('#map image').length")
    wait_for(driver, "/OpenStreetMap does not answer/.test(document.getElementById('status').textContent)")
    tiles = [address for address in requested(driver) if not address.startswith((page, "blob:", "data:"))]
    assert tiles and all(address.startswith("https://tile.openstreetmap.org/") for address in tiles)
    zoom = int(tiles[0].split("/")[3])
    column = math.floor((longitude / 360 + 0.5) * 2**zoom)
    row = math.floor((0.5 - math.asinh(math.tan(math.radians(latitude))) / (2 * math.pi)) * 2**zoom)
    assert f"https://tile.openstreetmap.org/{zoom}/{column}/{row}.png" in tiles
    assert driver.find_element("id", "attribution").is_displayed() and violations(driver) == []
    assert not [entry for entry in driver.get_log("browser") if "Content Security Policy" in entry["message"]]
    driver.find_element("id", "tiles-on").click()
    assert driver.execute_script("return document.querySelectorAll('#map image').length") == 0


def test_the_page_works_with_a_token_that_its_user_has_given(driver, tmp_path):
    recognizer = PlaceRecognizer(ASSETS / "model.safetensors")
    recognizer.add(DATABASE)
    recognizer.save(tmp_path / "index")
    token = "0123456789abcdef"
    with served(tmp_path / "index", f"--token={token}", f"--examples={QUERIES[0].parent}", cwd=tmp_path) as server:
        show(driver, f"http://127.0.0.1:{server.port}/", 1280, "light")
        assert not driver.find_elements("id", "drop")  # it asks for a password
        driver.get(f"http://me:{token}@127.0.0.1:{server.port}/")  # as if it were typed: the browser keeps it
        show(driver, f"http://127.0.0.1:{server.port}/", 1280, "light")
        send(driver, "drop", QUERIES[3])
        assert SAME_PLACE.name in captions(driver)[0]
        wait_for(driver, "[...document.images].every((i) => i.complete)")
        assert driver.execute_script("return [...document.images].filter((i) => !i.naturalWidth).length") == 0
