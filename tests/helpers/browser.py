"""A headless Chromium. What imports this module is skipped where there is none, or selenium or axe-core-python lack."""

import json
import shutil
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
axe = pytest.importorskip("axe_core_python", reason="the package axe-core-python is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("there is no Chromium with a chromedriver", allow_module_level=True)

AXE = next(Path(axe.__file__).parent.glob("axe*.js")).read_text()
# Containers often lack what the sandbox needs, and the pages are our own.
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


def open_browser():
    """A driver whose log holds what pages print, and the requests that they send."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def show(driver, page, width, scheme):
    """Opens a page on a screen of a width, with the colours that its user prefers: light or dark."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page)


def violations(driver):
    """What the accessibility checker finds."""
    driver.execute_script(AXE)
    run = "const done = arguments[0]; axe.run({preload: false}).then((r) => done(JSON.stringify(r.violations)))"
    found = json.loads(driver.execute_async_script(run))
    return [(v["id"], v["impact"], [node["html"][:80] for node in v["nodes"]]) for v in found]


def requested(driver):
    """The addresses that pages have asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
