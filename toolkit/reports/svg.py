"""From a matplotlib figure to an inline SVG that follows the page: its colours, its fonts, its light or dark mode.

Figures are drawn in sentinel colours, one for each of the page's CSS variables, and the finished SVG is rewritten: sentinels become
`var(--name)`, fonts are left to CSS, ids are dropped or made unique to the figure (matplotlib's repeat from figure to figure), and
coordinates lose the digits nobody sees. One unit of a figure is one CSS pixel at its natural width.
"""

from __future__ import annotations

import bisect
import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from xml.etree import ElementTree

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullLocator

from toolkit.reports.cards import without_control_characters
from toolkit.reports.parameters import shortened

# Names of CSS variables in templates/style.css.
COLOUR_NAMES = ("text", "muted", "grid", "card", "good", "weak", "bad", "best", "s1", "s2", "s3", "s4", "s5")
_SENTINELS = {name: f"#fe01{number:02x}" for number, name in enumerate(COLOUR_NAMES)}
_SENTINEL_PATTERN = re.compile(r"#fe01([0-9a-f]{2})")
_DIGITS = re.compile(r"(\.\d\d)\d+")
_FONT = re.compile(r"font(?:-family)?:[^;]*;?\s*")
_NUMBER_ATTRIBUTES = ("d", "x", "y", "transform", "points", "width", "height")
HALO = "halo"
"""The `gid` of text that must stay readable on lines: CSS gives it an outline in the card's colour."""
FONT_SIZE = 11.5
_TITLE = "title:"
_MAX_TITLE = 120

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "toolkit",
    "text.parse_math": False,  # a parameter named "$x$" is not a formula
    "path.simplify": False,  # it would merge the zero-length strokes that `dots` draws
    "font.size": FONT_SIZE,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": _SENTINELS["grid"],
    "axes.labelcolor": _SENTINELS["muted"],
    "axes.labelsize": FONT_SIZE,
    "axes.labelpad": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _SENTINELS["grid"],
    "grid.linewidth": 0.8,
    "text.color": _SENTINELS["text"],
    "xtick.color": _SENTINELS["muted"],
    "ytick.color": _SENTINELS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}


def colour(name: str) -> str:
    """The sentinel that becomes `var(--name)`."""
    return _SENTINELS[name]


@contextmanager
def chart_style() -> Iterator[None]:
    """Draw inside this. It sets matplotlib's process-wide parameters and puts them back: one thread at a time."""
    with warnings.catch_warnings(), matplotlib.rc_context(cast(Any, STYLE)):
        # Names in scripts that DejaVu lacks: the browser draws them with its own fonts, only their width was guessed.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_axes(width: float, height: float, left: float = 56, right: float = 12, top: float = 12, bottom: float = 38) -> Axes:
    """One set of axes on a figure of its own; all in CSS pixels. Fixed margins: matplotlib's layout engines draw everything twice."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    return figure.add_axes((left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height))


@functools.lru_cache(4096)
def text_width(text: str, size: float = FONT_SIZE) -> float:
    """CSS pixels of the longest line, in DejaVu Sans: browsers' own fonts are narrower."""
    # DejaVu lacks the scripts whose signs are a square each; so is its W.
    lines = ["".join("W" if unicodedata.east_asian_width(sign) in "WF" else sign for sign in line) for line in text.split("\n")]
    font = FontProperties(size=size)
    return max(float(text_to_path.get_text_width_height_descent(line, font, False)[0]) if line else 0.0 for line in lines)


def fitted(text: str, width: float) -> str:
    """The text, cut at its end to `width` CSS pixels."""
    if text_width(shortened(text, int(width))) <= width:  # no sign is narrower than a pixel
        return shortened(text, int(width))
    num = bisect.bisect_right(range(1, min(len(text), int(width))), width, key=lambda num: text_width(shortened(text, num)))
    return shortened(text, max(num, 1))


def name_in_full(labels: Sequence[Text], names: Sequence[str]) -> None:
    """A tooltip on each tick label that does not say its whole name."""
    for label, name in zip(labels, names, strict=True):
        if label.get_text().replace("\n", " ") != name:
            label.set_gid(_TITLE + shortened(name, _MAX_TITLE))


def dots(axes: Axes, x: npt.ArrayLike, y: npt.ArrayLike, name: str, size: float = 6, alpha: float = 1.0) -> None:
    """Round dots as one path of zero-length strokes: a tenth of the bytes of a marker each, and overlaps do not darken."""
    points = np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)])
    if len(points):
        path = Path(np.repeat(points, 2, axis=0), np.tile([Path.MOVETO, Path.LINETO], len(points)))
        axes.add_patch(
            PathPatch(path, fill=False, edgecolor=colour(name), linewidth=size, capstyle="round", alpha=alpha, clip_on=False, zorder=3)
        )


def ring(axes: Axes, x: float, y: float, name: str, size: float = 11) -> None:
    """The mark of the one that matters: a filled ring, legible without its colour."""
    axes.plot(
        [x], [y], "o", markersize=size, markerfacecolor=colour("card"), markeredgecolor=colour(name), markeredgewidth=3,
        clip_on=False, zorder=6,
    )  # fmt: skip


class PlainNumbers(Formatter):
    """As many decimals as the distance of the ticks needs; no offsets, no powers in mathtext."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.4g}".replace("-", "\N{MINUS SIGN}")

    def format_ticks(self, values: Any) -> list[str]:
        ticks = np.asarray(values, dtype=float)
        step = float(np.min(np.diff(ticks))) if len(ticks) > 1 else 0.0
        if step < 1e-5 or np.abs(ticks).max() >= 1e6:
            return [self(tick) for tick in ticks]
        decimals = max(0, -int(np.floor(np.log10(step) + 1e-9)))
        decimals += 1 if round(step * 10**decimals, 6) % 1 else 0  # steps such as 0.25
        return [f"{tick:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def plain_axis(axis: Any, bins: int = 5, integer: bool = False) -> None:
    axis.set_major_locator(MaxNLocator(bins, integer=integer, steps=[1, 2, 5, 10] if integer else [1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(PlainNumbers())


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers: between the powers of ten too where it spans few."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 2.5 else (1.0,), numticks=5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(LogNumbers())


class LogNumbers(Formatter):
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}"


def to_svg(axes: Axes, key: str, label: str) -> Markup:
    """The axes' figure as an `<svg>` element; `key` makes its ids unique on the page, `label` is what a screen reader says."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(without_control_characters(text.getvalue()))
    _tidy(root, key)
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    root.attrib = {
        "class": "chart",
        "role": "img",
        "aria-label": label,
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:g}",
        "height": f"{height:g}",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _tidy(element: ElementTree.Element, key: str) -> None:
    element.tag = element.tag.rsplit("}", 1)[-1]
    for child in list(element):
        # The style sheet of matplotlib would apply to the whole page.
        if child.tag.endswith(("}style", "}metadata")):
            element.remove(child)
        else:
            _tidy(child, key)
    if element.text is not None and not element.text.strip():
        element.text = None
    if element.tag == "g":
        gid = element.attrib.pop("id", "")
        if gid == HALO:
            element.attrib["class"] = HALO
        elif gid.startswith(_TITLE):
            title = ElementTree.Element("title")
            title.text = gid.removeprefix(_TITLE)
            element.insert(0, title)
    element.tail = None
    for name, value in list(element.attrib.items()):
        plain = name.rsplit("}", 1)[-1]
        if plain == "id":
            value = f"{key}-{value}"
        elif plain == "href":
            value = f"#{key}-{value.lstrip('#')}"
        elif plain == "clip-path":
            value = value.replace("url(#", f"url(#{key}-")
        elif plain == "style":
            value = _style(value, element.tag)
        elif plain == "transform" and value.startswith("rotate(-0 "):
            value = ""
        elif plain in _NUMBER_ATTRIBUTES:
            value = _DIGITS.sub(r"\1", value).replace(" \n", "").replace("\n", "")
        del element.attrib[name]
        if value:
            element.attrib[plain] = value


def _style(style: str, tag: str) -> str:
    style = _SENTINEL_PATTERN.sub(lambda match: f"var(--{COLOUR_NAMES[int(match[1], 16)]})", style)
    return _FONT.sub("", style) if tag == "text" else style
