"""A real headless Chromium for tests and screenshots: found, or installed where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_PACKAGES = ("chromium", "chromium-driver")
_CHINESE_FONT = "fonts-wqy-microhei"
_INSTALL_SECONDS = 300
_PAGE_SECONDS = 30
# Nothing of Chromium's own is to call home: a closed network answers each call with an error.
_OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--lang=en",
)


def missing() -> str:
    """Why there is no Chromium and none can be had, or empty. Installs Debian's packages as root, once."""
    if _found() is not None:
        return ""
    return _installed(_PACKAGES) or ("" if _found() is not None else "apt-get installed no Chromium that is found")


def without_chinese() -> str:
    """Why Chinese would be shown as boxes, or empty. Installs a font of Debian's as root, once."""
    asked = shutil.which("fc-list")
    if asked is not None:
        listed = subprocess.run([asked, ":lang=zh"], capture_output=True, text=True, timeout=30, check=False)
        if listed.stdout.strip():
            return ""
    return _installed((_CHINESE_FONT,))


def _installed(packages: Sequence[str]) -> str:
    """Install Debian's packages; why that was not possible, or empty."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return f"{packages[0]} is missing, and only root can have apt-get install it"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (("update", "-qq"), ("install", "-y", "-qq", "--no-install-recommends", *packages)):
        try:
            done = subprocess.run(
                [apt, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=_INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {arguments[0]} took too long"
        if done.returncode:
            return f"apt-get {arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    return ""


def _found() -> tuple[str, str] | None:
    browser, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def opened(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Chrome]:
    """A browser with an empty profile. Parameters: `dark` whether pages are told that dark is preferred."""
    found = _found()
    assert found is not None, "call `missing` first"
    profile = Path(tempfile.mkdtemp(prefix="smsbill-chromium-"))
    options = ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = found[0]
    for option in (*_OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(option)
    if os.geteuid() == 0:
        # Chromium's sandbox does not start as root.
        options.add_argument("--no-sandbox")
    driver = None
    try:
        driver = Chrome(options=options, service=Service(found[1]))
        driver.set_page_load_timeout(_PAGE_SECONDS)
        prefer(driver, dark=dark)
        yield driver
    finally:
        if driver is not None:
            driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def prefer(driver: Chrome, *, dark: bool) -> None:
    """Tell pages from now on that dark, or light, is preferred."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def desk(driver: Chrome, *, width: int, height: int) -> None:
    """Show pages in a window of just that size from now on."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def telephone(driver: Chrome, *, width: int = 390, height: int = 844) -> None:
    """Show pages as a telephone does from now on."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
