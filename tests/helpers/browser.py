"""A headless Chromium without the network, and what it complains of."""

import shutil
from contextlib import contextmanager

import pytest


@contextmanager
def chromium():
    """A browser; tests skip where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome on the PATH)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev'")
    quiet = "--disable-background-networking --disable-component-update --disable-sync --no-first-run"
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", *quiet.split()]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, width=1280, scheme="light"):
    """A page from a file; afterwards nothing was complained of, asked of the network or popped up."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
