"""The pages of comparisons, sweeps and contact sheets in headless Chromium, few things on them and many: one style,
nothing asked for, nothing said on the console, and no sideways scrolling of the page on a phone.
"""

import functools
import itertools
import json
import re

import numpy as np
import pytest

from experiment_tools.adapt import contact_sheet
from experiment_tools.compare.__main__ import main as compare
from experiment_tools.parts.pages import FOLDER
from experiment_tools.sweep.file import read_sweep
from experiment_tools.sweep.results import write_results
from experiment_tools.sweep.trials import Trial
from tests.tools.browser import chromium, set_screen
from tests.tools.finished_runs import MAML_PLUS_PLUS, finished_run
from tests.tools.gate import few_of
from utils.paths import REPOSITORY_ROOT

EVIL = "<script>window.reached = 1</script><img src=x onerror='window.reached = 1'>\x1b[31m"


def two(root):
    return [finished_run(root, name, right(0.7), **more) for name, more in (("a", {}), ("b" * 150, MAML_PLUS_PLUS))]


def twelve(root):
    """Two methods on six kinds of tasks, which were one row of 24 columns."""
    grid = itertools.product((1, 5), (2, 5, 10), ({}, MAML_PLUS_PLUS))
    return [
        finished_run(root, f"{n}", np.tile(right(0.6), (1, 10)), num_samples_per_class=shots, num_classes_per_set=ways,
                     dataset_name="omniglot", **more)
        for n, (shots, ways, more) in enumerate(grid)
    ]  # fmt: skip


def forty(root):
    """A sweep over five keys, whose labels were 415 letters long."""
    return [
        finished_run(root, f"trial_{n}", right(0.5 + n / 100), meta_learning_rate=0.001 * (1 + n),
                     learnable_bn_beta=n % 2 == 0, init_inner_loop_learning_rate=0.1 * (1 + n % 3),
                     cnn_num_filters=8 * (1 + n % 4), number_of_training_steps_per_iter=1 + n % 5,
                     val_accuracies=[0.5, 0.6 + n / 100, 0.55 + n / 100])
        for n in range(40)
    ]  # fmt: skip


def right(share):
    return (np.random.default_rng(0).random((30, 10)) < share).astype(int)


def sweep_page(folder):
    sweep = read_sweep(REPOSITORY_ROOT / "experiment_template_config" / "quickstart.sweep.toml")
    points = [
        {name: getattr(parameter, "low", None) or parameter.values[0] for name, parameter in sweep.parameters.items()}
    ]
    trials = [Trial(n, points[0], "complete", {1: 0.2 + n / 50}, "") for n in range(12)]
    trials.append(Trial(12, points[0], "failed", {}, f"exit code 1: {EVIL} " + "x" * 300))
    write_results(folder, sweep, trials)
    return folder / "sweep.html"


def sheet_page(folder):
    names = ["ant", "a class whose name is so long that no place is left for it " * 3, EVIL]
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 28, 28), dtype=np.uint8)
    result = {
        "classes": names, "support_images": images, "support_labels": names * 3, "query_images": images,
        "query_files": [folder / f"{n}.png" for n in range(9)], "predictions": names * 3, "labels": names[:1] * 9,
        "probabilities": np.tile([0.2, 0.5, 0.3], (9, 1)),
    }  # fmt: skip
    (folder / "sheet.html").write_text(contact_sheet(result, f"run adapted to {EVIL}"))
    return folder / "sheet.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Name -> address of a page, which is made where it is asked for first."""

    @functools.cache
    def address_of(name):
        folder = tmp_path_factory.mktemp(name)
        if name in ("sweep", "sheet"):
            return {"sweep": sweep_page, "sheet": sheet_page}[name](folder).as_uri()
        runs = {"two": two, "twelve": twelve, "forty": forty}[name](folder / "runs")
        assert compare([*map(str, runs), "--output", str(folder / "out")]) == 0
        return (folder / "out" / "comparison.html").as_uri()

    return address_of


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


NAMES = ("two", "twelve", "forty", "sweep", "sheet")


@pytest.mark.parametrize("name", few_of(NAMES, "twelve", "sweep", "sheet"))
def test_a_page_is_whole_wide_and_narrow_and_asks_for_nothing(browser, page, name):
    address = page(name)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    for width in (1280, 360):
        set_screen(browser, width)
        browser.get(address)
        browser.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        drawn = browser.execute_script(
            """return [...document.querySelectorAll('main svg, main img, main table')].map((part) => {
              const box = part.getBoundingClientRect(); return [box.width, box.height]; })"""
        )
        assert drawn and all(w > 50 and h > 15 for w, h in drawn)
        hidden = browser.execute_script(
            """return [...document.querySelectorAll('figure')].filter((figure) =>
              [...figure.querySelectorAll('figcaption, .bars, .legend, .lines')].some((part) =>
                part.getBoundingClientRect().right > figure.getBoundingClientRect().right + 1)).length"""
        )
        assert hidden == 0, "legends and labels end within their card"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {address}
    assert browser.execute_script("return window.reached") is None
    assert "\x1b" not in browser.page_source
    assert (FOLDER / "page.css").read_text().splitlines()[2] in browser.page_source, "one style for all"


def test_the_curves_of_forty_runs_have_forty_styles_and_a_legend_outside_the_picture(browser, page):
    from selenium.webdriver.support.ui import WebDriverWait

    set_screen(browser, 1280)
    browser.get(page("forty"))
    selector = "css selector", "#curves .legend li"
    WebDriverWait(browser, 30).until(lambda _: browser.find_elements(*selector))  # a chart is drawn when it is in view
    legend = browser.find_elements(*selector)
    styles = {(entry.get_attribute("class"), entry.get_attribute("style")) for entry in legend}
    assert len(legend) == len(styles) == 40
    chart = browser.find_element("css selector", "#curves svg.chart")
    assert max(entry.rect["y"] + entry.rect["height"] for entry in legend) <= chart.rect["y"]
    rows = browser.find_elements("css selector", "#results tbody tr")
    assert len(rows) == 40 and all(re.search(r"MAML \[\d+\]\n.*meta_learning_rate [\d.]+", row.text) for row in rows)
