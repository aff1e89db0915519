"""Sphinx's configuration. `make docs` builds the pages into docs/_build/html, and any warning fails the build."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from command_pages import Commands, Explanations  # noqa: E402
from settings_directive import Settings  # noqa: E402
from state_diagrams import diagram_of  # noqa: E402
from state_tables import tables_of  # noqa: E402  # state_diagrams puts its folder on the path

import scistream  # noqa: E402
from scistream.reference.schema import schema_text  # noqa: E402
from scistream.reference.settings_list import FILES  # noqa: E402

project = "SciStream"
author = "the SciStream developers"
project_copyright = f"2026, {author}"
release = version = scistream.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

default_role = "literal"  # `name` in a docstring is code
highlight_language = "text"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Signatures name types. Types of Twisted, and of modules without a page of their own, are not links.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(twisted|asyncio|collections|pathlib|typing|msgspec|datetime|uuid)\..*"),
    ("py:.*", r"(?!scistream\.)[\w.]+"),
    ("py:.*", r"scistream\.(?!s2uc\.client|app\.joining)[\w.]+"),
]

SCHEMAS = HERE / "_build" / "schemas"
SCHEMAS.mkdir(parents=True, exist_ok=True)
for file in FILES.values():
    (SCHEMAS / f"{file.name}.schema.json").write_text(schema_text(file), encoding="utf-8")
html_extra_path = ["_build/schemas"]

html_theme = "furo"
html_title = f"SciStream {release}"
html_static_path = ["_static"]
html_css_files = ["scistream.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6b75", "color-brand-content": "#0b6b75"},
    "dark_css_variables": {"color-brand-primary": "#5cc8d3", "color-brand-content": "#5cc8d3"},
}


class StateMachine(SphinxDirective):
    """``.. state-machine:: MODULE`` draws the first state table of a module; ``:table: 2`` the second one."""

    required_arguments = 1
    option_spec = {"table": directives.positive_int}  # noqa: RUF012  # as docutils declares it

    def run(self) -> list[nodes.Node]:
        """Make the picture; the page is built again when the module changes."""
        module = importlib.import_module(self.arguments[0])
        self.env.note_dependency(str(module.__file__))
        number = self.options.get("table", 1)
        diagram = diagram_of(tables_of(module.__doc__)[number - 1])
        name = f"{module.__name__.replace('.', '-')}-{number}"
        return [nodes.raw("", diagram.svg(name, f"The state machine of {module.__name__}"), format="html")]


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("state-machine", StateMachine)
    app.add_directive("settings", Settings)
    app.add_directive("program-help", Commands)
    app.add_directive("explanations", Explanations)
