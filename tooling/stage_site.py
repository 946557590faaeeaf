"""Stage the pages of the documentation site: python tooling/stage_site.py build/pages; ``make docs`` then builds it.

Pages link to each other as files of the repository do. Here those of ``docs/``, the README, other pages and figures get
addresses on the site, and pages are made of the examples, the published results and the public names' docstrings. A
link to a file that the site does not show becomes its path.
"""

import ast
import importlib
import json
import posixpath
import re
import shutil
import sys
from pathlib import Path

from open_bench import report

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = "results/published"
ADDRESSES = {  # repository path → address on the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples": "examples.md",
    PUBLISHED: "gallery.md",
}
SHOWN = (f"{PUBLISHED}/**/figures/*.png", f"{PUBLISHED}/**/*.md", "baselines/weights/*.md")
REPORTED = ("experiments", "tuning", "generalization", "meta")  # what a results folder has that a report shows
API: dict[str, tuple[str, ...]] = {  # module → names; none: its __all__
    "open_bench": (),
    "open_bench.api": ("prepare",),
    "open_bench.optimizers": (),
    "open_bench.environments": (),
    "open_bench.algorithms.base": ("Algorithm", "AlgorithmConfig", "AgentState", "Learning", "mark_finite"),
}
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")


def stage(folder: Path) -> None:
    """Write all pages and figures into a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    addresses = site_addresses()
    for source, address in addresses.items():
        if (ROOT / source).is_file():
            path = folder / address
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                path.write_text(linked((ROOT / source).read_text("utf-8"), source, addresses), "utf-8")
            else:
                shutil.copyfile(ROOT / source, path)
    reports = _reports(folder)
    for address, page in {"examples.md": _examples(), "gallery.md": _gallery(reports), "api.md": _api()}.items():
        (folder / address).write_text(page, "utf-8")


def linked(text: str, source: str, addresses: dict[str, str]) -> str:
    """A page with its links to files of the repository turned into links of the site."""
    here = posixpath.dirname(addresses[source]) or "."

    def link(match: re.Match[str]) -> str:
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["path"]))
        if wanted not in addresses:
            if match["image"] or not (ROOT / wanted).exists():
                return match[0]  # the build refuses it
            return match["text"] if f"`{wanted}`" == match["text"] else f"{match['text']} (`{wanted}`)"
        there = posixpath.relpath(addresses[wanted], here)
        return f"{match['image']}[{match['text']}]({there}{match['anchor'] or ''})"

    return "".join(part if index % 2 else LINK.sub(link, part) for index, part in enumerate(FENCED.split(text)))


def site_addresses() -> dict[str, str]:
    """Address on the site of every file and folder of the repository that has one."""
    shown = sorted(path.relative_to(ROOT).as_posix() for pattern in SHOWN for path in ROOT.glob(pattern))
    docs = {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").iterdir())}
    folders = {path.relative_to(ROOT).as_posix(): "gallery.md" for path in _published()}
    return {**docs, **folders, **{path: path.partition("/")[2] for path in shown}, **ADDRESSES}


def _published() -> list[Path]:
    """Results folders that ship; the first holds the meta-trainings."""
    top = ROOT / PUBLISHED
    return [top, *sorted(path for path in top.iterdir() if path.is_dir() and path.name != "meta")]


def _below(path: Path) -> str:
    """Address of a published file."""
    return path.relative_to(ROOT / "results").as_posix()


def _reports(folder: Path) -> list[str]:
    """Write the report of every results folder that has anything to report; their addresses."""
    found = []
    for results in _published():
        if any((results / part).is_dir() for part in REPORTED):
            found.append(f"{_below(results)}/report.html")
            (folder / found[-1]).parent.mkdir(parents=True, exist_ok=True)
            report(results, folder / found[-1])
    return found


def _gallery(reports: list[str]) -> str:
    """The page of published results: what there is of each folder, and its figures."""
    lines = [
        "# Gallery and reports\n",
        "Figures of the results that ship, and a [report](report.md) of each folder. [Results](results.md) says what "
        "they mean.",
    ]
    for folder in _published():
        pages = [*sorted(folder.glob("*.md")), *sorted(folder.glob("generalization/*/*.md"))]
        links = [f"[{path.stem}]({_below(path)})" for path in pages]
        links += [f"[report]({address})" for address in reports if address == f"{_below(folder)}/report.html"]
        lines += [f"\n## {'meta-training' if _below(folder) == 'published' else folder.name}\n", " · ".join(links)]
        for path in sorted(
            path
            for part in ("", "tuning/", "generalization/*/", "meta/*/")
            for path in folder.glob(f"{part}figures/*.png")
        ):
            of = f"{path.parent.parent.name}, " if path.match("meta/*/figures/*") else ""
            title = of + path.stem.replace("_", " ")
            lines.append(f"\n![{title}]({_below(path)})\n\n*{title}*")
    return "\n".join(lines) + "\n"


def _examples() -> str:
    """The page of examples: the scripts, and the notebook's cells."""
    lines = ["# Examples\n", "They lie in `examples/`, and the tests run them."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text("utf-8")
        title = (ast.get_docstring(ast.parse(code)) or path.stem).partition(":")[0]
        lines.append(f'\n## {title}\n\n```python title="{path.name}"\n{code}```')
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            text = "".join(cell["source"])
            lines.append(f"\n```python\n{text}\n```" if cell["cell_type"] == "code" else f"\n{text}")
    return "\n".join(lines) + "\n"


def _api() -> str:
    """The page of public names with their docstrings, functions first."""
    lines, told = ["# Python\n", "What `import open_bench` gives, and what an author of an extension imports."], set()
    for module, names in API.items():
        lines.append(f"\n## {module}\n")
        for name in sorted(names or importlib.import_module(module).__all__, key=lambda each: each[0].isupper()):
            if name not in told:
                lines.append(f"::: {module}.{name}\n")
            told.add(name)
    return "\n".join(lines)


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
