"""Aim: a person works with the console in a real browser, on the whole stack.

Method: `smsbill up`, and a headless Chromium that clicks and types. One test for each person's day.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from stack_harness import Stack

from scripts import chromium
from smsbill import stack_file

# A browser that is not there is installed first.
pytestmark = pytest.mark.timeout(400)

SECONDS = 60
POLL_SECONDS = 0.1
TEXT = "【测试】验证码 <script>document.title='x'</script>"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack of its own: a message that fails once is parked, and pages look again each second."""
    why = chromium.missing()
    if why:
        pytest.skip(f"NO BROWSER, THE CONSOLE IS NOT TESTED IN ONE: {why}")
    made = Path(tempfile.mkdtemp(prefix="smsbill-e2e-")).resolve()
    running = Stack(
        made / "data", SMSBILL_WORKERS="1", SMSBILL_DISPATCH_TRIES_MAX="1", SMSBILL_CONSOLE_REFRESH_SECONDS="1"
    )
    try:
        running.start()
        running.ok("brand", "put", "--brand", "1", "--name", "First")
        running.ok("buy", "--brand", "1", "--segments", "1000")
        yield running
    finally:
        running.end()
        shutil.rmtree(made, ignore_errors=True)


class Person:
    """Somebody at a browser."""

    def __init__(self, driver: Chrome, stack: Stack) -> None:
        self.driver = driver
        self._url = stack.started["gateway_url"]
        self._wait = WebDriverWait(driver, SECONDS, POLL_SECONDS)

    def go(self, path: str) -> None:
        """Open a page by its address."""
        self.driver.get(self._url + path)

    def find(self, test_id: str) -> WebElement:
        """What is marked so, once it is there."""
        return self._wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, f'[data-testid="{test_id}"]'))

    def says(self, test_id: str, text: str) -> None:
        """Wait until what is marked so says this; pages change by themselves meanwhile."""
        selector = f'[data-testid="{test_id}"]'

        def told(driver: Chrome) -> bool:
            return any(text in (each.text or "") for each in driver.find_elements(By.CSS_SELECTOR, selector))

        self.until(lambda: told(self.driver), f"{test_id} says {text}")

    def until(self, look: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        self._wait.until(lambda _: _steady(look), f"not so: {what}")

    def fill(self, form: str, **fields: str) -> None:
        """Fill in fields of a form by their names."""
        for name, value in fields.items():
            field = self.find(form).find_element(By.NAME, name)
            if field.tag_name == "select":
                Select(field).select_by_value(value)
            else:
                field.clear()
                field.send_keys(value)

    def click(self, test_id: str) -> None:
        """Click what is marked so."""
        self.find(test_id).click()

    def sign_in(self, token: str) -> None:
        """Sign in with a token, by the keyboard alone."""
        field = self.find("sign-in").find_element(By.XPATH, "//input[@name='token']")
        field.send_keys(token, Keys.ENTER)
        self.find("user")

    def complaints(self) -> list[str]:
        """What the browser found fault with: scripts, styles and addresses that the policy forbids."""
        found: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in found if "Content Security Policy" in entry["message"]]


def _steady(look: Callable[[], bool]) -> bool:
    """What a look sees; False when the page changed under it."""
    try:
        return look()
    except StaleElementReferenceException:
        return False


@contextmanager
def person(stack: Stack) -> Iterator[Person]:
    """Somebody with a browser of their own."""
    with chromium.opened() as driver:
        yield Person(driver, stack)


def run_sql(stack: Stack, statement: str, *parameters: object) -> None:
    """A statement in the gateway's tables."""
    file = stack_file.read(stack.data_dir)
    assert file is not None
    with psycopg.connect(file.database_url, autocommit=True, options="-c search_path=smsgateway") as connection:
        connection.execute(statement.encode(), parameters)


def test_an_operators_day(stack: Stack) -> None:
    """Sign in, sell a package, send a text, follow it to its receipt, see the balance move, try parked work again."""
    with person(stack) as someone:
        someone.go("/brands/1")
        someone.sign_in(stack.started["token"])
        assert available(someone) == 1_000
        someone.click("sell")
        sell(someone)
        someone.click("brand-link")
        someone.says("balance-available", "1,500")
        park_and_retry(stack, someone)
        follow(stack, someone)
        assert someone.complaints() == []
        someone.click("sign-out")
        someone.find("sign-in")
        someone.go("/parked")
        assert "/sign-in" in someone.driver.current_url


def available(someone: Person) -> int:
    """What the open page of a brand says that it has."""
    return int(someone.find("balance-available").text.replace(",", ""))


def follow(stack: Stack, someone: Person) -> None:
    """A message on its page from the queue to its receipt, then the brand's figures and chart, none of them loaded
    anew by hand.
    """
    with at_rest(stack):
        sent = stack.ok("send", "--brand", "1", "--type", "verification", "--text", TEXT, "--to", "19900090043")
        someone.go(f"/messages/{sent['message_id']}")
        someone.says("message-state", "queued")
        assert "<script>" in someone.find("message").text, "shown, not run"
    someone.says("message-state", "delivered")
    timeline = someone.find("message-timeline")
    assert sent["message_id"] in timeline.text
    assert "DELIVRD" in someone.find("message").text
    assert someone.driver.title != "x"
    someone.go("/brands/1")
    before = available(someone)
    chart = someone.find("balance-chart")
    someone.until(lambda: chart.get_attribute("data-last") == str(before), "the chart shows the balance")
    assert chart.find_elements(By.TAG_NAME, "canvas")
    stack.ok("send", "--brand", "1", "--type", "verification", "--text", TEXT, "--to", "19900090044", "--wait", "30")
    segments = sent["segments"]
    someone.says("balance-available", f"{before - segments:,}")
    someone.until(lambda: chart.get_attribute("data-last") == str(before - segments), "the chart moves")


@contextmanager
def at_rest(stack: Stack) -> Iterator[None]:
    """The worker does nothing meanwhile."""
    children = stack.children()
    worker = children.get("worker-1") or children["worker"]
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


def sell(someone: Person) -> None:
    """A package of 500, for which the order is paid."""
    someone.fill("sale-form", offer="plain", price="25.50", currency="CNY", segments="500", days="30")
    someone.fill("sale-form", payment_reference="bank-4711", reason="paid by bank")
    someone.click("sell")
    someone.says("outcome", "done")
    assert someone.find("told-segments").text == "500"


def park_and_retry(stack: Stack, someone: Person) -> None:
    """A message that our own fault has parked, and that goes once the fault is gone."""
    with at_rest(stack):
        sent = stack.ok("send", "--brand", "1", "--type", "verification", "--text", TEXT, "--to", "19900090042")
        run_sql(stack, "update message set mobile = '' where message_id = %s", sent["message_id"])
    someone.go("/parked")
    while not someone.driver.find_elements(By.CSS_SELECTOR, '[data-testid="parked-item"]'):
        someone.go("/parked")
    run_sql(stack, "update message set mobile = '+8619900090042' where message_id = %s", sent["message_id"])
    someone.click("parked-item")
    someone.fill("parked-form", reason="the number is right now")
    someone.click("retry")
    someone.says("outcome", "done")
    assert someone.find("told-tried-again").text == "1"
    someone.go(f"/messages/{sent['message_id']}")
    someone.says("message-state", "delivered")


def test_a_viewer_is_refused(stack: Stack) -> None:
    """He sees, in Chinese on a telephone; what changes anything is refused, whether he finds the page or not."""
    viewer = stack.ok("token", "create", "--role", "viewer", "--brands", "1", "--name", "Ms. Viewer")["secret"]
    before = stack.ok("balance", "--brand", "1")["total"]
    with person(stack) as someone:
        chromium.telephone(someone.driver)
        someone.go("/")
        someone.sign_in(viewer)
        assert not someone.driver.find_elements(By.CSS_SELECTOR, 'a[href="/tokens"], a[href="/parked"]')
        someone.click("language")
        assert "退出" in someone.find("sign-out").text
        for path in ("/parked", "/tokens", "/brands/1/sale", "/brands/1/adjust", "/brands/new"):
            someone.go(path)
            assert someone.find("refusal").get_attribute("data-reason") == "ROLE_NOT_ALLOWED"
            assert "您没有权限" in someone.find("error").text
        width = someone.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390, "nothing is wider than the telephone"
        assert someone.complaints() == []
    assert stack.ok("balance", "--brand", "1")["total"] == before
