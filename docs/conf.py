"""The documentation site: `python -m sphinx -W docs site` builds it, offline.

Sphinx, since the Python reference comes from the docstrings (autodoc); MyST, since pages are Markdown that GitHub
shows as well; furo, since it is readable light and dark, wide and narrow, and asks no other server for anything.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "pxp-optimize"
author = "the contributors of pxp-optimize"
version = release = version_of("pxp-optimize")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
suppress_warnings = ["toc.not_readable"]  # pages that are listed before they are written; a slip leaves one unlisted
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_type_aliases = {"Given": "Given", "Batches": "Batches"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "pxp-optimize"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
highlight_language = "text"  # of blocks that do not say
pygments_style = "tango"
pygments_dark_style = "github-dark"
