"""Sphinx settings.

Build with `nox -s docs`, or `sphinx-build -W -b html docs docs/_build/html` where tenfold[docs] is installed.
"""

from __future__ import annotations

import tenfold
from tenfold.workflows import WORKFLOWS

project = "Tenfold"
author = "The Tenfold authors"
copyright = "The Tenfold authors, Apache-2.0"
version = release = tenfold.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
# A tutorial is shown as the notebook with outputs that `nox -s tutorials` made of its Markdown source.
exclude_patterns = ["_build", *(f"tutorials/{name}.md" for name in WORKFLOWS)]
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # `name` in docstrings is code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "Tenfold"
html_static_path = ["_static"]
