"""The explorer: its pure functions, and the page in a real browser (Debian's chromium and chromium-driver)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from hf_warmcos.schedule import WARMUP_MODES

FOLDER = Path(__file__).parents[1] / "examples" / "explorer"


def _load_app():
    spec = importlib.util.spec_from_file_location("explorer_app", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


app = _load_app()


def sometimes(strategy):
    """What may be in a field of the page: text of a value, or nothing."""
    return st.just("") | strategy.map(str)


some_settings = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-6, 1).map(str),
        "num_training_steps": st.integers(50, 500).map(str),
        "num_warmup_steps": sometimes(st.integers(0, 40)),
        "num_cycles": sometimes(st.integers(1, 5)),
        "decay": sometimes(st.floats(0.1, 1)),
        "T_mult": sometimes(st.sampled_from([0.75, 1, 1.5, 2])),
        "warmup_mode": sometimes(st.sampled_from(WARMUP_MODES)),
        "stable_ratio": sometimes(st.floats(0, 0.95)),
        "T_0": sometimes(st.integers(1, 100) | st.floats(10, 100)),
        "min_lr": sometimes(st.floats(0, 1e-3)),
        "warmup_lr_rate": sometimes(st.floats(0, 1)),
    }
) | st.fixed_dictionaries(
    {"num_training_steps": st.just("100"), "cycles": st.sampled_from(["30,70", "50:2,100:0.5", "7"])}
)


@settings(deadline=None)
@given(some_settings)
@pytest.mark.filterwarnings("ignore:Training ends inside a cycle", "ignore:The learning rate stays at its minimum")
def test_the_code_of_the_scheduler_and_of_the_factory_makes_the_rates_of_the_settings(chosen):
    try:
        made = app.plan(chosen)
    except ValueError:
        return
    rates = made.schedule.curve(made.num_steps, made.base_lr, made.eta_min)
    for code in (app.scheduler_code(made), app.factory_code(made)):
        names = {"model": torch.nn.Linear(1, 1)}
        exec(code, names)
        scheduler = names["scheduler"]
        assert scheduler.base_lrs == [made.base_lr]
        np.testing.assert_array_equal(
            scheduler.schedule.curve(made.num_steps, made.base_lr, scheduler.eta_mins[0]), rates
        )


@pytest.mark.parametrize("query", app.PRESETS.values(), ids=app.PRESETS)
def test_each_preset_is_a_schedule_that_fits_its_training(query):
    answer = app.describe([dict(parse_qsl(query))])
    assert answer["note"] is None
    assert {name for name, _ in parse_qsl(query)} <= {*app.NAMES}


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"num_warmup_steps": "10001"}, "num_warmup_steps"),
        ({"T_0": "100", "T_mult": "0.5"}, "num_cycles"),
        ({"min_lr": "1e-5", "min_lr_rate": "0.1"}, "min_lr"),
        ({"num_cycles": "4", "warmup_mode": "every_cycle", "num_warmup_steps": "2500"}, "num_warmup_steps"),
        ({"decay": "0"}, "decay"),
        ({"lr": "-1"}, "lr"),
        ({"T_0": "many"}, "T_0"),
        ({"cycles": "10,x"}, "cycles"),
        ({"cycles": "10", "T_0": "5"}, "cycles"),
        ({"warmup_mode": "sideways"}, "warmup_mode"),
        ({"num_training_steps": ""}, "T_0"),
    ],
)
def test_an_error_of_the_library_is_about_an_argument(change, argument):
    answer = app.describe([{"num_training_steps": "10000"} | change])
    assert answer["error"].startswith("Expected ")
    assert answer["argument"] == argument


def test_10_to_the_11_cycles_are_shown_in_the_time_of_four():
    before = time.process_time()
    answer = app.describe([{"num_training_steps": "1e12", "T_0": "10"}])
    assert time.process_time() - before < 1
    assert len(answer["rows"]) == app.MOST_ROWS
    assert answer["curves"][0]["marks"]["restart"] == []


def test_warmup_plateau_and_restarts_are_marked():
    answer = app.describe([{"T_0": "100", "num_cycles": "2", "num_warmup_steps": "20", "stable_ratio": "0.5"}])
    marks = {"warmup": [(0, 20)], "plateau": [(20, 70), (120, 170)], "restart": [(120, 120)]}
    assert answer["curves"][0]["marks"] == marks


def test_the_front_matter_names_the_app():
    front_matter = (FOLDER / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front_matter
    assert (FOLDER / re.search(r"app_file: (\S+)", front_matter)[1]).is_file()


# The page.


@pytest.fixture(scope="module")
def address():
    """The address of the app, served on this machine alone by a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=FOLDER, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            for line in server.stdout:
                if b"Running on local URL" in line:
                    break
            else:
                pytest.fail("The app ended before it was served")
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    # pip cannot install a browser. Where the tests decide whether a change is taken, there has to be one.
    if not (chromium and chromedriver) and "CI" not in os.environ:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the app at a query, in a window of a size, and waits for its first answer."""

    def open_page(query="", *, width=1280, height=900, dark=False):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get("about:blank")
        browser.get(f"{address}?{query}")
        until(lambda: browser.find_elements(By.CSS_SELECTOR, ".curve, .error:not(:empty)"))
        return browser

    def until(condition):
        return WebDriverWait(browser, 20, poll_frequency=0.02).until(lambda _: condition())

    open_page.until = until
    return open_page


def field(browser, name):
    return browser.find_element(By.ID, name)


def slider(browser, name):
    return browser.find_element(By.CSS_SELECTOR, f"input[aria-label='{name}, slider']")


def retype(browser, name, text):
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        field(browser, name),
        text,
    )


def curves(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('.curve')].map(line => line.getAttribute('points'))"
    )


def shown_table(browser):
    rows = browser.execute_script(
        "return [...document.querySelectorAll('.cycles tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    )
    return [[float(cell.replace(",", "")) for cell in row] for row in rows[1:]]


def press(browser, action):
    browser.find_element(By.CSS_SELECTOR, f"[data-do={action}]").click()


def copied_by(browser, action):
    """What a button puts on the clipboard."""
    browser.execute_async_script("navigator.clipboard.writeText('').then(arguments[0])")
    press(browser, action)
    return WebDriverWait(browser, 10).until(
        lambda _: browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    )


def copied_code(browser, kind):
    browser.find_element(By.XPATH, f"//section[@aria-label='Code']//option[.='{kind}']").click()
    return copied_by(browser, "copy")


# Runs each code that was copied, in names of its own: with a model and data where it asks for them, and with a loop
# where it has none. Prints the rates that the optimizer's steps really used.
RUN_CODES = """
import json, sys, torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

class Model(torch.nn.Linear):
    def forward(self, x, labels=None):
        return {"loss": super().forward(x).sum()}

rates = []
register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
codes, num_training_steps = json.load(sys.stdin)
used = []
for code in codes:
    names = {"model": Model(1, 1), "train_dataset": [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8}
    exec(code, names)
    if "trainer" not in names:
        for step in range(num_training_steps):
            names["optimizer"].step()
            names["scheduler"].step()
    used.append(rates.copy())
    rates.clear()
print(json.dumps(used))
"""


def used_rates(codes, num_training_steps, folder):
    ran = subprocess.run(
        [sys.executable, "-c", RUN_CODES],
        input=json.dumps([codes, num_training_steps]),
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_moved_slider_changes_the_curve_and_the_copied_code_makes_the_rates_shown(open_page, tmp_path):
    page = open_page("num_training_steps=100&num_warmup_steps=10&num_cycles=3&min_lr_rate=0.1&warmup_mode=overlap")
    before = curves(page)
    slider(page, "decay").send_keys(Keys.ARROW_LEFT * 5)
    open_page.until(lambda: curves(page) != before and "decay=0.95&" in page.current_url)
    open_page.until(lambda: shown_table(page)[2][3] == 0.0009025)
    cycles = shown_table(page)
    assert [cycle[3] for cycle in cycles] == [0.001, 0.00095, 0.0009025]
    codes = [copied_code(page, kind) for kind in app.CODES]
    assert len(set(codes)) == 3
    for rates in used_rates(codes, 100, tmp_path):
        assert len(rates) == 100
        for index, start, length, peak_lr, end_lr in cycles:
            if index > 0:  # the warmup lies over the first peak
                assert rates[int(start)] == pytest.approx(peak_lr, rel=1e-5)
            assert rates[int(start + length) - 1] == pytest.approx(end_lr, rel=1e-5)


@pytest.mark.slow
def test_a_slider_suits_300_steps_and_200_000(open_page):
    page = open_page("num_training_steps=300")
    steps = slider(page, "num_training_steps")
    positions = []
    for number in ("300", "200000"):
        retype(page, "num_training_steps", number)
        positions.append(int(steps.get_attribute("value")))
    assert 200 < positions[0] < positions[1] - 300 < 700
    steps.send_keys(Keys.ARROW_LEFT)
    assert field(page, "num_training_steps").get_attribute("value") == "200000"  # of two digits, nearest to the place
    steps.send_keys(Keys.HOME)
    assert field(page, "num_training_steps").get_attribute("value") == "10"


@pytest.mark.slow
def test_a_link_opens_with_its_settings_and_those_to_compare_with_and_the_copied_link_holds_them(open_page):
    query = "num_training_steps=250000&decay=0.5&T_0=12345&warmup_mode=every_cycle"
    page = open_page(query)
    assert page.current_url.endswith(query)
    assert field(page, "num_training_steps").get_attribute("value") == "250000"
    assert field(page, "warmup_mode").get_attribute("value") == "every_cycle"
    assert shown_table(page)[1][:3] == [1, 12345, 12345]
    press(page, "keep")
    retype(page, "decay", "0.9")
    open_page.until(lambda: len(set(curves(page))) == 2)
    link = copied_by(page, "link")
    before = curves(page)
    page = open_page(link.split("?")[1])
    assert page.current_url == link
    assert curves(page) == before
    press(page, "keep")
    open_page.until(lambda: len(curves(page)) == 1)


@pytest.mark.slow
def test_an_error_is_beside_its_argument_over_a_dimmed_last_picture_until_it_is_mended(open_page):
    page = open_page("num_training_steps=100&num_cycles=3")
    before = curves(page)
    retype(page, "num_warmup_steps", "101")
    message = field(page, "num_warmup_steps-error")
    open_page.until(lambda: message.text)
    assert message.text == "Expected num_warmup_steps <= num_training_steps=100, but got num_warmup_steps=101"
    assert curves(page) == before
    picture = page.find_element(By.CSS_SELECTOR, ".svg")
    assert float(picture.value_of_css_property("opacity")) < 0.5
    assert field(page, "num_warmup_steps").get_attribute("aria-invalid") == "true"
    retype(page, "num_warmup_steps", "10")
    open_page.until(lambda: not message.text and curves(page) != before)
    assert float(picture.value_of_css_property("opacity")) == 1


@pytest.mark.slow
def test_the_downloaded_picture_is_the_one_that_is_shown(open_page, tmp_path):
    page = open_page()
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    press(page, "picture")
    open_page.until(lambda: (tmp_path / "schedule.svg").exists())
    assert curves(page)[0] in (tmp_path / "schedule.svg").read_text()


@pytest.mark.slow
def test_the_first_picture_takes_less_than_3_seconds_and_a_change_less_than_three_tenths(open_page):
    started = time.perf_counter()
    page = open_page()
    assert time.perf_counter() - started < 3
    times = page.execute_async_script(
        """
        const done = arguments[0], decay = document.getElementById("decay"), times = [];
        const points = () => document.querySelector(".curve").getAttribute("points");
        for (let change = 0; change < 10; change++) {
            const before = points(), started = performance.now();
            decay.value = 0.5 + change / 100;
            decay.dispatchEvent(new Event("input", { bubbles: true }));
            while (points() === before) await new Promise(requestAnimationFrame);
            times.push(performance.now() - started);
        }
        done(times);
    """.replace("const done", "(async () => { const done", 1)
        + "})()"
    )
    assert statistics.median(times) < 300


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_its_window_and_shows_code_and_curve_without_scrolling(open_page, width, dark, tmp_path):
    height = 812 if width == 375 else 900
    page = open_page(width=width, height=height, dark=dark)
    folder = Path(os.environ.get("HF_WARMCOS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"explorer-{width}-{'dark' if dark else 'light'}.png"
    page.save_screenshot(str(picture))
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

    def box(selector):
        return page.execute_script(
            "const {top, bottom} = document.querySelector(arguments[0]).getBoundingClientRect(); return [top, bottom]",
            selector,
        )

    # The curve stays in sight while the last control is moved.
    page.execute_script("arguments[0].scrollIntoView({block: 'end'})", slider(page, "warmup_lr_rate"))
    top, bottom = box(".svg")
    assert (top >= 0, bottom <= height) == (True, True)
    page.execute_script("window.scrollTo(0, 0)")
    if width == 375:
        page.find_element(By.CSS_SELECTOR, ".tabs [data-tab=code]").click()
    top, bottom = box(".code pre")
    assert (top > 0, bottom <= height) == (True, True)


@pytest.mark.slow
def test_every_control_has_a_name_for_screen_readers_and_the_picture_a_description(open_page):
    page = open_page()
    controls = page.find_elements(By.CSS_SELECTOR, ".explorer :is(input, select, button, svg)")
    names = [control.accessible_name for control in controls if control.is_displayed()]
    assert len(names) > 30
    assert "" not in names
    assert "Learning rate over 10,000 steps: 3 cycles, peaks from 0.001 to 0.001" in names


@pytest.mark.slow
def test_the_page_asks_nobody_but_its_own_server(open_page, address):
    page = open_page()
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert all(name.startswith(address) for name in asked)
