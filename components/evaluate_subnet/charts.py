"""Parts of SVG charts: elements, scales, axes, lines, labels.

A chart is as wide as its column and has a fixed height. x is in percent and y in pixels, so text and strokes keep
their size on a phone. Colours are CSS classes of `report.css`.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

LABEL_HEIGHT = 16  # minimum distance of two labels in pixels


def element(name: str, *content: str, **attributes: str | float) -> Markup:
    """An SVG element. Attributes are escaped, and so is content that is not `Markup`.

    `class_` becomes class, underscores become hyphens, and numbers have two digits.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value) if isinstance(value, int | float) else value)}"'
        for key, value in attributes.items()
    )
    # the short form saves 40 kB with a search's thousands of marks
    end = f">{Markup().join(content)}</{name}>" if content else "/>"
    return Markup(f"<{name}{written}{end}")


def number(value: float) -> str:
    """At most two digits after the point, no trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def amount(count: float) -> str:
    """Three significant digits with a unit from k to E, and a no-break space: "312 k", "9.84 M"."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            figure = count / size
            return f"{figure:.{2 if figure < 9.995 else 1 if figure < 99.95 else 0}f}\u00a0{unit}"
    return f"{count:.0f}"


class Scale(NamedTuple):
    """Maps values between `low` and `high` to 0..1. `ticks` are round values in between."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """The label of a tick, with the digits that all ticks need."""
        digits = next(d for d in range(9) if all(abs(t - round(t, d)) < 1e-9 * max(1.0, abs(t)) for t in self.ticks))
        return f"{tick:,.{digits}f}"


def scale(values: Iterable[float], ticks: int = 5, tight: bool = False) -> Scale:
    """A scale that contains all values. It ends at round ticks, or with `tight` at the values themselves."""
    values = list(values)
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / ticks)
    first = math.ceil(low / step - 1e-9) if tight else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if tight else math.ceil(high / step - 1e-9)
    marks = tuple(index * step for index in range(first, last + 1))
    return Scale(low, high, marks) if tight else Scale(marks[0], marks[-1], marks)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 2.5, 5) if step <= factor * power * 1.001), 10 * power)


class Frame(NamedTuple):
    """The plot area: two scales and a height in pixels."""

    x: Scale
    y: Scale
    height: int

    def left(self, value: float) -> str:
        return f"{number(100 * self.x(value))}%"

    def top(self, value: float) -> float:
        return round(self.height * (1 - self.y(value)), 2)


def plot(height: int, *content: str, description: str, css: str = "") -> Markup:
    """A whole chart. `description`: for screen readers."""
    drawing = element("svg", *content, height=height, role="img", aria_label=description)
    return element("div", drawing, class_=f"plot {css}".strip())


def axes(frame: Frame, x_title: str, y_title: str) -> Markup:
    """Grid lines, ticks and titles. The title of y is horizontal, above its axis."""
    parts = []
    for tick in frame.y.ticks:
        y = frame.top(tick)
        parts.append(element("line", class_="grid", x1=0, x2="100%", y1=y, y2=y))
        label = frame.y.label(tick)
        parts.append(element("text", label, class_="tick", x=0, dx=-8, y=y, dy="0.35em", text_anchor="end"))
    bottom = frame.height
    for tick in frame.x.ticks:
        x = frame.left(tick)
        parts.append(element("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 5))
        parts.append(element("text", frame.x.label(tick), class_="tick", x=x, y=bottom + 20, text_anchor="middle"))
    parts.append(element("line", class_="axis", x1=0, x2="100%", y1=bottom, y2=bottom))
    parts.append(element("text", x_title, class_="title", x="50%", y=bottom + 40, text_anchor="middle"))
    parts.append(element("text", y_title, class_="title", x=0, dx=-44, y=-14))
    return Markup().join(parts)


def line(frame: Frame, points: Sequence[tuple[float, float]], css: str, steps: bool = False) -> Markup:
    """A line through points. With `steps` each value holds until the next point."""
    if steps:
        points = [
            corner
            for (x, y), (next_x, _) in zip(points, [*points[1:], points[-1]], strict=True)
            for corner in ((x, y), (next_x, y))
        ]
    corners = " ".join(f"{number(100 * frame.x(x))},{number(frame.top(y))}" for x, y in points)
    polyline = element("polyline", class_=f"line {css}", points=corners, vector_effect="non-scaling-stroke")
    box = f"0 0 100 {frame.height}"
    return element("svg", polyline, width="100%", height=frame.height, viewBox=box, preserveAspectRatio="none")


def end_labels(frame: Frame, labels: Sequence[tuple[str, float, str]]) -> Markup:
    """Labels right of the plot at the height of their values, moved apart where they would overlap.

    Args:
        labels: (text, value, CSS class).
    """
    labels = sorted(labels, key=lambda label: -label[1])
    tops: list[float] = []
    for _, value, _ in labels:
        tops.append(max(frame.top(value), tops[-1] + LABEL_HEIGHT if tops else -math.inf))
    excess = max(0.0, tops[-1] - frame.height) if tops else 0.0
    parts = []
    for (text, _, css), y in zip(labels, tops, strict=True):
        dot = element("tspan", "●", class_=f"ink {css}")
        parts.append(element("text", dot, f" {text}", class_="label", x="100%", dx=6, y=y - excess, dy="0.35em"))
    return Markup().join(parts)


def thinned(points: Sequence[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """At most `most` points: means of equally long runs of points, and the unchanged last point."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / (most - 1)) for index in range(most)]
    runs = [points[start:end] for start, end in pairwise(edges)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
    return [*means, points[-1]]
