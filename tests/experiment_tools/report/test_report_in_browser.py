"""The report of a run in headless Chromium: it draws, says nothing on the console, asks for nothing and fits a
phone.
"""

import json

import pytest

from experiment_tools.report.page import SECTIONS, write_report
from tests.tools.browser import chromium, set_screen
from tests.tools.runs import PLUS_PLUS, run_tiny

EVIL = "<script>window.reached = 1</script><img src=x onerror='window.reached = 1'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The report of a finished run whose names try to be markup."""
    changes = PLUS_PLUS | {"first_order_to_second_order_epoch": 0, "total_epochs": 3, "experiment_name": "x" * 150}
    folder = run_tiny(tmp_path_factory.mktemp("runs"), **changes)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dataset_path": EVIL, "tag": "y" * 300}))
    curves = folder / "logs" / "curves.json"
    curves.write_text(curves.read_text().replace("head.weight", json.dumps(EVIL)[1:-1] + ".weight"))
    return write_report(folder).as_uri()


def show(browser, address, width=1280, scheme="light"):
    set_screen(browser, width, scheme)
    browser.get(address)


def test_the_console_stays_silent_and_nothing_is_asked_for(browser, address):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    show(browser, address)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = {
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    }
    assert address in requested
    assert all(url == address or url.startswith("data:") for url in requested)
    assert browser.execute_script("return window.reached") is None


def test_every_section_is_there_with_something_in_it(browser, address):
    show(browser, address)
    sections = browser.execute_script(
        "return [...document.querySelectorAll('main > section')].map((s) => [s.id, "
        "s.querySelectorAll('figure').length, s.getBoundingClientRect().height])"
    )
    assert len(sections) == len(SECTIONS)
    assert all(height > 80 and (figures or name == "environment") for name, figures, height in sections)
    links = browser.execute_script("return [...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))")
    assert links == [name for name, _, _ in sections]


@pytest.mark.parametrize("width", [360, 1280])
def test_every_picture_is_drawn(browser, address, width):
    show(browser, address, width)
    charts = browser.execute_script(
        """return [...document.querySelectorAll('svg.chart')].map((chart) => {
          const box = chart.getBoundingClientRect();
          const marks = [...chart.querySelectorAll('.line, .area, .bar, .dot, .heat')]
              .map((mark) => mark.getBoundingClientRect());
          return [box.width, box.height, marks.filter((mark) => mark.width + mark.height > 1).length];
        })"""
    )
    assert len(charts) > 15
    assert all(w > 150 and h > 80 and marks > 0 for w, h, marks in charts)
    images = browser.execute_script(
        "return [...document.images].map((image) => [image.complete, image.naturalWidth, image.alt])"
    )
    assert len(images) == 4 * 3 * (1 + 2)
    assert all(complete and pixels == 10 and alt for complete, pixels, alt in images)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.strip, .sparkline')].map((s) => s.getBoundingClientRect().width)"
    )
    assert sizes and min(sizes) > 20


def test_a_phone_needs_no_horizontal_scrolling(browser, address):
    show(browser, address, 360)
    browser.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    small = browser.execute_script(
        """return [...document.querySelectorAll('svg.chart text')]
          .map((text) => text.getBoundingClientRect().height).filter((h) => h < 8)"""
    )
    assert small == []


def test_dark_mode_turns_page_and_text_over(browser, address):
    def colours(scheme):
        show(browser, address, scheme=scheme)
        style = "getComputedStyle(document.body)"
        return browser.execute_script(f"return [{style}.backgroundColor, {style}.color]")

    def brightness(colour):
        return sum(int(part) for part in colour[4:-1].split(",")) / 3

    light, dark = colours("light"), colours("dark")
    assert brightness(light[0]) > 230 and brightness(light[1]) < 60
    assert brightness(dark[0]) < 30 and brightness(dark[1]) > 220


def test_pointing_at_a_chart_names_its_values(browser, address):
    show(browser, address)
    text = browser.execute_script(
        """const chart = document.querySelector('#learning svg.chart'), box = chart.getBoundingClientRect();
        chart.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 20, clientY: box.top + 40}));
        return document.getElementById('tip').textContent;"""
    )
    assert text.startswith("epoch 3") and "training" in text and "validation" in text and "%" in text
    assert browser.get_log("browser") == []
