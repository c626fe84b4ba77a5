"""The page in a real browser: the system's Chromium, driven by Playwright."""

import os
import shutil

import pytest
from written_runs import write_suite

from tools.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    return write_report([write_suite(root)], root / "report")[0]


@pytest.fixture(scope="module")
def browser():
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=QUIET) as chromium,
    ):
        yield chromium


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide", "phone"])
def page(request, report, browser):
    """The opened page; its console and its requests must have stayed empty at the end."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened = context.new_page()
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_answer_stands_at_the_top(page):
    heading = page.locator("h1")
    assert "better than its plain twin on 1 of 2 benchmarks" in heading.inner_text()
    assert heading.bounding_box()["y"] < 200
    cards = page.locator(".card")
    assert cards.count() == 2
    assert "points better" in cards.nth(0).inner_text()
    assert "points worse" in cards.nth(1).inner_text()
    assert "synthetic" in cards.nth(1).inner_text()
    assert "synthetic" not in cards.nth(0).inner_text()


def test_nothing_is_wider_than_the_screen(page):
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


def test_a_heading_sorts_its_table_by_keyboard_too(page):
    table = page.locator("#comparisons")

    def column():
        return table.locator("tbody tr td:nth-of-type(4)").all_inner_texts()

    before = column()
    button = table.get_by_role("button", name="Difference")
    button.focus()
    page.keyboard.press("Enter")
    rising = column()
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    button.click()
    assert column() == rising[::-1]
    assert sorted(before) == sorted(rising)
    assert "worse" in rising[0]


def test_plots_and_pictures_have_words_for_those_who_cannot_see_them(page):
    plots = page.locator("figure svg[role=img]")
    assert plots.count() >= 5
    for label in plots.evaluate_all("all => all.map(e => e.getAttribute('aria-label'))"):
        assert label
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("table:not(:has(th[scope=col]))").count() == 0


def test_boxes_are_drawn_on_the_pictures(page):
    pictures = page.locator(".pictures.detection svg")
    assert pictures.count() >= 2
    assert page.locator(".pictures rect.truth").count() >= 2
    drawn = page.locator(".pictures.detection image").first.evaluate("e => e.getBBox().width")
    assert drawn == 96


def test_the_page_follows_the_colour_scheme(page):
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    channel = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] | 0")
    assert (channel < 80) == dark


def test_settings_unfold(page):
    fold = page.locator("section[aria-labelledby=settings] details").first
    assert not fold.locator("pre").is_visible()
    fold.locator("summary").click()
    assert '"settings"' in fold.locator("pre").inner_text()
