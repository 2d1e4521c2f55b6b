"""A browser for the tests of pages: Debian's chromium and chromium-driver."""

from __future__ import annotations

import os
import shutil

import pytest
from selenium import webdriver

ARGUMENTS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)


def start_chromium(profile, *arguments):
    """Start a browser that keeps its files in `profile`. It logs what the pages write to the console."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    # pip cannot install a browser. Where the tests decide whether a change is accepted, there has to be one.
    if not (chromium and chromedriver) and "CI" not in os.environ:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*ARGUMENTS, f"user-data-dir={profile}", *arguments):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(chromedriver))


def set_window(driver, *, width, height, dark):
    """Give the window a size in pixels, and the page a light or a dark color scheme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
