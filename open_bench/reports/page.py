"""The page: parts laid out by templates, with styles, script, charts and BokehJS in it, and nothing left to load.

What stored files hold is text that the templates escape, or JSON that the script never runs. The page's policy allows
the scripts that were written here, by their digests, and no request at all.
"""

import base64
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import BaselineReturns, load_baseline_returns
from open_bench.evaluation.bootstrap import RESAMPLES
from open_bench.files import write_atomically
from open_bench.reports.contents import Contents, read
from open_bench.reports.sections import Page

REPORT = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def write(
    results: Path, path: Path | None = None, budget: str | None = None, aliases: Mapping[str, str] | None = None
) -> Path:
    """Write the report of a results folder to ``path``, by default into the folder; returns where it lies.

    Raises:
        UserError: there is nothing to report, the budget is unknown, experiments do not compare, or nothing can be
            written there.
    """
    page = render(read(results, budget, aliases), load_baseline_returns())
    path = path or results / REPORT
    try:
        return write_atomically(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another --output") from None


def render(contents: Contents, returns: BaselineReturns, resamples: int = RESAMPLES) -> str:
    """The page as HTML; the same contents give the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
                            trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    parts: Any = templates.get_template("parts.html.j2").module
    page = Page(contents, returns, resamples)
    boards = [page.board(board, place) for place, board in enumerate(contents.board.boards if contents.board else ())]
    tuning = page.tuning()
    studies = [page.study(study, place) for place, study in enumerate(contents.studies)]
    meta = page.meta() if contents.histories else None
    provenance = page.provenance() if len(contents.runs.experiments) else None
    panels = {each["id"]: parts.environment(each) for board in boards for each in board["environments"]}
    panels |= {each["id"]: parts.evolution(each) for each in (meta or {"evolutions": ()})["evolutions"]}
    if provenance is not None:
        panels["experiments"] = parts.table(provenance["experiments"])
    scripts = [*_bokeh(), (_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    data = {
        "charts": page.charts.charts,
        "legends": {name: list(map(dataclasses.asdict, each)) for name, each in page.charts.legends.items()},
        "panels": panels,
    }
    return templates.get_template("page.html.j2").render(
        title=_title(contents), boards=boards, tuning=tuning, studies=studies, meta=meta, provenance=provenance,
        allowed=Markup(" ".join(map(_allowed, scripts))), scripts=list(map(Markup, scripts)),
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")), data=_packed(data),
        version=version("open-bench"), bokeh=version("bokeh"),
    )  # fmt: skip


def _title(contents: Contents) -> str:
    names = {board.study for board in contents.board.boards if board.study} if contents.board else set()
    return " ".join(["open-bench", *sorted(names)]) if names else "open-bench results"


def _bokeh() -> list[str]:
    """BokehJS, its drawing alone, as it ships with Bokeh."""
    from bokeh.resources import Resources

    found = Resources(mode="inline", components=["bokeh", "bokeh-api"], minified=True).js_raw[:2]
    assert not any(word in text.lower() for text in found for word in ("</script", "<!--"))  # it would end the element
    return found


def _allowed(script: str) -> str:
    """A script's source in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _packed(data: Any) -> str:
    """JSON, compressed, in characters that HTML leaves alone."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
