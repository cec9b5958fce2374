"""Small plots as SVG text, for pages that need no other file."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT, MARGIN = 360, 260, 42
BAR, LABEL = 22, 190  # a bar's height, room for its name
BLUE, RED, GREY = "#1f5fa8", "#b3412a", "#999"


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour, joined by a line."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = BLUE
    sizes: Sequence[float] = ()  # radii of dots; none: only the line


@dataclass(frozen=True, slots=True)
class Bar:
    """A share in [0, 1] with its interval."""

    name: str
    value: float
    low: float
    high: float


def line_plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    diagonal: bool = False,
) -> Markup:
    """Series over x; y runs from 0 to 1. The diagonal is where y = x."""
    low, high = x_range

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - low) / ((high - low) or 1.0)
        return MARGIN + right * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - y * (HEIGHT - 2 * MARGIN)

    parts = [_frame(x_label, y_label, (low, high))]
    if diagonal:
        parts.append(_path([place(low, low), place(high, high)], GREY, "4 4"))
    for number, each in enumerate(series):
        points = [place(x, y) for x, y in each.points]
        parts.append(_path(points, each.colour, "none"))
        for (x, y), size in zip(points, each.sizes, strict=False):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{each.colour}"/>')
        parts.append(
            f'<text x="{MARGIN + 8}" y="{MARGIN + 14 + 15 * number}" fill="{each.colour}">'
            f"{escape(each.name)}</text>"
        )
    return _svg(WIDTH, HEIGHT, parts)


def bar_plot(bars: Sequence[Bar], *, reference: float = 0.5) -> Markup:
    """Horizontal bars from 0 to 1 with whiskers, and a dashed line at `reference`."""
    width, height = 620, BAR * len(bars) + 24
    span = width - LABEL - 60
    parts = []
    for number, bar in enumerate(bars):
        y = number * BAR + 4
        parts.append(
            f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(bar.name[:30])}</text>'
            f'<rect x="{LABEL}" y="{y}" width="{bar.value * span:.1f}" height="{BAR - 8}" '
            f'fill="#9bb8d9"/>'
            f'<line x1="{LABEL + bar.low * span:.1f}" x2="{LABEL + bar.high * span:.1f}" '
            f'y1="{y + 7}" y2="{y + 7}" stroke="{BLUE}" stroke-width="2"/>'
            f'<text x="{width - 50}" y="{y + 13}">{100 * bar.value:.1f} %</text>'
        )
    x = LABEL + reference * span
    parts.append(
        f'<line x1="{x}" x2="{x}" y1="0" y2="{height - 20}" stroke="{GREY}" '
        f'stroke-dasharray="4 4"/>'
    )
    return _svg(width, height, parts)


def _frame(x_label: str, y_label: str, x_range: tuple[float, float]) -> str:
    right, bottom = WIDTH - MARGIN, HEIGHT - MARGIN
    texts = [
        (MARGIN, bottom + 16, "middle", f"{x_range[0]:g}"),
        (right, bottom + 16, "middle", f"{x_range[1]:g}"),
        (WIDTH / 2, HEIGHT - 8, "middle", x_label),
        (MARGIN - 6, bottom, "end", "0"),
        (MARGIN - 6, MARGIN + 6, "end", "1"),
        (MARGIN - 6, MARGIN - 12, "start", y_label),
    ]
    written = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, y, anchor, text in texts
    )
    return (
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{right - MARGIN}" height="{bottom - MARGIN}" '
        f'fill="none" stroke="#ccc"/>{written}'
    )


def _path(points: Sequence[tuple[float, float]], colour: str, dashes: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dashes}"/>'
    )


def _svg(width: int, height: int, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12">'
        f"{''.join(parts)}</svg>"
    )
