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
SERIES = tuple(f"#1d1e{index:02x}" for index in range(6))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)},
}
# Shape and dash tell series apart where colour does not.
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P"), ("-", (0, (5, 2)), ":", "-.", (0, (1, 1)), "-")

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
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r"\n?L (?=[-\d])", "L", re.sub(r"(\d+\.\d\d)\d+", r"\1", text))
    text = _unique_ids(text, key)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    view = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    assert view is not None  # matplotlib always writes one
    return (
        f'<svg {view[0]} role="img" aria-label="{html.escape(description)}" '
        f'stroke-linejoin="round">{body}'.strip()
    )


def _unique_ids(text: str, key: str) -> str:
    """Prefixes ids that are referred to and drops the others."""
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{key}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]+)"', rename, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", text)
    return re.sub(r'xlink:href="#([^"]+)"', rf'href="#{key}-\1"', text)
