"""The explorer: its pure functions, and the page in a real browser (Debian's chromium and chromium-driver)."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
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

some_settings = st.builds(
    app.Settings,
    lr=st.floats(1e-6, 1),
    num_training_steps=st.integers(50, 500),
    num_warmup_steps=st.integers(0, 40),
    num_cycles=st.integers(0, 5),
    decay=st.floats(0.1, 1),
    T_mult=st.sampled_from([0.75, 1, 1.5, 2]),
    warmup_mode=st.sampled_from(WARMUP_MODES),
    T_0=st.one_of(st.just(0), st.integers(10, 100), st.floats(10, 100)),
    min_lr=st.one_of(st.just(0), st.floats(0, 1e-3)),
    min_lr_rate=st.one_of(st.just(0), st.floats(0, 1)),
    warmup_lr_rate=st.floats(0, 1),
)


@given(some_settings)
def test_a_link_holds_every_setting(chosen):
    assert app.settings_from_query(app.query_from_settings(chosen)) == chosen


def test_a_link_to_the_defaults_is_empty_and_a_link_that_says_nothing_sensible_opens_them():
    assert app.query_from_settings(app.Settings()) == ""
    assert app.settings_from_query("decay=much&unknown=1&__theme=dark") == app.Settings()


@settings(deadline=None)
@given(some_settings)
@pytest.mark.filterwarnings("ignore:Training ends inside a cycle")
def test_the_code_of_the_class_and_of_the_factory_makes_the_rates_of_the_settings(chosen):
    try:
        expected = chosen.scheduler()
    except ValueError:
        return
    rates = expected.schedule.curve(chosen.num_training_steps, expected.base_lrs[0], expected.eta_mins[0])
    for code in (app.class_code(chosen), app.factory_code(chosen)):
        names = {}
        exec(code, names)
        made = names["scheduler"]
        assert made.base_lrs == [chosen.lr]
        np.testing.assert_array_equal(
            made.schedule.curve(chosen.num_training_steps, made.base_lrs[0], made.eta_mins[0]), rates
        )


@pytest.mark.parametrize(
    "change",
    [
        {"num_warmup_steps": 10_001},
        {"num_cycles": 0, "T_0": 100, "T_mult": 0.5},
        {"min_lr": 1e-5, "min_lr_rate": 0.1},
        {"warmup_mode": "every_cycle", "num_warmup_steps": 2_500},
        {"decay": 0},
        {"lr": -1},
    ],
)
def test_a_bad_combination_shows_the_librarys_own_error_and_nothing_else(change):
    chosen = replace(app.Settings(), **change)
    with pytest.raises((TypeError, ValueError)) as raised:
        chosen.scheduler()
    message, *shown, query = app.show(*vars(chosen).values())
    assert message == app._message("error", str(raised.value))
    assert not any(shown)
    assert app.settings_from_query(query) == chosen


def test_training_that_ends_inside_a_cycle_is_noted_in_the_librarys_own_words():
    message, *_ = app.show(*vars(replace(app.Settings(), num_cycles=0, T_0=3_000)).values())
    assert message.count('class="note"') == 1
    assert "Training ends inside a cycle" in message


def test_an_emptied_box_is_at_its_default():
    assert app.show(*[None] * len(app._CONTROLS))[-1] == ""


def test_the_controls_are_the_settings_and_the_front_matter_names_the_app():
    assert [*app._CONTROLS] == [*vars(app.Settings())]
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
    """A function that opens the app at a query, in a window of a size, and waits for the curve."""

    def open_page(query="", *, width=1280, height=900, dark=False, waits_for="#curve svg path, #message .error"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get("about:blank")
        browser.get(f"{address}?{query}")
        until(lambda: browser.find_elements(By.CSS_SELECTOR, waits_for))
        until(lambda: browser.find_elements(By.CSS_SELECTOR, "#cycles td, #message .error"))
        return browser

    def until(condition):
        return WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: condition())

    open_page.until = until
    return open_page


def control(browser, name, kind="range"):
    return browser.find_element(By.CSS_SELECTOR, f"input[type={kind}][aria-label*='{name}']")


def drawn_curve(browser):
    """The curve's path, once it has stopped changing."""

    def path(_=None):
        paths = browser.execute_script(
            "return [...document.querySelectorAll('#curve svg path')].map(path => path.getAttribute('d') || '')"
        )
        return max(paths, key=len, default="")

    def settled_path(_):
        before = path()
        time.sleep(0.3)
        return before if before == path() else ""

    return WebDriverWait(browser, 20).until(settled_path)


def shown_table(browser):
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#cycles tbody tr')].map(row => row.innerText.trim().split(/\\s+/))"
    )
    return [[float(cell) for cell in row] for row in rows]


def shown_rates(browser, shares=(0.1, 0.4, 0.8)):
    """Step and rate, as the curve's tooltip gives them, at some shares of its width."""
    curve = browser.find_element(By.CSS_SELECTOR, "#curve svg")
    rates = {}
    for share in shares:
        offset = int((share - 0.5) * curve.size["width"])
        ActionChains(browser, duration=50).move_to_element_with_offset(curve, offset, 0).perform()
        text = WebDriverWait(browser, 10).until(
            lambda _: re.search(
                r"learning rate\s+(\S+)\s+step\s+([\d,]+)", browser.find_element(By.ID, "vg-tooltip-element").text
            )
        )
        rates[int(text[2].replace(",", ""))] = float(text[1])
    return rates


def copied_code(browser, tab):
    browser.find_element(By.XPATH, f"//button[@role='tab' and normalize-space()='{tab}']").click()
    button = WebDriverWait(browser, 10).until(
        lambda _: [b for b in browser.find_elements(By.CSS_SELECTOR, "button[aria-label=Copy]") if b.is_displayed()]
    )[0]
    return copied_by(browser, button)


def copied_by(browser, button):
    """What a button puts on the clipboard."""
    browser.execute_async_script("navigator.clipboard.writeText('').then(arguments[0])")
    button.click()
    return WebDriverWait(browser, 10).until(
        lambda _: browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    )


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
    before = drawn_curve(page)
    control(page, "decay").send_keys(Keys.ARROW_LEFT * 5)
    open_page.until(lambda: "decay=0.7&" in page.current_url)
    assert drawn_curve(page) != before
    cycles, rates_in_curve = shown_table(page), shown_rates(page)
    assert [cycle[3] for cycle in cycles] == pytest.approx([0.001, 0.0007, 0.00049])
    assert len(rates_in_curve) == 3
    codes = [copied_code(page, tab) for tab in ("Scheduler class", "Factory", "Trainer")]
    assert len(set(codes)) == 3
    for rates in used_rates(codes, 100, tmp_path):
        assert len(rates) == 100
        for step, rate in rates_in_curve.items():
            assert rates[step] == pytest.approx(rate, rel=1e-5)
        for index, start, length, peak_lr, end_lr in cycles:
            if index > 0:  # the warmup lies over the first peak
                assert rates[int(start)] == pytest.approx(peak_lr, rel=1e-5)
            assert rates[int(start + length) - 1] == pytest.approx(end_lr, rel=1e-5)


@pytest.mark.slow
def test_a_link_opens_with_its_settings_and_the_copied_link_holds_them(open_page):
    query = "num_training_steps=250000&num_cycles=0&decay=0.5&warmup_mode=every_cycle&T_0=12345"
    page = open_page(query)
    open_page.until(lambda: page.current_url.endswith(query))
    assert control(page, "num_training_steps", "number").get_attribute("value") == "250000"
    assert control(page, "T_0", "number").get_attribute("value") == "12345"
    assert page.find_element(By.CSS_SELECTOR, "input[type=radio]:checked").get_attribute("value") == "every_cycle"
    assert shown_table(page)[1][:3] == [1, 12345, 12345]
    button = page.find_element(By.XPATH, "//button[normalize-space()='Copy link to these settings']")
    assert copied_by(page, button) == page.current_url


@pytest.mark.slow
def test_the_page_shows_the_librarys_error_and_recovers(open_page):
    page = open_page("num_training_steps=100&num_warmup_steps=101&num_cycles=3")
    message = page.find_element(By.CSS_SELECTOR, "#message [role=alert]")
    assert message.text == "Expected num_warmup_steps <= num_training_steps=100, but got num_warmup_steps=101"
    assert "Traceback" not in page.page_source
    control(page, "num_warmup_steps").send_keys(Keys.HOME)
    open_page.until(lambda: page.find_elements(By.CSS_SELECTOR, "#curve svg path"))
    open_page.until(lambda: not page.find_elements(By.CSS_SELECTOR, "#message [role=alert]"))


@pytest.mark.slow
def test_every_control_and_button_is_reached_by_the_tab_key_and_a_choice_made_by_the_space_bar(open_page):
    page = open_page()
    reached = []
    for _ in range(60):
        ActionChains(page, duration=0).send_keys(Keys.TAB).perform()
        reached.append(
            page.execute_script("const e = document.activeElement; return e.ariaLabel || e.value || e.innerText.trim()")
        )
    for name in app._CONTROLS:
        if name != "warmup_mode":
            assert any(name in label for label in reached), name
    assert {"prefix", "Scheduler class", "Copy", "Copy link to these settings"} <= set(reached)
    page.find_element(By.CSS_SELECTOR, "input[type=radio][value=every_cycle]").send_keys(Keys.SPACE)
    open_page.until(lambda: "warmup_mode=every_cycle" in page.current_url)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_its_window_in_light_and_dark(open_page, width, dark, tmp_path):
    page = open_page(width=width, height=812 if width == 375 else 1000, dark=dark)
    folder = Path(os.environ.get("HF_WARMCOS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"explorer-{width}-{'dark' if dark else 'light'}"
    drawn_curve(page)
    page.save_screenshot(str(folder / f"{name}.png"))
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    background = np.asarray(Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("L"))[:10].mean()
    assert background < 64 if dark else background > 192
    # The curve stays in sight while the last control is moved.
    page.execute_script("arguments[0].scrollIntoView({block: 'end'})", control(page, "warmup_lr_rate"))
    page.save_screenshot(str(folder / f"{name}-scrolled.png"))
    top, bottom = page.execute_script(
        "const box = document.getElementById('curve').getBoundingClientRect(); return [box.top, box.bottom]"
    )
    assert top >= 0
    assert bottom <= page.execute_script("return window.innerHeight")


@pytest.mark.slow
def test_the_page_asks_nobody_but_its_own_server(open_page, address):
    page = open_page()
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert all(name.startswith(address) for name in asked)
