"""How Sphinx builds the documentation: make docs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["COLUMNS"] = "88"  # the width of help texts

import nfnet
from nfnet.cli import build
from nfnet.rules._criteria import CRITERIA
from nfnet.rules._criterion import EVERYWHERE, Criterion
from nfnet.rules._values import HOOKS

project = "nfnet"
author = "The nfnet developers"
project_copyright = "The nfnet developers, MIT licence"
version = release = nfnet.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_markdown_builder"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
exclude_patterns = ["figures"]  # parts of pages, to be included
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"nfnet {version}"
html_static_path = ["_static"]
html_css_files = ["nfnet.css"]
html_js_files = ["nfnet.js"]
# Other versions of this site, for the switch in the sidebar: NFNET_DOCS_VERSIONS="1.0=/1.0/ latest=/latest/".
versions = [item.partition("=")[::2] for item in os.environ.get("NFNET_DOCS_VERSIONS", "").split()]
html_context = {"versions": versions}
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Netns": "nfnet.netns.Netns"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
default_role = "py:obj"  # what docstrings have in single backticks
# What docstrings refer to must exist; annotations also name what has no page here, the standard library for one.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:data", "typing.*")]


# --- docstrings, which are prose with few conventions, to reStructuredText

_PARAMETER = re.compile(r"(\w+(?:, \w+)*): (.+)")


def convert_docstring(app: Sphinx, what: str, name: str, subject: object, options: object, lines: list[str]) -> None:
    """``name: text`` becomes a definition, and an indented block after an empty line becomes code."""
    out: list[str] = []
    in_definition = in_code = False
    for before, line in zip(["", *lines], lines):
        if in_code and line and not line.startswith(" "):
            in_code = False
        found = _PARAMETER.fullmatch(line)
        if found and what in ("class", "function", "method") and (in_definition or not before):
            in_definition = True
            names = ", ".join(f"``{word}``" for word in found[1].split(", "))
            out += ["" if before else out.pop() if out else "", names, f"    {found[2]}"]
            continue
        if line and not line.startswith(" ") and in_definition:
            in_definition = False
            out += [""] if before else []
        if not in_code and not in_definition and line.startswith("    ") and not before:
            if out and len(out) > 1 and out[-2].endswith("::"):
                pass  # says so itself
            else:
                out += [".. code-block:: python", ""]
            in_code = True
        out.append(line)
    lines[:] = out


def name_aliases(
    app: Sphinx, what: str, name: str, subject: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Type aliases by their names."""
    return tuple(
        text and re.sub(r"TypeAliasForwardRef\('[\w.]*?(\w+)'\)", r"\1", text) for text in (signature, returns)
    )


def give_fields_their_text(app: Sphinx, what: str, name: str, subject: Any, options: object, lines: object) -> None:
    """Replace the docstring "Alias for field number 0" of a named tuple's field by the string below the field."""
    if what == "class" and hasattr(subject, "_fields"):
        texts = ModuleAnalyzer.for_module(subject.__module__).find_attr_docs()
        for field in subject._fields:
            if text := texts.get((subject.__qualname__, field)):
                getattr(subject, field).__doc__ = " ".join(text).strip()


def skip_bare_field(app: Sphinx, what: str, name: str, subject: Any, skip: bool, options: object) -> bool | None:
    """Skip fields of named tuples that have no text of their own; the docstring of the class describes them."""
    return True if (getattr(subject, "__doc__", None) or "").startswith("Alias for field number") else None


def find_object(app: Sphinx, env: Any, node: Any, child: Any) -> Any:
    """A name as a docstring writes it, `Queue.open` or `inet.rewrite`, wherever that docstring is."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    target = node["reftarget"]
    names = [f"nfnet.{target}"] if f"nfnet.{target}" in domain.objects else []
    names = names or [name for name in domain.objects if name.endswith(f".{target}")]
    if len(names) != 1:
        return None
    found = domain.objects[names[0]]
    return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, child, names[0])


def mend_html(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Make elements what they mean: screen readers announce empty headers, and lists of definitions.

    Tables in Markdown must have a header. In HTML an empty one is left out, and an empty cell of one is no header. The
    arguments of a long signature are lines of it, and no definitions.
    """
    empty = r'<th class="head[^"]*"><p></p></th>\s*'
    body = re.sub(rf'<thead>\s*<tr class="row-odd">(?:{empty})+</tr>\s*</thead>', "", context.get("body", ""))
    body = re.sub(empty, "<td></td>\n", body)
    arguments = r'<dl>\n((?:<dd><em class="sig-param">.*</dd>\n)+)</dl>'

    def lines(found: re.Match[str]) -> str:
        return '<div class="arguments">\n' + found[1].replace("<dd>", "<div>").replace("</dd>", "</div>") + "</div>"

    context["body"] = re.sub(arguments, lines, body)


# --- help texts of the command


class HelpText(SphinxDirective):
    """``{nfnet-help} queue``: what ``nfnet queue --help`` says."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        parser: argparse.ArgumentParser = build()
        if self.arguments:
            parser = subcommands(parser)[self.arguments[0]]
        text = parser.format_help()
        block = nodes.literal_block(text, text, language="text")
        return [block]


class CriteriaTable(SphinxDirective):
    """``{nfnet-criteria}``: what rules may ask of packets, from the rows of `nfnet.rules`."""

    def run(self) -> list[nodes.Node]:
        lines = ["| argument | selects packets by | value |", "| --- | --- | --- |"]
        for name, row in CRITERIA.items():
            lines.append(f"| `{name}` | {row.description} | {row.syntax.replace('``', '`')} |")
        return nested(self, lines)


class HooksTable(SphinxDirective):
    """``{nfnet-hooks}``: where each of these can match, from the rows of `nfnet.rules`."""

    def run(self) -> list[nodes.Node]:
        places: dict[str, list[str]] = {}
        for name, row in CRITERIA.items():
            if row.hooks == EVERYWHERE and row.families == Criterion.families:
                continue
            hooks = "all but ingress" if row.hooks.names == HOOKS else ", ".join(row.hooks.names)
            limits = [row.hooks.note] if row.hooks.note else []
            if row.families != Criterion.families:
                limits.append(f"in the families {', '.join(row.families)}")
            places.setdefault("; ".join([hooks, *limits]), []).append(f"`{name}`")
        lines = ["| argument | for the hooks |", "| --- | --- |"]
        lines += [f"| {', '.join(names)} | {place} |" for place, names in places.items()]
        return nested(self, lines)


def nested(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    """Return the nodes of lines of Markdown made of the rows of `nfnet.rules`."""
    place = nodes.container()
    source = StringList(lines, source="nfnet/rules/_criteria.py")
    directive.state.nested_parse(source, directive.content_offset, place)
    return list(place.children)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    action = next(item for item in parser._actions if isinstance(item, argparse._SubParsersAction))
    return dict(action.choices)


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx of the above."""
    app.add_directive("nfnet-help", HelpText)
    app.add_directive("nfnet-criteria", CriteriaTable)
    app.add_directive("nfnet-hooks", HooksTable)
    app.connect("autodoc-process-docstring", convert_docstring)
    app.connect("autodoc-process-docstring", give_fields_their_text)
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("autodoc-skip-member", skip_bare_field)
    app.connect("missing-reference", find_object)
    app.connect("html-page-context", mend_html)
    return {"parallel_read_safe": True}
