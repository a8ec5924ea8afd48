"""Configuration of the documentation: Sphinx, Markdown pages (MyST), API from docstrings.

    pip install '.[docs]'
    sphinx-build -W docs build/docs

The site needs no network: formulas become MathML when it is built, and there are no web fonts.
"""

from importlib.metadata import version as installed_version

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project = "fastloss"
author = "the fastloss developers"
version = release = installed_version("fastloss")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# `cross_entropy` in a docstring links to the function.
default_role = "py:obj"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"fastloss {release}"
html_static_path = ["_static"]
html_css_files = ["fastloss.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def _math(display: str):
    """A visitor that writes a formula as MathML, which browsers draw themselves."""

    def visit(self, node: nodes.Element) -> None:
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def _close_examples(app: Sphinx, page: str, source: list[str]) -> None:
    """Take out the empty line that ends an example for doctest."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", _math("inline"), _math("block"))
    app.connect("source-read", _close_examples)


html_math_renderer = "mathml"
