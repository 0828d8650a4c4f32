"""Sphinx's settings. `make docs` builds the site with warnings as errors."""

from __future__ import annotations

from specdistill import __version__

project = "specdistill"
version = release = __version__
author = copyright = "the specdistill authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    # Docstrings are in Google's style.
    "sphinx.ext.napoleon",
    "cyclopts.ext.sphinx",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"specdistill {version}"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
