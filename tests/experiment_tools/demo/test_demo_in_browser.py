"""The demo page in headless Chromium: drawn by real pointer actions, a few examples are learned and a query gets the
right class.
"""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from experiment_tools.demo.__main__ import Demo, build_demo
from experiment_tools.demo.drawn_images import draw_strokes
from experiment_tools.demo.network import DemoNetwork, description
from few_shot_classifier import FewShotClassifier
from tests.tools.browser import chromium, set_screen
from tests.tools.servers import served

SHAPES = {
    "cross": [[(0.25, 0.25), (0.75, 0.75)], [(0.75, 0.25), (0.25, 0.75)]],
    "seven": [[(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]],
    "square": [[(0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3)]],
    "bars": [[(0.35, 0.2), (0.35, 0.8)], [(0.65, 0.2), (0.65, 0.8)]],
}
TIMEOUT_S = 20


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Trained for seconds on made-up characters, each drawn several times with a shaking hand."""
    monkeypatch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("experiments")
    monkeypatch.setenv("EXPERIMENTS_DIR", str(root))
    generator = np.random.default_rng(0)
    form = {
        "dataset_name": "images",
        "image_height": 28,
        "image_width": 28,
        "image_channels": 1,
        "resize_filter": "bilinear",
    }
    images, labels = [], []
    for character in range(24):
        strokes = [generator.uniform(0.2, 0.8, (3, 2)) for _ in range(2)]
        for _ in range(6):
            place = generator.normal(0, 0.04, 2)
            images.append(
                draw_strokes(
                    [(stroke + place + generator.normal(0, 0.02, stroke.shape)).tolist() for stroke in strokes], form
                )
            )
            labels.append(character)
    classifier = FewShotClassifier(
        experiment_name="characters",
        num_classes_per_set=4,
        num_target_samples=2,
        batch_size=4,
        cnn_num_filters=16,
        total_epochs=1,
        total_iter_per_epoch=20,
        num_evaluation_tasks=10,
        number_of_training_steps_per_iter=3,
        number_of_evaluation_steps_per_iter=3,
        class_rotation=False,
        report_every_s=0,
        meta_learning_rate=0.005,
    )
    classifier.meta_fit((np.stack(images), np.array(labels)))
    yield DemoNetwork(classifier)
    monkeypatch.undo()


@pytest.fixture(scope="module")
def demo(network):
    server = Demo(0, network, description(network, "characters"))
    with served(server):
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


def show(browser, demo, width=1280, scheme="light"):
    set_screen(browser, width, scheme)
    browser.get(demo.address)


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def draw(browser, canvas, strokes, shift=0.0, kind="mouse"):
    """Draw by actions of a pointer, as a hand does."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    left, top, side = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect(); return [box.left, box.top, box.width]", canvas
    )
    actions = ActionBuilder(browser, mouse=PointerInput(kind, f"a {kind}"), duration=10)
    for stroke in strokes:
        points = [(int(left + (x + shift) * side), int(top + (y - shift) * side)) for x, y in stroke]
        actions.pointer_action.move_to_location(*points[0])
        actions.pointer_action.pointer_down()
        for point in points[1:]:
            actions.pointer_action.move_to_location(*point)
        actions.pointer_action.pointer_up()
    actions.perform()


def wait_for(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, TIMEOUT_S, poll_frequency=0.05).until(lambda _: condition())


def teach(browser, kind="mouse"):
    find(browser, "#add-class")[0].click()
    for name, field, canvas in zip(SHAPES, find(browser, ".name"), find(browser, "#classes canvas"), strict=True):
        draw(browser, canvas, SHAPES[name], kind=kind)
        field.clear()
        field.send_keys(name)


def answer(browser):
    """The class that wins once the page has answered the newest drawing; read at once, before the next answer."""
    return wait_for(
        browser,
        lambda: browser.execute_script(
            "const winner = document.querySelector('#verdict b');"
            "return document.querySelector('#query .seen').hidden === false && winner && winner.textContent"
        ),
    )


@pytest.fixture(scope="module")
def ready_made():
    """The demo of weights that come with the project, as its command builds it."""
    options = argparse.Namespace(
        plugin=None,
        experiment=None,
        pretrained="omniglot_5way_1shot",
        checkpoint="best",
        statistics="support",
        steps=None,
        port=0,
    )
    with build_demo(options) as server, served(server):
        yield server


@pytest.mark.parametrize(("which", "steps"), [pytest.param("demo", 3, marks=pytest.mark.full), ("ready_made", 5)])
def test_drawn_examples_are_learned_and_the_right_class_wins_on_every_query(browser, request, which, steps):
    demo = request.getfixturevalue(which)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    show(browser, demo)
    teach(browser)
    query, clear = find(browser, "#query canvas")[0], find(browser, "#query .clear")[0]
    for name in SHAPES:
        clear.click()
        wait_for(browser, lambda: not find(browser, "#verdict b"))
        draw(browser, query, SHAPES[name], shift=0.03)
        wait_for(browser, lambda name=name: answer(browser) == name)
        rows = browser.execute_script(
            "return [...document.querySelectorAll('.track')].map((track) => [...track.children].map((bar) => "
            "parseFloat(bar.style.getPropertyValue('--p'))))"
        )
        assert len(rows) == 4 and all(len(row) == steps + 1 for row in rows)
        assert max(rows, key=lambda row: row[-1]) == rows[list(SHAPES).index(name)]
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = {
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    }
    assert requested and all(url.startswith((demo.address, "data:", "blob:")) for url in requested)


def test_a_page_of_a_run_on_photographs_speaks_of_pictures(browser, demo, monkeypatch):
    monkeypatch.setitem(demo.start, "drawings", False)
    show(browser, demo)
    text = find(browser, "body")[0].text
    for sentence in ("Drop a picture of each class", "Drop or choose another", "never seen your pictures"):
        assert sentence in text
    assert "Draw" not in text and "drawing" not in text and "then drop a picture here" in text


def test_a_second_client_does_not_see_the_drawings_of_the_first(browser, demo):
    show(browser, demo)
    first = browser.current_window_handle
    teach(browser)
    draw(browser, find(browser, "#query canvas")[0], SHAPES["bars"])
    assert answer(browser)
    token = "return JSON.parse(document.body.dataset.start).session"
    name = browser.execute_script(token)
    browser.switch_to.new_window("tab")
    show(browser, demo)
    assert browser.execute_script(token) != name
    drawn = """return [...document.querySelectorAll('canvas')].filter((canvas) => {
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return pixels.filter((value, i) => i % 4 === 3 && value > 250).length > 900; }).length"""
    assert browser.execute_script(drawn) == 0 and not find(browser, "#verdict b")
    stolen = browser.execute_async_script(
        """const done = arguments[0], session = JSON.parse(document.body.dataset.start).session;
        fetch('/classify', {method: 'POST', body: JSON.stringify({classes: [[1], [2]], query: 3}),
            headers: {'X-Session': session}}).then((r) => done(r.status))"""
    )
    assert stolen == 410
    browser.close()
    browser.switch_to.window(first)
    assert browser.execute_script(drawn) == 5


def test_a_finger_on_a_phone_draws_and_nothing_needs_horizontal_scrolling(browser, demo):
    show(browser, demo, 360, "dark")
    teach(browser, "touch")
    draw(browser, find(browser, "#query canvas")[0], SHAPES["square"], shift=0.02, kind="touch")
    wait_for(browser, lambda: answer(browser) == "square")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    small = (
        "return [...document.querySelectorAll('button, input, label')].filter((e) => e.getBoundingClientRect().height "
        "< 24 && e.offsetParent).map((e) => e.className)"
    )
    assert browser.execute_script(small) == []
    colours = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    background, ink = (sum(int(part) for part in colour[4:-1].split(",")) / 3 for colour in colours)
    assert background < 30 and ink > 220


def test_the_keyboard_draws_too(browser, demo):
    from selenium.webdriver.common.keys import Keys

    show(browser, demo)
    first, second, *_ = find(browser, "#classes canvas")
    query = find(browser, "#query canvas")[0]
    across, down = [" ", *[Keys.ARROW_RIGHT] * 8, " "], [" ", *[Keys.ARROW_DOWN] * 8, " "]
    for canvas, keys in ((first, across), (second, down), (query, down)):
        canvas.send_keys(*keys)
    wait_for(browser, lambda: answer(browser) == "B")
    query.send_keys(Keys.DELETE)
    wait_for(browser, lambda: not find(browser, "#verdict b"))


def test_a_picture_is_an_example_and_one_that_is_none_is_refused(browser, demo, tmp_path):
    show(browser, demo)
    paths = []
    for name, strokes in list(SHAPES.items())[:2]:
        pixels = draw_strokes(strokes, demo.network.config | {"image_height": 90, "image_width": 120})[0]
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(paths[-1])
    inputs = find(browser, "#classes input[type=file]")
    for entry, path in zip(inputs, paths, strict=False):
        entry.send_keys(str(path))
    find(browser, "#query input[type=file]")[0].send_keys(str(paths[1]))
    wait_for(browser, lambda: answer(browser) == "B")
    (tmp_path / "broken.png").write_bytes(b"no image")
    find(browser, "#query input[type=file]")[0].send_keys(str(tmp_path / "broken.png"))
    problem = find(browser, "#problem")[0]
    wait_for(browser, lambda: "no image that can be read" in problem.text)
    (tmp_path / "large.png").write_bytes(bytes(12_000_001))
    inputs[2].send_keys(str(tmp_path / "large.png"))
    wait_for(browser, lambda: "large.png is larger than 12 MB" in problem.text)
