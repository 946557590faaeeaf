"""The page in a real browser: it sorts, filters, toggles, switches tabs and themes, and asks nobody for anything."""

from collections.abc import Iterator

import pytest
from browser import Browser, browser, needs_browser
from reported import FORMULA, IMAGE, write_everything

from open_bench.reports.contents import read
from open_bench.reports.page import render

pytestmark = needs_browser
BOARD = "#board0 > form + .scroll"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("report")
    page = folder / "report.html"
    page.write_text(render(read(write_everything(folder / "results")), {}, 60))
    with browser(folder / "profile") as tab:
        tab.size(1280)
        tab.open(page)
        yield tab


@pytest.fixture(autouse=True)
def quiet(opened: Browser) -> Iterator[None]:
    """Whatever a test does, nothing complains, nothing is asked for, and no name was run."""
    yield
    opened.run("new Promise((resolve) => setTimeout(resolve, 50))")
    assert opened.errors == []
    assert {url.partition(":")[0] for url in opened.requests} <= {"file", "data"}
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    assert opened.run("typeof window.hacked") == "undefined"


def column(tab: Browser, at: int) -> list[str]:
    return tab.run(
        f"[...document.querySelectorAll('{BOARD} tbody tr')].filter(r => !r.hidden).map(r => r.cells[{at}].innerText)"
    )


def set_field(tab: Browser, name: str, value: str) -> None:
    tab.run(f"""(() => {{ const field = document.querySelector('#board0 form').elements['{name}'];
        field.value = {value!r}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }})()""")


def charts_drawn(tab: Browser, within: str = "#board0") -> int:
    return tab.run(f"document.querySelectorAll('{within} figure > div > *').length")


def test_headings_sort(opened: Browser) -> None:
    heading = f"{BOARD} thead th:nth-child(4)"
    for order, best in (("descending", True), ("ascending", False)):
        opened.run(f"document.querySelector('{heading} button').click()")
        assert opened.run(f"document.querySelector('{heading}').ariaSort") == order
        values = [float(text.split()[0]) for text in column(opened, 3)]
        assert values == sorted(values, reverse=best)
    opened.run(f"document.querySelector('{BOARD} thead th:nth-child(2) button').click()")
    assert column(opened, 1) == sorted(column(opened, 1))


def test_filters_hide_rows_lines_and_environments(opened: Browser) -> None:
    set_field(opened, "optimizer", "ADAM, img")
    assert sorted(column(opened, 1)) == [IMAGE, "adam"]
    pressed = "[...document.querySelectorAll('#board0 .legend')[0].children].filter(b => !b.hidden).length"
    assert opened.run(pressed) == 2
    set_field(opened, "track", "default")
    assert len(column(opened, 1)) == 2
    set_field(opened, "environment", FORMULA)
    tabs = "[...document.querySelectorAll('#board0 [role=tab]')].filter(t => !t.hidden).map(t => t.innerText)"
    assert opened.run(tabs) == [FORMULA]
    assert opened.run("document.querySelector('#board0 [role=tabpanel]:not([hidden]) h4').innerText") == FORMULA
    for name in ("optimizer", "track", "environment"):
        set_field(opened, name, "")
    assert len(column(opened, 1)) == 5
    assert len(opened.run(tabs)) == 2


def test_tabs_follow_clicks_and_arrows_and_draw_their_charts(opened: Browser) -> None:
    opened.run("document.querySelectorAll('#board0 [role=tab]')[1].click()")
    panel = "document.querySelector('#board0 [role=tabpanel]:not([hidden])')"
    assert opened.run(f"{panel}.querySelector('h4').innerText") == "breakout"
    opened.wait(f"{panel}.querySelectorAll('figure > div > *').length >= 2")  # curves and a diagnostic
    opened.run("document.activeElement.blur(); document.querySelectorAll('#board0 [role=tab]')[1].focus()")
    opened.key("ArrowLeft")
    assert opened.run(f"{panel}.querySelector('h4').innerText") == FORMULA
    assert opened.run("document.activeElement.innerText") == FORMULA


def test_the_legend_hides_lines_in_all_charts_of_its_board(opened: Browser) -> None:
    visible = """Bokeh.index.roots.filter((v) => document.getElementById('board0').contains(v.el))
        .flatMap((v) => v.model.renderers || []).filter((r) => r.name === 'adam' && r.visible).length"""
    before = opened.run(visible)
    assert before > 0
    button = "[...document.querySelectorAll('#board0 .legend button')].find((b) => b.title === 'adam')"
    opened.run(f"{button}.click()")
    assert opened.run(f"{button}.ariaPressed") == "false"
    assert opened.run(visible) == 0
    opened.run(f"{button}.click()")
    assert opened.run(visible) == before


def test_charts_move_and_zoom_by_keys(opened: Browser) -> None:
    figure = "document.querySelector('#board0 [role=tabpanel]:not([hidden]) figure')"
    opened.wait(f"{figure}.querySelector('div > *')")
    ends = f"""(() => {{ const view = Bokeh.index.roots.find((v) => {figure}.contains(v.el) && v.model.x_range);
        return [view.model.x_range.start, view.model.x_range.end]; }})()"""
    opened.wait(f"{ends}[1] > 0")
    before = opened.run(ends)
    opened.run(f"{figure}.focus()")
    opened.key("+")
    after = opened.run(ends)
    assert after[1] - after[0] == pytest.approx(0.7 * (before[1] - before[0]))
    opened.key("ArrowRight")
    assert opened.run(ends)[0] == pytest.approx(after[0] + 0.1 * (after[1] - after[0]))
    opened.key("0")
    opened.wait(f"{ends}[1] == {before[1]}")


def test_hovering_shows_names_as_text(opened: Browser) -> None:
    spot = opened.run("""(() => { const figure = document.querySelector('#board0 .charts figure');
        figure.scrollIntoView({block: 'center'});
        const view = Bokeh.index.roots.find((each) => figure.contains(each.el) && each.model.renderers);
        const { glyph } = view.views.find_one(view.model.renderers.at(-1));
        const box = view.canvas_view.el.getBoundingClientRect();
        return [...glyph.sx].map((x, i) => [box.x + x, box.y + glyph.sy[i]]); })()""")
    assert spot
    tips = """(() => { const walk = (e) => [e, ...[...(e.shadowRoot?.children || []), ...e.children].flatMap(walk)];
        const tips = walk(document.body).filter((e) => e.classList.contains('bk-tooltip-content'));
        return tips.map((e) => [e.innerText, e.querySelectorAll('img, script').length]); })()"""
    seen = []
    for x, y in spot:
        opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        opened.wait(f"{tips}.length")
        seen += opened.run(tips)
    assert any(IMAGE in text for text, _ in seen)
    assert not any(elements for _, elements in seen)


def test_light_and_dark_by_the_system_and_by_the_button(opened: Browser) -> None:
    color = "getComputedStyle(document.body).backgroundColor"
    for scheme, expected in (("dark", "rgb(20, 23, 28)"), ("light", "rgb(255, 255, 255)")):
        opened.scheme(scheme)
        assert opened.run(color) == expected
    opened.run("document.getElementById('theme').click()")
    assert opened.run(color) == "rgb(20, 23, 28)"
    opened.run("document.getElementById('theme').click()")
    assert opened.run(color) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_fits(width: int, opened: Browser) -> None:
    opened.size(width)
    opened.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    opened.run("new Promise((resolve) => setTimeout(resolve, 300))")
    assert opened.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_it_prints(opened: Browser) -> None:
    assert len(opened.call("Page.printToPDF")["data"]) > 10_000
