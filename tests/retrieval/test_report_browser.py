"""report.html in a headless Chromium: it works, with the keyboard too, and an accessibility checker finds nothing.

Needs Chromium with its driver, and the packages selenium and axe-core-python.
"""

import pytest
from helpers.browser import show, violations
from helpers.reports import MODEL, copy_with_hostile_names, make_results, read_tiny

from utils.retrieval.config import ReportConfig
from utils.retrieval.report import report
from utils.retrieval.report.comparison import compare, comparison_page
from utils.retrieval.report.saved_run import read_run
from utils.runtime.run_dir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory, tiny_benchmark):
    """The addresses of pages of two stages, with hostile file names and an image that cannot be read: with labels,
    without, and of a comparison.
    """
    folder = tmp_path_factory.mktemp("page")
    benchmark = read_tiny(copy_with_hostile_names(tiny_benchmark, folder / "datasets"))
    open(benchmark.queries.paths[3], "wb").close()
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = ReportConfig(recall_values=(1, 5), page_queries=100)
        results = make_results(benchmark)
        for name, labels in (("labels", True), ("no labels", False)):
            run = RunDir("eval", {"backbone": "vit-tiny"})
            shown = read_tiny(folder / "datasets", labels=labels)
            report(run, shown, results, model=MODEL, config=config)
            found[name] = (run.folder / "report.html").resolve().as_uri()
            if labels:
                saved = read_run(run.folder)
    comparison_page(compare([saved, saved]), num_queries=9).write(folder / "comparison.html")
    return found | {"comparison": (folder / "comparison.html").as_uri()}


@pytest.fixture(scope="module")
def page(pages):
    return pages["labels"]


@pytest.fixture
def opened(driver, page):
    show(driver, page, 1280, "light")
    return driver


def texts(driver, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
    return driver.execute_script(script, selector)


def choose(driver, label, option):
    """Chooses the option that begins with this text in the selection with this label."""
    driver.execute_script(
        """const labels = [...document.querySelectorAll("#controls label")];
        const select = labels.find((e) => e.textContent.startsWith(arguments[0])).querySelector("select");
        select.value = [...select.options].find((e) => e.text.startsWith(arguments[1])).value;
        select.dispatchEvent(new Event("change"));""",
        label,
        option,
    )


def press(driver, *keys):
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def focused_card(driver):
    return driver.execute_script("return [...document.querySelectorAll('.card')].indexOf(document.activeElement)")


def test_it_loads_without_errors_and_file_names_are_text(opened):
    assert opened.get_log("browser") == []
    assert opened.title.startswith("tiny: R@1 50.0")
    assert len(texts(opened, ".card")) == 8  # at first
    assert opened.execute_script("return document.querySelectorAll('.card[tabindex=\"0\"]').length") == 1
    assert any("document.title='owned'" in title for title in texts(opened, ".card h3"))
    assert any("Cannot read the image" in text for text in texts(opened, ".frame p"))
    broken = "return [...document.images].filter((i) => i.complete && !i.naturalWidth).length"
    assert opened.execute_script(broken) == 0


def test_filters_and_search_filter_and_orders_order(opened):
    assert [title[0] for title in texts(opened, ".card h3")] == ["✘"] * 5 + ["✔"] * 3
    opened.find_element("id", "more").click()
    assert [title[0] for title in texts(opened, ".card h3")] == ["✘"] * 5 + ["✔"] * 5 and focused_card(opened) == 8
    assert not opened.find_element("id", "more").is_displayed()
    choose(opened, "Show", "right")
    assert [title[0] for title in texts(opened, ".card h3")] == ["✔"] * 5
    assert texts(opened, "#count") == ["5 of 5 matching queries shown; 10 in this page."]
    choose(opened, "Show", "no positive")
    assert len(texts(opened, ".card")) == 2
    choose(opened, "Show", "all")
    choose(opened, "Sort", "order of the dataset")
    numbers = opened.execute_script("return [...document.querySelectorAll('.card')].map((c) => c.query.number)")
    assert numbers == list(range(8))
    choose(opened, "Sort", "most distant")
    distances = opened.execute_script("return [...document.querySelectorAll('.card')].map((c) => c.query.sort[2])")
    assert distances == sorted(distances, reverse=True)
    press(opened, "/", *"500214")
    assert len(texts(opened, ".card")) == 1


def test_the_keyboard_moves_through_the_gallery(opened):
    press(opened, "j")
    assert focused_card(opened) == 0
    press(opened, "\ue014", "j", "\ue012")  # right, j, left
    assert focused_card(opened) == 1
    press(opened, "\ue007")  # Enter
    assert opened.execute_script("return document.activeElement.querySelector('details').open")
    press(opened, "\ue010")  # End
    assert focused_card(opened) == 7
    press(opened, "j", "j", "j")
    assert focused_card(opened) == 9 and len(texts(opened, ".card")) == 10
    press(opened, "\ue011", "k")  # Home
    assert focused_card(opened) == 0
    tab_stops = opened.execute_script("return document.querySelectorAll('.card[tabindex=\"0\"]').length")
    assert tab_stops == 1


def test_a_query_is_shown_on_the_map_and_back(opened):
    opened.execute_script("document.querySelectorAll('.card button')[2].click()")
    assert opened.execute_script("return document.querySelectorAll('#selected circle, #selected line').length") == 2
    choose(opened, "Show", "right")
    press(opened, "\ue007")  # the button "Show in the gallery" has the focus
    assert focused_card(opened) == 2 and len(texts(opened, ".card")) == 8


def test_without_labels_nothing_is_right_or_wrong_and_a_match_is_shown_on_the_map(driver, pages):
    show(driver, pages["no labels"], 1280, "light")
    shown = "return [...document.querySelectorAll('.tag.correct, .tag.wrong')].filter((e) => e.offsetParent).length"
    assert driver.execute_script(shown) == 0
    driver.execute_script("document.querySelectorAll('.card button')[2].click()")
    assert driver.execute_script("return document.querySelectorAll('#selected circle, #selected line').length") == 2


@pytest.mark.parametrize("name", ["labels", "no labels", "comparison"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_an_accessibility_checker_finds_nothing(driver, pages, name, width, scheme):
    show(driver, pages[name], width, scheme)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert violations(driver) == []
