"""The report of a real run, as a browser shows it."""

from __future__ import annotations

import shutil

import pytest

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DIGITS = "limbeck.models.digits"


@pytest.mark.browser
def test_the_report_of_a_run_on_digits(project, cli):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: looked for chromium, chromium-browser and google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    words = [
        "data=av-digits",
        f"teacher={{model: '{DIGITS}:Fusion', args: {{width: 4}}, view: [image, audio]}}",
        f"student={{model: '{DIGITS}:ImageCNN', args: {{width: 4}}, view: image}}",
        *("train={steps: 12, batch_size: 32, log_every: 2}", "control=train"),
    ]
    code, _, shown = cli("distill", "kd.yaml", *words, "--out", "run")
    assert code == 0, shown
    page_file = project / "run/report.html"
    wrong: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith("data:") or r.url == page_file.as_uri() else wrong.append(r.url),
        )
        page.goto(page_file.as_uri())
        assert wrong == []
        assert page.locator("svg.chart").count() >= 6
        assert page.locator("#result table").first.locator("tbody tr").count() == 3
        assert "av-digits" in page.inner_text("body")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.evaluate(
            "document.images.length > 0 && [...document.images].every(i => i.complete && i.naturalWidth)"
        )
        browser.close()
