"""The documentation site: it builds strictly, shows what it should, and asks no network for anything."""

import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browser, needs_browser

import open_bench

pytest.importorskip("material", reason="the packages of the site are not installed")
pytest.importorskip("mkdocstrings_handlers.python", reason="the packages of the site are not installed")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
STAGE = runpy.run_path(str(ROOT / "tooling" / "stage_site.py"))
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def build(pages: Path, site: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """``mkdocs build`` as ``make docs`` does it, but of these pages and into that folder.

    With --quiet it would count no warnings, so strict would mean nothing.
    """
    config = site.parent / f"{site.name}.yml"
    lines = [f"INHERIT: {ROOT / 'mkdocs.yml'}", f"docs_dir: {pages}", f"site_dir: {site}"]
    config.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in changes.items())]))
    words = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    STAGE["stage"](folder / "pages")
    done = build(folder / "pages", folder / "site")
    assert done.returncode == 0, done.stderr
    return folder / "site"


class Loaded(HTMLParser):
    """What a page loads: the addresses of scripts, styles, images and frames."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in LOADS and found.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(found.get(LOADS[tag]) or "")


def test_every_page_loads_files_of_the_site_alone(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for address in filter(None, Loaded(page).addresses):
            if page.name != "404.html" and not address.startswith("data:"):  # which alone has absolute addresses
                assert (page.parent / address.partition("?")[0]).is_file(), f"{page}: {address}"
            assert not re.match(r"(https?:)?//", address), f"{page}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text("utf-8")), style
    assert not any('class="mermaid"' in page.read_text("utf-8") for page in pages)  # the theme fetches its program


def test_public_names_have_their_docstrings(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    for name in open_bench.__all__:
        assert f'id="open_bench.{name}"' in page, name
    assert "Train one optimizer on one environment and store the experiment." in page


def test_published_figures_and_reports_are_in_the_gallery(site: Path) -> None:
    page = (site / "gallery.html").read_text("utf-8")
    figures = list((ROOT / "results" / "published").rglob("figures/*.png"))
    assert figures
    for figure in figures:
        assert f'src="{figure.relative_to(ROOT / "results").as_posix()}"' in page
    for name in ("quick/", "ppo-pqn/", "gridworld/", ""):
        assert f'href="published/{name}report.html"' in page
        assert (site / "published" / name / "report.html").is_file()


def test_examples_are_shown(site: Path) -> None:
    page = (site / "examples.html").read_text("utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert path.name in page


def test_a_link_that_leads_nowhere_stops_the_build(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for target, code in (("index.md#here", 0), ("index.md#there", 1), ("gone.md", 1)):
        (pages / "index.md").write_text(f"# Here\n\n[on]({target})\n")
        assert build(pages, tmp_path / "site", nav="[index.md]").returncode == code, target


def test_links_to_the_repository_become_links_of_the_site() -> None:
    def linked(text: str) -> str:
        return STAGE["linked"](text, "docs/rules.md", STAGE["site_addresses"]())

    assert linked("[a](../README.md#install) [b](tuning.md)") == "[a](index.md#install) [b](tuning.md)"
    assert linked("![c](../results/published/quick/figures/quick_ppo_returns.png)") == (
        "![c](published/quick/figures/quick_ppo_returns.png)"
    )
    assert linked("[d](../results/published/quick)") == "[d](gallery.md)"
    assert linked("[returns](../baselines/returns), [`baselines/returns`](../baselines/returns)") == (
        "returns (`baselines/returns`), `baselines/returns`"
    )
    for kept in ("[e](gone.md)", "[f](https://example.org/x)", "[g](#words)", "```\n[h](../README.md)\n```"):
        assert linked(kept) == kept


@needs_browser
def test_a_browser_asks_nobody_for_anything(site: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        for name in ("index", "gallery", "architecture", "api"):
            tab.call("Page.navigate", url=(site / f"{name}.html").as_uri())
            tab.wait(f"location.pathname.endsWith('{name}.html') && document.readyState === 'complete'")
        assert {url.partition(":")[0] for url in tab.requests} <= {"file", "data"}
