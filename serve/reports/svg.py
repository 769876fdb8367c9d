"""matplotlib's drawings as parts of a page.

A drawing becomes SVG inside the page: letters stay letters in the page's own font, colours become
its variables (`serve.reports.colours`), and nothing has an id, so two drawings cannot get in each
other's way. It is made for `WIDTH`: a telephone shows it as it was drawn, and where there is more
room two stand side by side.
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
"""Of a drawing, in pixels."""
SMALL = 11
"""Size of the numbers of an axis, in pixels."""

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
    # Ticks are the one thing that matplotlib draws by reference to an id.
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
}
_TOOLTIP = "hint: "
_NAMESPACE = re.compile(r"\{[^}]*\}")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"\s*font-family:[^;]*;")
# What the writer lets through and no reader takes: control characters, halves of pairs.
_INVALID_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECIMALS = re.compile(r"\d+\.\d{2,}")


def render_svg(label: str, height: float, draw: Callable[[Figure], None]) -> Markup:
    """A drawing, as a part of a page; equal drawings give equal bytes.

    Args:
        label: what somebody who cannot see it is told.
        height: in pixels.
        draw: is given an empty figure.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        size = (WIDTH / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        # A clipped line refers to its clip by an id; nothing here is drawn outside its axes.
        for artist in figure.findobj():
            artist.set_clip_on(False)
            if isinstance(artist, Text):
                artist.set_text(_replace_invalid_xml(artist.get_text()))
        file = io.StringIO()
        # Names may be in any script: the reader's fonts have it even if matplotlib's has not.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(file, format="svg", metadata={"Date": None})
    return Markup('<div class="figure">{}</div>').format(_inline(file.getvalue(), label))


def add_tooltip(artist: Artist, text: str, hover_only: bool = False) -> None:
    """Show a text where the pointer is over an artist.

    Args:
        artist: a patch or a line.
        text: of the hint.
        alone: whether the artist is there for its hint alone, and seen under the pointer only.
    """
    artist.set_gid(_TOOLTIP + ("! " if hover_only else "") + text)


def _replace_invalid_xml(text: str) -> str:
    return _INVALID_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _inline(svg: str, label: str) -> Markup:
    # ElementTree writes names with their namespaces, which SVG inside HTML does not have.
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
            # A colour that is not ours would not follow the page; it is an error.
            value = _COLOUR.sub(lambda found: VARIABLES[found[0]], _FONT.sub("", value))
        elif name != "id":
            value = _DECIMALS.sub(lambda found: f"{float(found[0]):.1f}", " ".join(value.split()))
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
    said = element.attrib.pop("id", "")
    if said.startswith(_TOOLTIP):
        _insert_title(element, said.removeprefix(_TOOLTIP))


def _inline_marker(use: ElementTree.Element, path: ElementTree.Element) -> None:
    """Make a reference to a marker into the marker."""
    use.tag = "path"
    place = f"translate({use.attrib['x']} {use.attrib['y']})"
    use.attrib = {
        "d": path.attrib["d"],
        "transform": place,
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
