"""The report's charts as SVG, and its images as data URIs."""

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from autoformer.candidates import ScoredCandidate
from autoformer.errors import quantity, shortened
from autoformer.evaluation import Scores
from components.evaluate_subnet.charts import (
    Frame,
    Scale,
    axes,
    element,
    end_labels,
    line,
    number,
    plot,
    scale,
    thinned,
)
from components.evaluate_subnet.results import Point

CURVE_HEIGHT, SCATTER_HEIGHT, PARALLEL_HEIGHT, ROW_HEIGHT = 240, 380, 300, 46
LARGEST_THUMBNAIL = 96  # pixels
CONFUSION_MARGIN = 102  # pixels for the class names, as in report.css
LABEL_OFFSETS = (-14, 24, -32, 42, -50, 60)  # pixels below a chosen candidate's mark
LABEL_PERCENT = 16  # width of such a label on a phone
MOST_COUNTS = 15  # classes; larger matrices have no room for counts
LONGEST_LABEL = 13  # characters of a class name name

Series = tuple[str, str, Sequence[Point]]  # label, CSS class, points


def comparison(rows: Sequence[tuple[str, str, Scores]]) -> Markup:
    """Test accuracy of each set of weights with its 95 % interval. Rows: (label, CSS class, scores)."""
    ends = [end for _, _, scores in rows for end in scores.top1_interval]
    frame = Frame(scale(ends), scale([0, 1])._replace(ticks=()), ROW_HEIGHT * len(rows))
    parts = []
    for tick in frame.x.ticks:
        x = frame.left(tick)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=0, y2=frame.height))
    parts.append(axes(frame, "top-1 accuracy on the test split, %", ""))
    for row, (label, css, scores) in enumerate(rows):
        top, middle = ROW_HEIGHT * row, ROW_HEIGHT * (row + 0.66)
        low, high = (frame.left(end) for end in scores.top1_interval)
        parts.append(element("text", label, class_="label", x=0, y=top + 16))
        value = f"{scores.top1_percent:.2f} %"
        parts.append(element("text", value, class_="label strong", x="100%", dx=8, y=middle, dy="0.35em"))
        parts.append(element("line", class_=f"interval {css}", x1=low, x2=high, y1=middle, y2=middle))
        parts.append(element("circle", class_=f"fill {css}", cx=frame.left(scores.top1_percent), cy=middle, r=5))
    description = "; ".join(f"{label}: {scores.top1_percent:.2f} %" for label, _, scores in rows)
    return plot(frame.height, *parts, description=description, css="flush")


def curves(series: Sequence[Series], x_title: str, y_title: str, steps: bool = False, digits: int = 1) -> Markup:
    """Lines with labels and their last values at the ends; a dot for a series of one point."""
    series = [(label, css, list(points) if steps else thinned(points)) for label, css, points in series]
    xs, ys = ([point[axis] for _, _, points in series for point in points] for axis in (0, 1))
    frame = Frame(scale(xs, tight=True), scale(ys), CURVE_HEIGHT)
    lines = []
    for _, css, points in series:
        if len(points) > 1:
            lines.append(line(frame, points, css, steps))
        else:
            x, y = points[0]
            lines.append(element("circle", class_=f"fill {css}", cx=frame.left(x), cy=frame.top(y), r=4))
    labels = [(f"{label} {points[-1][1]:.{digits}f}", points[-1][1], css) for label, css, points in series]
    description = f"{y_title} over {x_title}: " + "; ".join(label for label, _, _ in labels)
    parts = (axes(frame, x_title, y_title), *lines, end_labels(frame, labels))
    return plot(CURVE_HEIGHT, *parts, description=description, css="labelled")


class Axis(NamedTuple):
    title: str
    values: Mapping[int, float]  # by the index of the candidate


def scatter(
    candidates: Mapping[int, ScoredCandidate],
    x: Axis,
    y: Axis,
    front: Sequence[int],
    labels: Mapping[int, str],
    members: Collection[int] | None = None,
) -> Markup:
    """A scatter plot of score against cost, with the Pareto front of the two as steps.

    A mark has its candidate's index as `data-candidate`. Candidates that were stopped early are faint and below the
    others.

    Args:
        labels: index of a chosen candidate -> what to write beside it.
        members: the front of more objectives than x and y; all others are faint. None for no more objectives.
    """
    costs, scores = x.values, y.values
    margin = 0.03 * (max(costs.values()) - min(costs.values()))
    x_scale = scale([min(costs.values()) - margin, max(costs.values()) + margin], tight=True)
    frame = Frame(x_scale, scale(scores.values()), SCATTER_HEIGHT)
    order = [
        (i in labels, outcome.complete, members is None or i in members, not outcome.is_baseline, i)
        for i, outcome in candidates.items()
    ]
    marks = []
    for is_chosen, complete, is_member, is_evolved, index in sorted(order):
        css = "evolved" if is_evolved else "baseline"
        css += "" if complete else " stopped"
        css += "" if is_member else " dominated"
        css += " chosen" if is_chosen else ""
        left, top, radius = frame.left(costs[index]), frame.top(scores[index]), 8 if is_chosen else 4
        marks.append(element("circle", class_=f"candidate {css}", data_candidate=str(index), cx=left, cy=top, r=radius))
    steps = line(frame, [(costs[index], scores[index]) for index in front], "front", steps=True)
    named = _labels_apart(frame, [(costs[index], scores[index], text) for index, text in labels.items()])
    titles = axes(frame, x.title, y.title)
    description = f"{quantity(len(candidates), 'candidate')}: {y.title} against {x.title}"
    return plot(SCATTER_HEIGHT, titles, steps, *marks, *named, description=description, css="scatter")


def parallel(columns: Sequence[tuple[Axis, Scale]], chosen: Collection[int]) -> Markup:
    """Parallel coordinates: a line for each candidate, worst first, shaded by rank; those in `chosen` are last."""
    order = list(columns[0][0].values)
    places = [100 * number / (len(columns) - 1) for number in range(len(columns))]
    lines, parts = [], []
    for rank, index in sorted(enumerate(order), key=lambda entry: entry[1] in chosen):
        tops = [PARALLEL_HEIGHT * (1 - scaled(axis.values[index])) for axis, scaled in columns]
        points = " ".join(f"{number(x)},{top:.1f}" for x, top in zip(places, tops, strict=True))
        style = f"--rank:{100 * rank / max(len(order) - 1, 1):.0f}%"
        css = "candidate path chosen" if index in chosen else "candidate path"
        lines.append(element("polyline", class_=css, data_candidate=str(index), style=style, points=points))
    box = f"0 0 100 {PARALLEL_HEIGHT}"
    drawn = element("svg", *lines, width="100%", height=PARALLEL_HEIGHT, viewBox=box, preserveAspectRatio="none")
    for place, (axis, scaled) in zip(places, columns, strict=True):
        x = f"{number(place)}%"
        parts.append(element("line", class_="axis", x1=x, x2=x, y1=0, y2=PARALLEL_HEIGHT))
        parts.append(element("text", axis.title, class_="label", text_anchor="middle", x=x, y=-16))
        for tick in scaled.ticks:
            y = round(PARALLEL_HEIGHT * (1 - scaled(tick)), 2)
            label = scaled.label(tick)
            parts.append(element("text", label, class_="tick halo", x=x, dx=-5, y=y, dy="0.35em", text_anchor="end"))
    description = f"{quantity(len(order), 'candidate')}, from {columns[0][0].title} to {columns[-1][0].title}"
    return plot(PARALLEL_HEIGHT, drawn, *parts, description=description, css="parallel")


def against_diagonal(points: Sequence[tuple[float, float, str]], x_title: str, y_title: str) -> Markup:
    """Points (x, y, tip) of one unit on two equal axes, with the line on which x equals y."""
    both = scale([value for x, y, _ in points for value in (x, y)])
    frame = Frame(both, both, CURVE_HEIGHT)
    ends = [(end, end) for end in (both.low, both.high)]
    marks = [
        element("circle", element("title", tip), class_="fill a", cx=frame.left(x), cy=frame.top(y), r=4)
        for x, y, tip in points
    ]
    description = f"{quantity(len(points), 'point')}: {y_title} against {x_title}"
    parts = (axes(frame, x_title, y_title), line(frame, ends, "front"), *marks)
    return plot(CURVE_HEIGHT, *parts, description=description)


def _labels_apart(frame: Frame, labels: Sequence[tuple[float, float, str]]) -> list[Markup]:
    """Texts above or below their points (x, y), without overlaps, also on a phone."""
    placed: list[tuple[float, float]] = []
    parts = []
    for x, y, text in sorted(labels):
        left, top = 100 * frame.x(x), frame.top(y)
        places = [top + offset for offset in LABEL_OFFSETS]
        free = [p for p in places if all(abs(left - at) > LABEL_PERCENT or abs(p - high) >= 18 for at, high in placed)]
        place = free[0] if free else places[0]
        placed.append((left, place))
        css = "label strong halo"
        parts.append(element("text", text, class_=css, text_anchor="middle", x=frame.left(x), y=place))
    return parts


def confusion(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> Markup:
    """The confusion matrix, rows are actual classes. The shade is the square root of the share of the row."""
    count = len(classes)
    side = 56 if count <= 4 else 30 if count <= MOST_COUNTS else max(10, 560 // count)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    step = 100 / count
    parts = []
    for row, column in np.ndindex(count, count):
        images = matrix[row, column]
        css = "none" if not images else "right" if row == column else "wrong"
        opacity = number(0.08 + 0.72 * math.sqrt(share[row, column])) if images else "1"
        place = {"x": f"{number(column * step)}%", "y": side * row, "width": f"{number(step)}%", "height": side}
        tip = element("title", f"{classes[row]} taken for {classes[column]}: {images} of {matrix[row].sum()}")
        parts.append(element("rect", tip, class_=f"cell {css}", fill_opacity=opacity, **place))
        if count <= MOST_COUNTS and images:
            place = {"x": f"{number((column + 0.5) * step)}%", "y": side * (row + 0.5), "dy": "0.35em"}
            parts.append(element("text", str(images), class_="count", text_anchor="middle", **place))
    for index, name in enumerate(classes):
        label = shortened(name, LONGEST_LABEL)
        y = side * (index + 0.5)
        parts.append(element("text", label, class_="tick", x=0, dx=-8, y=y, dy="0.35em", text_anchor="end"))
        turned = element("text", label, class_="tick", transform="rotate(-90)", dx=8, dy="0.35em")
        parts.append(element("svg", turned, x=f"{number((index + 0.5) * step)}%", y=0, overflow="visible"))
    description = "confusion matrix, actual classes in rows, predicted in columns"
    drawing = plot(side * count, *parts, description=description, css="confusion")
    width = f"max-width: {CONFUSION_MARGIN + 2 * side * count}px"  # keeps the cells of a small matrix nearly square
    return element("div", drawing, style=width)


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """A PNG of an image (C, S, S) as a data URI, at most 96 pixels on a side: grey, or the first three channels."""
    channels = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]
    image = Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0).squeeze()))
    if image.width > LARGEST_THUMBNAIL:
        image = image.resize((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
