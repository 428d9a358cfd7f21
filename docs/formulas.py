"""Formulas are drawn as SVG when the site is built: a reader needs no script, no network and no font for them."""

import html
import re
from xml.etree import ElementTree

import ziamath

# what pymdownx.arithmatex leaves: \(...\) in a span, \[...\] in a div
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
FONT_SIZE = 16

# each path where it stands: names of shared ones would be the same in all formulas of a page
ziamath.config.svg2 = False


def on_page_content(content: str, **_) -> str:
    """Called by mkdocs with the HTML of each page."""
    return FORMULA.sub(as_svg, content)


def as_svg(formula: re.Match) -> str:
    """In units of the text around it, whose colour it has, and on its line."""
    tag, tex = formula.groups()
    tex = html.unescape(tex)
    drawn = ziamath.Latex(tex, size=FONT_SIZE, inline=tag == "span", color="currentColor", title=tex)
    svg = drawn.svgxml()
    for side in ("width", "height"):
        svg.set(side, f"{float(svg.get(side)) / FONT_SIZE:.3f}em")
    svg.set("style", f"vertical-align: {drawn.getyofst() / FONT_SIZE:.3f}em")
    return f'<{tag} class="arithmatex">{ElementTree.tostring(svg, encoding="unicode")}</{tag}>'
