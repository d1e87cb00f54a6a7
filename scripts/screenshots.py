"""Take docs/screenshots/*.png from a running demo: the console's main pages, light, dark and on a telephone.

Run as `make screenshots`. Needs Chromium with its driver; as root on Debian it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import chromium  # noqa: E402

FOLDER = ROOT / "docs" / "screenshots"
BYTES_MAX = 200_000
SECONDS = 120
WIDTH, HEIGHT = 1_180, 1_000
_STOP_SECONDS = 60
_FREE = ("COSTCENTER_ADDRESS", "GATEWAY_ADDRESS", "HTTP_ADDRESS", "SIMULATOR_ADDRESS")


@dataclass(frozen=True)
class Shot:
    """A picture: its name, the page, and what must be there before it is taken."""

    name: str
    path: str
    ready: str = "main h1"
    dark: bool = False
    telephone: bool = False


def shots(message_id: str) -> list[Shot]:
    """The pictures, with a message to show."""
    chart = '[data-testid="balance-chart"] canvas'
    timeline = '[data-testid="message-timeline"]'
    return [
        Shot("overview", "/", '[data-testid="overview"]'),
        Shot("overview-dark", "/", '[data-testid="overview"]', dark=True),
        Shot("brands", "/brands", '[data-testid="brand-row"]'),
        Shot("brand", "/brands/1", chart),
        Shot("brand-dark", "/brands/1", chart, dark=True),
        Shot("brand-telephone", "/brands/1", chart, telephone=True),
        Shot("message", f"/messages/{message_id}", timeline),
        Shot("message-telephone", f"/messages/{message_id}", timeline, dark=True, telephone=True),
        Shot("sale", "/brands/1/sale", '[data-testid="sale-form"]'),
        Shot("parked", "/parked", '[data-testid="parked"]'),
        Shot("tokens", "/tokens", '[data-testid="token-form"]'),
        Shot("changes", "/audit", '[data-testid="changes"]'),
    ]


@contextmanager
def demo() -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """A stack that has sent the demo's messages: what it printed, and the environment that its commands need."""
    with tempfile.TemporaryDirectory(prefix="smsbill-pictures-") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SMSBILL_")}
        environment |= {f"SMSBILL_{name}": "127.0.0.1:0" for name in _FREE}
        environment |= {"SMSBILL_DATA_DIR": f"{folder}/data"}
        # The account that PostgreSQL runs under must get through.
        os.chmod(folder, 0o755)
        command = [sys.executable, "-m", "smsbill", "up", "--demo", "--json"]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                sys.exit("the demo did not start")
            yield json.loads(line), environment
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_SECONDS)


def sign_in(driver: Chrome, url: str, token: str, language: str) -> None:
    """Sign in, in a language."""
    driver.get(f"{url}/language/{language}?next=/sign-in")
    driver.find_element(By.NAME, "token").send_keys(token, Keys.ENTER)
    _await(driver, '[data-testid="user"]')


def take(driver: Chrome, url: str, shot: Shot) -> Path:
    """One picture. Exits when it is too large."""
    chromium.prefer(driver, dark=shot.dark)
    if shot.telephone:
        chromium.telephone(driver)
    else:
        chromium.desk(driver, width=WIDTH, height=HEIGHT)
    driver.get(url + shot.path)
    _await(driver, shot.ready)
    target = FOLDER / f"{shot.name}.png"
    target.write_bytes(driver.get_screenshot_as_png())
    size = target.stat().st_size
    if size > BYTES_MAX:
        sys.exit(f"{target} has {size:,} bytes, more than {BYTES_MAX:,}")
    return target


def _await(driver: Chrome, selector: str) -> None:
    WebDriverWait(driver, SECONDS, 0.1).until(
        lambda seen: seen.find_elements(By.CSS_SELECTOR, selector), f"no {selector} on {driver.current_url}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of pictures, with commas between them")
    parser.add_argument("--language", default="en", choices=("en", "zh"))
    options = parser.parse_args(arguments)
    why = chromium.missing() or chromium.without_chinese()
    if why:
        sys.exit(why)
    FOLDER.mkdir(exist_ok=True)
    only = set(filter(None, options.only.split(",")))
    with demo() as (started, environment), chromium.opened(width=WIDTH, height=HEIGHT) as driver:
        command = [sys.executable, "-m", "smsbill", "messages", "--brand", "1", "--limit", "1", "--json"]
        told = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        message_id = json.loads(told.stdout)[0]["message_id"]
        sign_in(driver, started["gateway_url"], started["token"], options.language)
        for shot in shots(message_id):
            if not only or shot.name in only:
                print(take(driver, started["gateway_url"], shot).relative_to(ROOT))


if __name__ == "__main__":
    main()
