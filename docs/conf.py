"""Configuration of the documentation: Sphinx, Markdown pages (MyST), API from docstrings.

    pip install '.[docs]'
    sphinx-build --fail-on-warning docs build/docs

The site needs no network: formulas become MathML when it is built, and there are no web fonts. The
figures in `figures/` are SVG files that the scripts beside them draw; they go into the page itself,
so that they take its font and its colours, light and dark.
"""

import re
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from fastloss import __version__

project = "fastloss"
author = "The fastloss developers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# `cross_entropy` in a docstring links to the function.
default_role = "py:obj"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

# The site is built where PyTorch, some gigabytes, need not be.
autodoc_mock_imports = ["torch"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"fastloss {release}"
html_static_path = ["_static"]
html_css_files = ["fastloss.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#b03348",
        "color-brand-content": "#b03348",
        "color-brand-visited": "#7d3548",
    },
    "dark_css_variables": {
        "color-brand-primary": "#f08a9b",
        "color-brand-content": "#f08a9b",
        "color-brand-visited": "#d3a0b0",
    },
}


def _math(display: str):
    """A visitor that writes a formula as MathML, which browsers draw themselves."""
    # A word joiner keeps the comma or full stop that follows a formula on its line.
    end = "&#8288;" if display == "inline" else ""

    def visit(self, node: nodes.Element) -> None:
        self.body.append(convert(node.astext(), display=display) + end)
        raise nodes.SkipNode

    return visit, None


def _visit_image(self: HTML5Translator, node: nodes.image) -> None:
    """Write a figure of `figures/` into the page; any other image as Sphinx does."""
    path = Path(self.builder.srcdir, node["uri"])
    if path.suffix != ".svg" or path.parent.name != "figures":
        HTML5Translator.visit_image(self, node)
        return
    svg = path.read_text(encoding="utf-8")
    label = escape(node.get("alt", ""), quote=True)
    opening = f'<svg class="figure" role="img" aria-label="{label}" '
    self.body.append(svg.replace("<svg ", opening, 1))
    raise nodes.SkipNode


def _depart_image(self: HTML5Translator, node: nodes.image) -> None:
    HTML5Translator.depart_image(self, node)


def _close_examples(app: Sphinx, page: str, source: list[str]) -> None:
    """Take out the empty line that ends an example for doctest."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


_SAME = re.compile(r"(\w[\w, ]*) : see (`[\w.]+`)$")


def _gather_parameters(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]):
    """Make one sentence of the parameters that a docstring refers to another function for.

    ``a, b : see `f``` would become a list item for each name.
    """
    if "Parameters" not in lines:
        return
    start = lines.index("Parameters")
    stop = start + 2
    while stop < len(lines) and not re.match("-{3,}$", lines[min(stop + 1, len(lines) - 1)]):
        stop += 1
    where: dict[str, list[str]] = {}
    kept = []
    for line in lines[start:stop]:
        found = _SAME.match(line)
        if found:
            where.setdefault(found[2], []).extend(found[1].split(", "))
        else:
            kept.append(line)
    sentences = []
    for function, names in where.items():
        listed = [f"*{each}*" for each in names]
        last = f" and {listed.pop()}" if len(listed) > 1 else ""
        sentences.append(f"For {', '.join(listed)}{last}, see {function}.")
    if sentences:
        described = any(line.strip() for line in kept[2:])
        lines[start:stop] = [*" ".join(sentences).split("\n"), "", *(kept if described else [])]


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", _math("inline"), _math("block"))
    app.add_node(nodes.image, override=True, html=(_visit_image, _depart_image))
    app.connect("source-read", _close_examples)
    # Before napoleon, which makes field lists of the sections.
    app.connect("autodoc-process-docstring", _gather_parameters, priority=400)


html_math_renderer = "mathml"
