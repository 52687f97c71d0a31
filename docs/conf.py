"""Sphinx settings: Markdown pages and docstrings -> a site that needs no network, made or read."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gpattern_bench

sys.path.append(str(Path(__file__).parent))  # for `commands`, beside this file
import commands

project = "gpattern-bench"
author = "The gpattern-bench developers"
project_copyright = author
version = release = gpattern_bench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

highlight_language = "none"  # blocks without a language are command lines and their output
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # so that links to headings work here as on a forge

autodoc_typehints = "none"  # numpydoc sections say what everything is
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

autosummary_generate = False  # numpydoc loads it; all names are on one page

html_theme = "furo"  # light and dark, for phones too; loads nothing from elsewhere
html_title = project
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00568c", "color-brand-content": "#00568c"},
    "dark_css_variables": {"color-brand-primary": "#7cc0f0", "color-brand-content": "#7cc0f0"},
}
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/board.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False

_OUTSIDE = {  # what stands outside docs/, and the page that includes it
    "leaderboard/LEADERBOARD.md": "board",
    "leaderboard/WHICH_METHOD.md": "which-method",
}
_BOARD = "leaderboard/index.html"  # the board as one page, in the repository and on the site
_INCLUDE = re.compile(r"```\{include\} (?P<path>\S+)\n```")
_LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<path>(?![\w+.-]+:)[^)\s#]+)(?P<place>#[^)\s]*)?\)")


def _fill(app: Any, docname: str, source: list[str]) -> None:
    """Give a page the text that stands elsewhere, and links that lead somewhere on the site."""
    docs = Path(app.srcdir)
    page = docs / f"{docname}.md"

    def included(block: re.Match[str]) -> str:
        path = Path(os.path.normpath(page.parent / block["path"]))
        app.env.note_dependency(str(path))
        return _lead_inward(docs, page, path.parent, path.read_text(encoding="utf-8"))

    source[0] = _INCLUDE.sub(included, _lead_inward(docs, page, page.parent, source[0]))
    if docname == "cli":
        source[0] += commands.reference()


def _lead_inward(docs: Path, page: Path, here: Path, text: str) -> str:
    """Make links, written in the folder `here`, lead to pages of the site; others become text."""
    known = {docs.parent / path: docs / f"{name}.md" for path, name in _OUTSIDE.items()}

    def inward(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(here / link["path"]))
        if target == docs.parent / _BOARD:
            path = os.path.relpath(docs / _BOARD, page.parent)
            return f'<a href="{path}">{link["text"]}</a>'
        target = known.get(target, target)
        if not target.is_relative_to(docs):
            return link["text"]
        return f"[{link['text']}]({os.path.relpath(target, page.parent)}{link['place'] or ''})"

    return _LINK.sub(inward, text)


def _add_board(app: Any, failure: Exception | None) -> None:
    """Put the board's page, and what it offers for download, beside the pages of the site."""
    if failure is not None or app.builder.name != "html":
        return
    root, out = Path(app.srcdir).parent, Path(app.outdir)
    page = (root / _BOARD).read_text(encoding="utf-8")
    page = re.sub(r'href="\.\./docs/([^"#]*)\.md', r'href="../\1.html', page)
    page = page.replace('href="../README.md"', 'href="../index.html"')
    for path, name in _OUTSIDE.items():
        page = page.replace(f'href="{Path(path).name}"', f'href="../{name}.html"')
    # Submissions are not on the site: their files and rules are named, not linked.
    page = re.sub(r'<a href="\.\./submissions/[^"]*"[^>]*>(.*?)</a>', r"\1", page)
    (out / "leaderboard").mkdir(exist_ok=True)
    (out / _BOARD).write_text(page, encoding="utf-8")
    shutil.copy(root / "leaderboard" / "leaderboard.json", out / "leaderboard")
    shutil.copy(root / "CITATION.cff", out)


def setup(app: Any) -> None:
    """Attach the hooks above."""
    app.connect("source-read", _fill)
    app.connect("build-finished", _add_board)
