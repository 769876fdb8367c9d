"""matplotlib's drawings as parts of a page.

A drawing becomes SVG inside the page: letters stay letters in the page's own font, colours become
its variables (`serve.pages.colours`), and nothing has an id, so two drawings cannot get in each
other's way. It is made for `WIDTH`: a telephone shows it as it was drawn, and where there is more
room two stand side by side.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from serve.pages.colours import LINE, SOFT, TEXT, VARIABLES

WIDTH = 420
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
_HINT = "hint: "
_NAMESPACE = re.compile(r"\{[^}]*\}")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"\s*font-family:[^;]*;")
_DECIMALS = re.compile(r"\d+\.\d{2,}")


def drawn(label: str, height: float, draw: Callable[[Figure], None]) -> Markup:
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
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Markup('<div class="figure">{}</div>').format(_inline(file.getvalue(), label))


def hint(artist: Artist, text: str, alone: bool = False) -> None:
    """Show a text where the pointer is over an artist.

    Args:
        artist: a patch or a line.
        text: of the hint.
        alone: whether the artist is there for its hint alone, and seen under the pointer only.
    """
    artist.set_gid(_HINT + ("! " if alone else "") + text)


def _inline(svg: str, label: str) -> Markup:
    # ElementTree writes names with their namespaces, which SVG inside HTML does not have.
    root = ElementTree.fromstring(svg)
    defined: dict[str, ElementTree.Element] = {}
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {_NAMESPACE.sub("", k): v for k, v in element.attrib.items()}
        if element.tag == "path" and "id" in element.attrib:
            defined["#" + element.attrib.pop("id")] = element
    _tidy(root, defined)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    assert "url(" not in text
    # Colours that are not ours would not follow the page.
    text = _COLOUR.sub(lambda found: VARIABLES[found[0]], text)
    return Markup(_DECIMALS.sub(lambda found: f"{float(found[0]):.1f}", text))


def _tidy(element: ElementTree.Element, defined: Mapping[str, ElementTree.Element]) -> None:
    element.text, element.tail = (element.text or "").strip() or None, None
    for attribute in ("d", "transform"):
        if attribute in element.attrib:
            element.set(attribute, " ".join(element.attrib[attribute].split()))
    if "style" in element.attrib:
        element.set("style", _FONT.sub("", element.attrib["style"]))
    if element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for child in list(element):
        if child.tag in ("metadata", "defs") or child.attrib.get("style") == "fill: none":
            element.remove(child)
        elif child.tag == "use":
            _place(child, defined[child.attrib["href"]])
        else:
            _tidy(child, defined)
            if child.tag == "g" and not len(child):
                element.remove(child)
    said = element.attrib.pop("id", "")
    if said.startswith(_HINT):
        _say(element, said.removeprefix(_HINT))


def _place(use: ElementTree.Element, path: ElementTree.Element) -> None:
    """Make a reference to a marker into the marker."""
    use.tag = "path"
    place = f"translate({use.attrib['x']} {use.attrib['y']})"
    use.attrib = {
        "d": " ".join(path.attrib["d"].split()),
        "transform": place,
        "style": use.attrib.get("style", ""),
    }


def _say(element: ElementTree.Element, text: str) -> None:
    title = ElementTree.Element("title")
    title.text = text.removeprefix("! ")
    element.insert(0, title)
    if text.startswith("! "):
        element.set("class", "hint")
        for child in element:
            child.attrib.pop("style", None)
