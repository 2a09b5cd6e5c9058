"""The page as a browser shows it: no error, no request, no overflow, in light and dark, wide and narrow."""

import shutil

import pytest

from limbeck.report import write

pytestmark = pytest.mark.browser
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: looked for chromium, chromium-browser and google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, make_run, tmp_path):
    """A function that opens a report and gives the page and what went wrong on it."""
    contexts = []

    def open_page(runs: int = 1, *, width: int = 1400, scheme: str = "light", **options):
        path = write([make_run(f"run-{i}", seed=i, **options) for i in range(runs)], tmp_path / "report.html")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, wrong = context.new_page(), []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if not _own(request.url, path) else None)
        page.goto(path.as_uri())
        return page, wrong

    yield open_page
    for context in contexts:
        context.close()


def _own(url: str, path) -> bool:
    return url.startswith("data:") or url == path.as_uri()


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("runs", [1, 3])
def test_calm_in_every_light_and_at_every_width(opened, width, scheme, runs):
    page, wrong = opened(runs, width=width, scheme=scheme)
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("svg.chart").count() >= 9
    hidden = (
        "[...document.querySelectorAll('.panel > svg.chart')].filter(s => s.checkVisibility() && s.clientWidth < 120)"
    )
    assert page.evaluate(f"{hidden}.length") == 0
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))"
    )
    assert (paper > 700 and ink < 150) if scheme == "light" else (paper < 150 and ink > 600)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_long_names_do_not_widen_the_page(opened):
    long = "a-very-long-name-without-any-space-" * 8
    page, wrong = opened(
        width=390, labels=[f"{long}{i}" for i in range(4)], terms=(long, "kl"), columns=(long, "audio")
    )
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_colours_of_text_have_enough_contrast(opened):
    script = """() => {
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return ['body', '.role.student', '.role.teacher', '.role.control', 'figcaption', '.kicker', '.missed .verdict']
        .map(s => light(getComputedStyle(document.querySelector(s)).color))
        .map(l => (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05)) }"""
    for scheme in ("light", "dark"):
        page, _ = opened(scheme=scheme)
        assert min(page.evaluate(script)) >= 4.5


def test_tables_sort_by_number_with_what_is_unknown_last(opened):
    page, wrong = opened(without=("samples.safetensors",), change=lambda r: r["control"].update(latency_ms=None))
    table = page.locator("#result table").first
    head = table.locator("th", has_text="latency")

    def order():
        return [text.split()[0] for text in table.locator("tbody th").all_inner_texts()]

    head.locator("button").click()
    assert order() == ["student", "teacher", "control"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert order() == ["teacher", "student", "control"]
    assert head.get_attribute("aria-sort") == "descending"
    assert wrong == []


def test_pointing_at_a_curve_says_its_numbers(opened):
    page, wrong = opened()
    chart = page.locator("#learning svg.chart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator(".tooltip")
    tip.wait_for(state="visible")  # the browser says that the mouse moved when it comes to it
    assert "step" in tip.inner_text()
    assert "kl" in tip.inner_text()
    page.mouse.move(2, 2)
    tip.wait_for(state="hidden")
    assert wrong == []


def test_the_command_can_be_copied(opened):
    page, wrong = opened()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".command .copy").click()
    page.get_by_text("copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "limbeck distill run-0.yaml seed=0"
    assert wrong == []
