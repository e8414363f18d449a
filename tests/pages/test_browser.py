"""Pages in a real browser: what a reader sees, hovers over, clicks, and does without a mouse."""

import math
import os
from pathlib import Path

import pytest

import loramerge as lm
from loramerge.charts.facts import shown
from tests.pages.browser import Browser, opened
from tests.pages.subjects import PAIR, SUBJECTS, here

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytestmark = pytest.mark.browser
LINES = "#spectra .mark-line.role-mark path"
SHOTS = os.environ.get("LORAMERGE_SCREENSHOTS")  # a folder, for those who want to look


@pytest.fixture(scope="module")
def browser():
    with opened() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def pages(place):
    """Name -> the file of a page, made once."""
    made: dict[str, Path] = {}

    def page(name: str) -> Path:
        if name not in made:
            (place / name).mkdir()
            made[name] = SUBJECTS[name](place / name).save(place / f"{name}.html")
        return made[name]

    return page


UNREADABLE = """const found = [];
    for (const svg of document.querySelectorAll(".chart svg")) {
      const whole = svg.getBoundingClientRect();
      for (const axis of svg.querySelectorAll(".role-axis-label")) {
        const shown = (each) => each.getAttribute("opacity") !== "0";
        const boxes = [...axis.querySelectorAll("text")].filter(shown).map(
          (each) => [each.textContent, each.getBoundingClientRect()]);
        for (const [i, [text, box]] of boxes.entries()) {
          if (box.left < whole.left - 1 || box.right > whole.right + 1) found.push(`${text} is cut`);
          for (const [other, near] of boxes.slice(i + 1))
            if (box.left < near.right - 1 && near.left < box.right - 1 &&
                box.top < near.bottom - 4 && near.top < box.bottom - 4) found.push(`${text} is on ${other}`);
        }
      }
    }
    return found;"""


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_page_is_drawn_without_an_error_and_fits_its_window(browser, pages, name, width, tmp_path):
    browser.open(pages(name), width)
    charts, drawn, wide = browser.js("""return [document.querySelectorAll(".chart").length,
        document.querySelectorAll(".chart svg").length, document.documentElement.scrollWidth]""")
    assert charts == drawn >= 1
    assert wide <= width
    assert len({box.rect["width"] for box in browser.find(".chart svg")}) >= 1
    assert all(0 < box.rect["width"] <= width for box in browser.find(".chart svg"))
    shot = browser.picture(Path(SHOTS or tmp_path) / f"{name}-{width}.png")
    assert shot.stat().st_size > 10_000
    assert browser.told() == []
    assert browser.js(UNREADABLE) == []
    assert browser.js("return performance.getEntriesByType('resource').length") == 0, "nothing is loaded"


def test_the_tables_say_what_inspect_and_diff_say(browser, pages, tmp_path):
    browser.open(pages("pair"))
    a, b = (here(tmp_path) / name for name in PAIR)
    rows = {(row["source"], row["module"]): row for row in browser.table("spectra")}
    for at, path in enumerate((a, b), 1):
        for module in lm.inspect(path).modules:
            row = rows.pop((f"{at} {path.name}", module.name))
            assert row["σ"] == shown(module.sigma.tolist())
            assert row["effective rank"] == shown(module.effective_rank)
    assert not rows
    apart = lm.diff(a, b)
    assert math.isclose(float(browser.table("overlaps")[0]["2"]), apart.cosine, abs_tol=1e-6)
    for row in browser.table("pairs"):
        (cosine,) = (m.cosine for m in apart.modules if m.name == row["module"])
        assert math.isclose(float(row["cosine"]), cosine, rel_tol=1e-4)


def test_a_chart_has_a_line_for_each_row_of_its_table(browser, pages):
    browser.open(pages("pair"))
    assert len(browser.find(LINES)) == len(browser.table("spectra"))
    assert len(browser.find("#pairs .mark-rect.role-mark path")) == len(browser.table("pairs"))


def hover(browser: Browser, css: str) -> str:
    """What is shown over the first of these."""
    from selenium.webdriver import ActionChains

    (mark, *_) = browser.find(css)
    browser.js("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser.driver).move_to_element(mark).perform()
    return browser.wait(
        lambda: browser.js("""const box = document.getElementById("vg-tooltip-element");
        return box?.classList.contains("visible") && box.offsetHeight > 0 && box.textContent""")
    )


def test_hovering_shows_the_name_of_the_module(browser, pages):
    browser.open(pages("pair"))
    told = hover(browser, "#spectra .mark-symbol.role-mark path")
    names = [row["module"] for row in browser.table("spectra")]
    assert any(name in told for name in names)
    assert ".safetensors" in told
    assert "cosine" in hover(browser, "#overlaps .mark-rect.role-mark path")
    assert browser.told() == []


def bright(browser: Browser) -> set[str]:
    """How strongly the lines of the spectra are drawn."""
    return {mark.get_attribute("opacity") for mark in browser.find(LINES)}


def picked(browser: Browser) -> set[str]:
    return set(
        browser.js("return [...document.querySelectorAll('tr.picked')].map((row) => row.dataset.name)")
    )


def test_a_click_singles_out_a_module_everywhere_and_another_lets_go(browser, pages):
    from selenium.webdriver import ActionChains

    browser.open(pages("pair"))
    assert len(bright(browser)) == 1
    mark = browser.find("#spectra .mark-symbol.role-mark path")[0]
    browser.js("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser.driver).move_to_element(mark).click().perform()
    browser.wait(lambda: len(bright(browser)) == 2)
    (name,) = picked(browser)
    assert {field.get_attribute("value") for field in browser.find("input[data-column=module]")} == {name}
    depth = browser.find("#depth .mark-symbol.role-mark path")
    strong = [mark for mark in depth if float(mark.get_attribute("opacity")) > 0.5]
    wanted = [row for row in browser.table("depth") if row["module"] == name]
    assert len(strong) == len(wanted) < len(depth), "the other charts follow"
    browser.js("document.querySelector('tr.picked').click()")
    browser.wait(lambda: len(bright(browser)) == 1)
    assert picked(browser) == set()
    assert browser.told() == []


def test_everything_can_be_done_from_the_keyboard(browser, pages):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        ActionChains(browser.driver).send_keys(*keys).perform()

    def focus() -> str:
        return browser.js("return document.activeElement.id || document.activeElement.className || "
                          "document.activeElement.tagName")  # fmt: skip

    browser.open(pages("pair"))
    seen = []
    for _ in range(80):
        press(Keys.TAB)
        seen.append(focus())
        outline = browser.js("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen[-1]
        if seen[-1] == "spectra-pick":
            break
    assert seen[0] == "skip"
    assert {"theme", "scroll", "SUMMARY", "spectra-pick"} <= set(seen)
    name = browser.table("spectra")[3]["module"]
    press(name)
    browser.wait(lambda: len(bright(browser)) == 2)
    assert picked(browser) == {name}
    press(Keys.ESCAPE)
    browser.wait(lambda: len(bright(browser)) == 1)
    press(Keys.TAB)
    assert focus() == "SUMMARY"
    assert not browser.find("#spectra details[open]")
    press(Keys.ENTER)
    assert browser.find("#spectra details[open]"), "the table opens"
    assert browser.told() == []


def colours(browser: Browser) -> tuple[str, str]:
    """Of the page, and of the words of its charts."""
    return tuple(
        browser.js("""return [getComputedStyle(document.body).backgroundColor,
        document.querySelector("#losses .role-axis-label text").getAttribute("fill")]""")
    )


def test_a_page_is_light_or_dark_as_the_reader_has_it_and_a_button_changes_that(browser, pages, tmp_path):
    browser.open(pages("pair"), scheme="dark")
    dark = colours(browser)
    browser.picture(Path(SHOTS or tmp_path) / "pair-dark.png")
    browser.open(pages("pair"), scheme="light")
    light = colours(browser)
    assert all(one != other for one, other in zip(dark, light, strict=True))
    browser.find("#theme")[0].click()
    browser.drawn("dark")
    assert colours(browser) == dark
    assert browser.find("#theme")[0].text == "Light page"
    assert browser.told() == []


def test_nothing_of_a_stranger_runs(browser, pages):
    browser.open(pages("hostile"))
    assert "owned" not in browser.js("return document.title").replace("document.title='owned'", "")
    assert "script" in browser.table("spectra")[0]["module"] + browser.table("spectra")[1]["module"]
    hover(browser, "#spectra .mark-symbol.role-mark path")
    assert not browser.find("#vg-tooltip-element script, #vg-tooltip-element img")
    assert not browser.find("img, iframe, object, embed")
    assert browser.told() == []


def test_the_policy_holds_in_the_browser(browser, pages):
    browser.open(pages("pair"))
    browser.js("""const made = document.createElement("script");
        made.textContent = "window.ran = true"; document.body.append(made);
        setTimeout("window.ran = true", 0);
        const image = document.createElement("img"); image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);""")
    said: list[str] = []
    browser.wait(
        lambda: said.extend(e for e in browser.told() if "Content Security Policy" in e) or len(said) > 2
    )
    assert browser.js("return window.ran ?? null") is None
    assert len(said) >= 3, "a script, text as code, and a picture from outside"
