"""A real browser for tests: the system's Chromium, driven by Playwright.

Where there is none, the tests that need one are skipped, unless ``LYAP_REQUIRE_BROWSER=1``: then
they fail. ``LYAP_SCREENSHOTS`` names a folder in which they leave pictures of what they saw.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from studies.pictures import BROWSER_OPTIONS, BROWSERS


def _absent() -> str | None:
    if not any(map(shutil.which, BROWSERS)):
        return (
            "There is no Chromium on this machine. To run the tests in a browser: "
            "make browser, or apt-get install chromium."
        )
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "Playwright is not installed. To run the tests in a browser: pip install playwright."
    return None


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window, of Playwright's type ``Browser``."""
    if reason := _absent():
        if os.environ.get("LYAP_REQUIRE_BROWSER") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(BROWSER_OPTIONS))
        yield launched
        launched.close()


@pytest.fixture
def screenshot(tmp_path: Path) -> Callable[[Any, str], None]:
    """A function of a page and a name, which leaves a picture of the page."""
    folder = Path(os.environ.get("LYAP_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Any, name: str) -> None:
        page.screenshot(path=folder / f"{name}.png")

    return take
