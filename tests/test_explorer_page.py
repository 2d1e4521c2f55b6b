"""The explorer's page in a real browser (Debian's chromium and chromium-driver)."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import set_window, start_chromium
from explorer import APP, ROOT, app, trained
from matplotlib import image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait


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
        [sys.executable, "-u", APP], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
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
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the app at a query, in a window of a size, and waits for its first answer."""

    def open_page(query="", *, width=1280, height=900, dark=False):
        set_window(browser, width=width, height=height, dark=dark)
        browser.get("about:blank")
        browser.get(f"{address}?{query}")
        until(lambda: browser.find_elements(By.CSS_SELECTOR, ".svg svg, .error:not(:empty)"))
        return browser

    def until(condition):
        return WebDriverWait(browser, 120, poll_frequency=0.02).until(lambda _: condition())

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


def picture(browser):
    return browser.execute_script("return document.querySelector('.svg').innerHTML")


def choose(browser, select, option):
    """Choose an option of the select that has this name."""
    named = [each for each in browser.find_elements(By.TAG_NAME, "select") if each.accessible_name == select]
    Select(named[0]).select_by_visible_text(option)


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
    return WebDriverWait(browser, 120).until(
        lambda _: browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    )


def copied_code(browser, kind):
    choose(browser, "Kind of code", kind)
    return copied_by(browser, "copy")


# Runs each code that was copied, in names of its own: with a model and data where it asks for them, and with a loop
# where it has none. Prints the learning rates that the optimizer's steps really used. It is also the script that
# `hf-warmcos run` runs, then with TrainingArguments out of its command line.
TRAIN = """
import json, sys, torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import HfArgumentParser, Trainer, TrainingArguments

class Model(torch.nn.Linear):
    def forward(self, x, labels=None):
        return {"loss": super().forward(x).sum()}

rates = []
register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
train_dataset = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
if len(sys.argv) > 1:
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    Trainer(Model(1, 1), args, train_dataset=train_dataset).train()
    print(json.dumps(rates))
    sys.exit()
codes, num_training_steps = json.load(sys.stdin)
for code in codes:
    names = {"model": Model(1, 1), "train_dataset": train_dataset, "loader": torch.utils.data.DataLoader(train_dataset)}
    rates.clear()
    exec(code, names)
    if "trainer" not in names:
        for step in range(num_training_steps):
            names["optimizer"].step()
            names["scheduler"].step()
    print(json.dumps(rates))
"""


def used_rates(codes, num_training_steps, folder):
    """The learning rates that the optimizer's steps used, by the kind of the code that was run."""
    (folder / "train.py").write_text(TRAIN)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ACCELERATE_USE_CPU": "true",
    }
    python = {kind: code for kind, code in codes.items() if "\n" in code and kind != "hf-warmcos run"}
    kwargs = codes["lr_scheduler_kwargs (JSON)"]
    python["lr_scheduler_kwargs (JSON)"] = re.sub(
        r"lr_scheduler_kwargs=\{.*\}", f"lr_scheduler_kwargs='{kwargs}'", codes["Trainer"], flags=re.DOTALL
    )
    printed = []
    for command, text in (
        ("python train.py", json.dumps([[*python.values()], num_training_steps])),
        (codes["hf-warmcos run"], ""),
    ):
        ran = subprocess.run(
            ["bash", "-c", command], input=text, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        printed += [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    return dict(zip([*python, "hf-warmcos run"], printed, strict=True))


@pytest.mark.slow
def test_a_moved_slider_changes_the_curve_and_the_copied_code_makes_the_learning_rates_shown(open_page, tmp_path):
    page = open_page("num_training_steps=100&num_warmup_steps=10&num_cycles=3&min_lr_rate=0.1&warmup_mode=overlap")
    before = picture(page)
    slider(page, "decay").send_keys(Keys.ARROW_LEFT * 5)
    open_page.until(lambda: picture(page) != before and "decay=0.95&" in page.current_url)
    open_page.until(lambda: shown_table(page)[2][3] == 0.0009025)
    cycles = shown_table(page)
    assert [cycle[3] for cycle in cycles] == [0.001, 0.00095, 0.0009025]
    codes = {kind: copied_code(page, kind) for kind in app.CODES}
    used = used_rates(codes, 100, tmp_path)
    assert {*used} == {*app.CODES} == {*codes}
    for kind, rates in used.items():
        assert len(rates) == 100, kind
        for index, start, length, peak_lr, end_lr in cycles:
            if index > 0:  # the warmup lies over the first peak
                assert rates[int(start)] == pytest.approx(peak_lr, rel=1e-5), kind
            assert rates[int(start + length) - 1] == pytest.approx(end_lr, rel=1e-5), kind


@pytest.mark.slow
def test_one_press_of_an_arrow_key_changes_what_a_slider_says(open_page):
    page = open_page("num_training_steps=12345&lr=1e-3")
    for control in app.CONTROLS:
        said = field(page, control.name).get_attribute("value")
        at_its_end = control.name == "decay"
        slider(page, control.name).send_keys(Keys.ARROW_LEFT if at_its_end else Keys.ARROW_RIGHT)
        assert field(page, control.name).get_attribute("value") not in (said, control.default or said), control.name
    assert field(page, "lr").get_attribute("value") == "1.1e-3"
    assert field(page, "num_training_steps").get_attribute("value") == "13000"


@pytest.mark.slow
def test_a_slider_suits_300_steps_and_200_000_however_they_are_typed(open_page):
    page = open_page("num_training_steps=300")
    steps = slider(page, "num_training_steps")
    positions = []
    for number in ("300", "200,000", "200000"):
        retype(page, "num_training_steps", number)
        positions.append(int(steps.get_attribute("value")) / int(steps.get_attribute("max")))
    assert 0.2 < positions[0] < positions[1] - 0.3 == positions[2] - 0.3 < 0.7
    steps.send_keys(Keys.ARROW_LEFT)
    assert field(page, "num_training_steps").get_attribute("value") == "190000"
    steps.send_keys(Keys.HOME)
    assert field(page, "num_training_steps").get_attribute("value") == "10"


@pytest.mark.slow
def test_a_link_opens_with_its_settings_and_those_to_compare_with_and_the_copied_link_holds_them(open_page):
    query = "num_training_steps=250000&decay=0.5&T_0=12345&warmup_mode=every_cycle&yscale=log"
    page = open_page(query)
    assert page.current_url.endswith(query)
    assert field(page, "num_training_steps").get_attribute("value") == "250000"
    assert field(page, "warmup_mode").get_attribute("value") == "every_cycle"
    assert shown_table(page)[1][:3] == [1, 12345, 12345]
    press(page, "keep")
    open_page.until(lambda: "<!-- kept to compare -->" in picture(page))
    retype(page, "decay", "0.9")
    open_page.until(lambda: shown_table(page)[1][3] == 0.0009)
    link = copied_by(page, "link")
    before = picture(page)
    page = open_page(link.split("?")[1])
    assert page.current_url == link
    assert picture(page) == before
    press(page, "keep")
    open_page.until(lambda: "<!-- kept to compare -->" not in picture(page))


@pytest.mark.slow
def test_an_error_is_beside_its_argument_over_a_dimmed_last_picture_without_its_notes_until_it_is_mended(open_page):
    page = open_page("num_training_steps=100&num_cycles=3&min_lr=0.1")
    before = picture(page)
    notes = page.find_element(By.CLASS_NAME, "notes")
    assert notes.text.startswith("The minimum 0.1 is above the initial learning rate 0.001: ")
    retype(page, "num_warmup_steps", "101")
    message = field(page, "num_warmup_steps-error")
    open_page.until(lambda: message.text)
    assert message.text == "Expected num_warmup_steps <= num_training_steps=100, but got num_warmup_steps=101"
    assert notes.text == ""
    assert picture(page) == before
    dimmed = page.find_element(By.CSS_SELECTOR, ".svg")
    assert float(dimmed.value_of_css_property("opacity")) < 0.5
    assert field(page, "num_warmup_steps").get_attribute("aria-invalid") == "true"
    retype(page, "num_warmup_steps", "10")
    open_page.until(lambda: not message.text and picture(page) != before)
    assert float(dimmed.value_of_css_property("opacity")) == 1
    assert notes.text


@pytest.mark.slow
def test_the_saved_pictures_have_titles_and_a_legend_and_are_dark_on_white_also_from_a_dark_page(open_page, tmp_path):
    files = {}
    for dark in (False, True):
        page, folder = open_page(dark=dark), tmp_path / str(dark)
        page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        for kind in ("svg", "png"):
            press(page, kind)
            path = folder / f"schedule.{kind}"
            open_page.until(path.exists)
            files[dark, kind] = path
    svg = files[True, "svg"].read_text()
    # Text is drawn as shapes, each after a comment that holds it.
    assert {"step", "learning rate"} <= {*re.findall("<!-- (.*?) -->", svg)}
    assert re.search(r'<g id="patch_1">\s*<path [^>]*style="fill: #ffffff"', svg)
    for dark in (False, True):
        pixels = image.imread(files[dark, "png"])
        assert pixels.shape[1] >= 1500
        if pixels.shape[2] == 4:
            assert (pixels[..., 3] == 1).all()
        assert (pixels[0, :, :3] == 1).all()
    assert files[False, "png"].read_bytes() == files[True, "png"].read_bytes()


@pytest.mark.slow
def test_a_trainer_state_is_imported_and_removed_again(open_page, tmp_path):
    trained(tmp_path, max_steps=30, warmup_steps=10, logging_steps=5, lr_scheduler_kwargs={"num_cycles": 2})
    page = open_page("num_training_steps=30&num_warmup_steps=10&num_cycles=2&lr=0.01")
    before = picture(page)
    file, notes = field(page, "run"), page.find_element(By.CLASS_NAME, "notes")
    file.send_keys(str(tmp_path / "trainer_state.json"))
    open_page.until(lambda: notes.text)
    assert re.fullmatch(r"trainer_state\.json: all 6 logged .*\(steps 5 to 30\).* the schedule.*", notes.text)
    assert "<!-- logged -->" in picture(page)
    press(page, "run")
    open_page.until(lambda: picture(page) == before)
    (tmp_path / "loss.json").write_text('{"log_history": [{"step": 1, "loss": 2.0}]}')
    file.send_keys(str(tmp_path / "loss.json"))
    message = field(page, "run-error")
    open_page.until(lambda: message.text)
    assert message.text.startswith("Expected loss.json to be")
    assert picture(page) == before


@pytest.mark.slow
def test_the_axis_becomes_logarithmic_and_stays_so_under_another_preset_until_the_reset(open_page):
    page = open_page("num_training_steps=1000&num_cycles=3&decay=0.25&min_lr=1e-6")
    linear = picture(page)
    choose(page, "y axis", "log")
    open_page.until(lambda: picture(page) != linear)
    assert "yscale=log" in page.current_url
    choose(page, "Start from", "this project's figure")
    open_page.until(lambda: len(shown_table(page)) == 12)
    assert "yscale=log" in page.current_url
    press(page, "keep")
    open_page.until(lambda: "<!-- kept to compare -->" in picture(page))
    press(page, "reset")
    open_page.until(lambda: "<!-- kept to compare -->" not in picture(page))
    now = picture(page)
    assert page.current_url.endswith(f"?{next(iter(app.PRESETS.values()))}")
    open_page()
    assert picture(page) == now


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
def test_steps_are_counted_from_epochs_and_batches_as_the_trainer_counts_them(open_page, tmp_path, accumulation):
    trainer, _ = trained(tmp_path, num_train_epochs=1.5, gradient_accumulation_steps=accumulation)
    page = open_page()
    page.find_element(By.TAG_NAME, "summary").click()
    for name, value in {
        "epochs": 1.5,
        "batches": len(trainer.get_train_dataloader()),
        "accumulation": accumulation,
    }.items():
        box = page.find_element(By.CSS_SELECTOR, f"[data-of={name}]")
        box.clear()
        box.send_keys(str(value))
    retype(page, "num_warmup_steps", "0")
    assert field(page, "num_training_steps").get_attribute("value") == str(trainer.state.max_steps)
    open_page.until(lambda: f"num_training_steps={trainer.state.max_steps}&" in page.current_url)


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_no_control_that_the_tab_key_reaches_lies_under_the_picture(open_page, width):
    page = open_page(width=width, height=700)
    last = "Reset" if width == 375 else "Copy code"  # the code is then in a tab of its own
    reached = []
    for key, end in ((Keys.TAB, last), (Keys.SHIFT + Keys.TAB, "Start from")):
        while end not in reached[-1:]:
            page.switch_to.active_element.send_keys(key)
            focused = page.switch_to.active_element
            reached.append(focused.accessible_name)
            covered = page.execute_script(
                """
                const {left, top, width, height} = arguments[0].getBoundingClientRect();
                const picture = document.querySelector(".picture");
                return [2, height / 2, height - 2].some((down) =>
                    picture.contains(document.elementFromPoint(left + width / 2, top + down)));
                """,
                focused,
            )
            assert not covered, reached
            assert len(reached) < 100
    assert len(reached) > 60


@pytest.mark.slow
def test_a_select_looks_like_one(open_page):
    page = open_page()
    selects = page.find_elements(By.CSS_SELECTOR, ".explorer select")
    assert len(selects) == 4
    # The browser draws its arrow.
    assert {select.value_of_css_property("appearance") for select in selects} == {"auto"}


@pytest.mark.slow
def test_the_console_stays_empty(open_page):
    page = open_page()
    page.get_log("browser")
    page = open_page("num_training_steps=500&T_0=100&num_warmup_steps=500", width=375)
    retype(page, "num_warmup_steps", "x")
    open_page.until(lambda: field(page, "num_warmup_steps-error").text)
    press(page, "reset")
    open_page.until(lambda: not field(page, "num_warmup_steps-error").text)
    assert page.get_log("browser") == []


@pytest.mark.slow
def test_the_pointer_reads_the_learning_rate_of_a_step(open_page):
    page = open_page("num_training_steps=1000")
    half = page.execute_script("""
        const axes = document.querySelector("#axes_1 > g > path").getBoundingClientRect();
        const [x, y] = [axes.left + axes.width / 2, axes.top + axes.height / 2];
        document.querySelector(".svg").dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y}));
        return document.querySelector(".readout").textContent;
    """)
    step, rate = re.fullmatch(r"step ([\d,]+): (.*)", half).groups()
    assert int(step) == pytest.approx(500, abs=5)
    assert float(rate) == pytest.approx(
        app.plan({"num_training_steps": "1000"}).scheduler.schedule.lr_at(int(step), 1e-3)
    )


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
    controls = page.find_elements(By.CSS_SELECTOR, ".explorer :is(input, select, button, [role=img])")
    names = [control.accessible_name for control in controls if control.is_displayed()]
    assert len(names) > 30
    assert "" not in names
    assert "Learning rate over 10,000 steps: 3 cycles, peaks from 0.001 to 0.001" in names


@pytest.mark.slow
def test_the_first_picture_is_one_answer_of_the_server_and_each_change_one_more(open_page):
    page = open_page()

    def num_answers():
        asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        return sum(name.endswith("/component_server/") for name in asked)

    assert num_answers() == 1
    for num_changes, decay in enumerate(("0.5", "0.6", "0.7"), start=1):
        shown = picture(page)
        retype(page, "decay", decay)
        open_page.until(lambda shown=shown: picture(page) != shown)
        assert num_answers() == 1 + num_changes


@pytest.mark.slow
def test_the_page_asks_nobody_but_its_own_server(open_page, address):
    page = open_page()
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert all(name.startswith(address) for name in asked)
