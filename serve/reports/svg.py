"""matplotlib plots as inline SVG of a page.

Text stays text in the page's font, colors become the page's CSS variables
(`serve.reports.colours`), and no element has an id, so that the SVGs of one page cannot conflict.
A plot is `WIDTH` pixels wide: a phone shows it at its original size, and a wider screen shows two
plots side by side.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text

from serve.reports.colours import LINE, SOFT, TEXT, VARIABLES

WIDTH = 400
"""Width of a plot in pixels."""
SMALL = 11
"""Font size of an axis' numbers in pixels."""

_PIXELS_PER_INCH = 72
_STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "skyreward",
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.titlesize": 12,
    "axes.titlecolor": TEXT,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "text.color": TEXT,
    "text.parse_math": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    # matplotlib draws ticks by reference to an id; ticks of size 0 are omitted.
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
}
_TOOLTIP = "hint: "
_NAMESPACE = re.compile(r"\{[^}]*\}")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"\s*font-family:[^;]*;")
# Characters that ElementTree writes but XML parsers reject: control characters, lone surrogates.
_INVALID_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECIMALS = re.compile(r"\d+\.\d{2,}")


def render_svg(label: str, height: float, draw: Callable[[Figure], None]) -> Markup:
    """Render a plot as inline SVG; equal plots give equal bytes.

    Args:
        label: accessible label of the plot (`aria-label`).
        height: height in pixels.
        draw: function that draws into an empty matplotlib object.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        size = (WIDTH / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        # A clip path is referenced by an id, and plots draw nothing outside their axes.
        for artist in figure.findobj():
            artist.set_clip_on(False)
            if isinstance(artist, Text):
                artist.set_text(_replace_invalid_xml(artist.get_text()))
        file = io.StringIO()
        # Names may be in any script; the reader's fonts may have glyphs that matplotlib's lacks.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(file, format="svg", metadata={"Date": None})
    svg = _inline(file.getvalue(), label)
    return Markup('<div class="{}">{}</div>').format("figure", svg)


def add_tooltip(artist: Artist, text: str, hover_only: bool = False) -> None:
    """Add a tooltip to an artist.

    Args:
        artist: a patch or a line.
        text: text of the tooltip.
        hover_only: whether the artist is visible only on hover.
    """
    artist.set_gid(_TOOLTIP + ("! " if hover_only else "") + text)


def _replace_invalid_xml(text: str) -> str:
    return _INVALID_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _inline(svg: str, label: str) -> Markup:
    # ElementTree writes tags with namespaces, which inline SVG must not have.
    root = ElementTree.fromstring(_replace_invalid_xml(svg))
    defined: dict[str, ElementTree.Element] = {}
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {_NAMESPACE.sub("", k): v for k, v in element.attrib.items()}
        if element.tag == "path" and "id" in element.attrib:
            defined["#" + element.attrib.pop("id")] = element
    _tidy(root, defined)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": _replace_invalid_xml(label),
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tidy(element: ElementTree.Element, defined: Mapping[str, ElementTree.Element]) -> None:
    element.text, element.tail = (element.text or "").strip() or None, None
    for name, value in element.attrib.items():
        if name == "style":
            # KeyError for other colors than the placeholders, which would not follow the page.
            value = _COLOUR.sub(lambda match: VARIABLES[match[0]], _FONT.sub("", value))
        elif name != "id":
            value = _DECIMALS.sub(lambda match: f"{float(match[0]):.1f}", " ".join(value.split()))
        element.set(name, value)
    assert "clip-path" not in element.attrib
    if element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for child in list(element):
        if child.tag in ("metadata", "defs") or child.attrib.get("style") == "fill: none":
            element.remove(child)
        elif child.tag == "use":
            _inline_marker(child, defined[child.attrib["href"]])
            _tidy(child, {})
        else:
            _tidy(child, defined)
            if child.tag == "g" and not len(child):
                element.remove(child)
    element_id = element.attrib.pop("id", "")
    if element_id.startswith(_TOOLTIP):
        _insert_title(element, element_id.removeprefix(_TOOLTIP))


def _inline_marker(use: ElementTree.Element, path: ElementTree.Element) -> None:
    """Replace a reference to a marker by the marker."""
    use.tag = "path"
    use.attrib = {
        "d": path.attrib["d"],
        "transform": f"translate({use.attrib['x']} {use.attrib['y']})",
        "style": use.attrib.get("style", ""),
    }


def _insert_title(element: ElementTree.Element, text: str) -> None:
    title = ElementTree.Element("title")
    title.text = text.removeprefix("! ")
    element.insert(0, title)
    if text.startswith("! "):
        element.set("class", "hint")
        for child in element:
            child.attrib.pop("style", None)
