"""Turns a matplotlib figure into SVG that lives inside an HTML page.

Colours are written as place-holders and become CSS variables, so that one drawing serves light,
dark and print; text stays text, so that it can be selected, searched and read aloud.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Place-holders: colours that nothing else uses, replaced by the page's variables.
INK, MUTED, LINE, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
SERIES = tuple(f"#1d1e{index:02x}" for index in range(8))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
# Shape and dash tell series apart where colour does not.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", (0, (5, 2)), ":", "-.", (0, (1, 1)), "-", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))

_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names are data: a $ in one is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same numbers give the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; wider than what pages use
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure; everything that draws runs inside it."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own matplotlibrc must not change a report
        mpl.rcParams.update(_STYLE)
        yield


def inline(figure: Figure, *, key: str, description: str) -> str:
    """Returns `figure` as one <svg> element for an HTML page.

    Args:
      figure: drawn within `style()`, with colours of this module.
      key: makes the ids of this drawing unique within the page.
      description: what the picture shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
    # Its rule would apply to every element of the page.
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.S)
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    referred = {name for pair in used for name in pair if name}
    # Only inside tags: text between them is data and stays as it is.
    text = re.sub(r"<[^>]*>", lambda tag: _rewrite(tag[0], key, referred), text)
    view = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    assert view is not None  # matplotlib always writes one
    return (
        f'<svg {view[0]} role="img" aria-label="{html.escape(description)}" '
        f'stroke-linejoin="round">{body}'.strip()
    )


def _rewrite(tag: str, key: str, referred: set[str]) -> str:
    """One tag with the page's font and colours, short numbers and ids of its own."""

    def rename(match: re.Match[str]) -> str:
        return f' id="{key}-{match[1]}"' if match[1] in referred else ""

    tag = re.sub(r" font-family: [^;\"]*;?", "", tag)
    tag = re.sub(r' (d|x|y|transform)="[^"]*"', _shorten, tag)
    tag = re.sub(r' id="([^"]+)"', rename, tag)
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", tag)
    tag = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{key}-\1"', tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, variable)
    return tag


def _shorten(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point, without the line breaks."""
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute[0])
    return text.replace(" \n", " ")
