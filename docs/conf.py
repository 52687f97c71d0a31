"""Sphinx settings: Markdown pages and docstrings -> a site that needs no network, made or read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import gpattern_bench

project = "gpattern-bench"
author = "The gpattern-bench developers"
project_copyright = author
version = release = gpattern_bench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 3  # so that links to headings work here as on a forge

autodoc_typehints = "none"  # numpydoc sections say what everything is
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

autosummary_generate = False  # numpydoc loads it; all names are on one page

html_theme = "alabaster"  # comes with Sphinx; its fonts are those of the reader's machine
html_theme_options = {
    "description": "Benchmark of gene spatial pattern classification",
    "page_width": "1100px",
    "fixed_sidebar": True,
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_static_path = ["_static"]
html_copy_source = False
html_show_sourcelink = False

_PAGES = {"leaderboard/LEADERBOARD.md": "board.md"}  # what lies outside docs/, as a page
_UPWARD = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<path>\.\./[^)\s#]*)[^)\s]*\)")


def _stay_inside(app: Any, docname: str, source: list[str]) -> None:
    """Links that lead out of docs/ (for readers of the repository): to the page, or as text."""
    docs = Path(app.srcdir)
    here = (docs / docname).parent

    def inward(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(here / link["path"]))
        if target.is_relative_to(docs):
            return link[0]
        page = _PAGES.get(target.relative_to(docs.parent).as_posix())
        text = link["text"]
        return text if page is None else f"[{text}]({os.path.relpath(docs / page, here)})"

    source[0] = _UPWARD.sub(inward, source[0])


def setup(app: Any) -> None:
    """Attach the hook above."""
    app.connect("source-read", _stay_inside)
