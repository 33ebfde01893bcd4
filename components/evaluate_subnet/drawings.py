"""The report's drawings: each takes plain values and returns markup."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoformer.candidates import ScoredCandidate
from autoformer.evaluation import Scores
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.subnet_text import ratio_text
from components.evaluate_subnet.charts import Frame, axes, element, end_labels, line, number, plot, scale, thinned
from components.evaluate_subnet.results import Point

MOST_CLASSES = 50  # a larger confusion matrix is unreadable
CURVE_HEIGHT, SCATTER_HEIGHT, ROW_HEIGHT = 240, 380, 46
LARGEST_THUMBNAIL = 96  # pixels
PHOTOGRAPH = 48  # pixels on a side, from which an image is smoothed where it is enlarged
CONFUSION_MARGIN = 102  # pixels that the class names take, as in report.css
LONG_NAME = 18  # characters of a class
THUMBNAIL_BYTES = 3_000_000  # all mistakes together, so that the report stays below 5 MB


def comparison(rows: Sequence[tuple[str, str, Scores]]) -> str:
    """Test accuracy of each set of weights with its 95 % interval. Rows: (label, CSS class, scores)."""
    ends = [end for _, _, scores in rows for end in scores.top1_interval]
    frame = Frame(scale(ends), scale([0, 1]), ROW_HEIGHT * len(rows))
    parts = []
    for row, (label, css, scores) in enumerate(rows):
        top, middle = ROW_HEIGHT * row, ROW_HEIGHT * (row + 0.66)
        low, high = (frame.left(end) for end in scores.top1_interval)
        parts.append(element("text", escape(label), class_="label", x=0, y=top + 16))
        value = f"{scores.top1_percent:.2f} %"
        parts.append(element("text", value, class_="label strong", x="100%", dx=8, y=middle, dy="0.35em"))
        parts.append(element("line", class_=f"interval {css}", x1=low, x2=high, y1=middle, y2=middle))
        parts.append(element("circle", class_=f"fill {css}", cx=frame.left(scores.top1_percent), cy=middle, r=5))
    grid = "".join(
        element("line", class_="grid", x1=frame.left(tick), x2=frame.left(tick), y1=0, y2=frame.height)
        for tick in frame.x.ticks
    )
    no_y = frame._replace(y=frame.y._replace(ticks=()))
    description = "; ".join(f"{label}: {scores.top1_percent:.2f} %" for label, _, scores in rows)
    return plot(
        frame, grid + axes(no_y, "top-1 accuracy on the test split, %", "") + "".join(parts), description, "flush"
    )


def curves(
    series: Sequence[tuple[str, str, Sequence[Point]]], x_title: str, y_title: str, steps: bool = False, digits: int = 1
) -> str:
    """Lines with labels at their ends. Series: (label, CSS class, points)."""
    drawn = [(label, css, list(points) if steps else thinned(points)) for label, css, points in series]
    xs, ys = ([point[axis] for _, _, points in drawn for point in points] for axis in (0, 1))
    frame = Frame(scale(xs, tight=True), scale(ys), CURVE_HEIGHT)
    lines = "".join(
        line(frame, points, css, steps) if len(points) > 1 else _dot(frame, points[0], css) for _, css, points in drawn
    )
    labels = [(f"{label} {points[-1][1]:.{digits}f}", points[-1][1], css) for label, css, points in drawn]
    description = f"{y_title} over {x_title}: " + "; ".join(label for label, _, _ in labels)
    return plot(frame, axes(frame, x_title, y_title) + lines + end_labels(frame, labels), description, "labelled")


def _dot(frame: Frame, point: Point, css: str) -> str:
    return element("circle", class_=f"fill {css}", cx=frame.left(point[0]), cy=frame.top(point[1]), r=4)


def scatter(candidates: Sequence[ScoredCandidate], front: Sequence[int], chosen: int) -> str:
    """Accuracy against parameters: one mark a candidate, `data-candidate` its index; the front as steps.

    Candidates that were stopped early are drawn faint and below the others.
    """
    params = [outcome.candidate.params / 1e6 for outcome in candidates]
    accuracy = [outcome.top1_percent for outcome in candidates]
    margin = 0.03 * (max(params) - min(params))
    frame = Frame(scale([min(params) - margin, max(params) + margin], tight=True), scale(accuracy), SCATTER_HEIGHT)
    marks = []
    for index in sorted(
        range(len(candidates)), key=lambda i: (i == chosen, candidates[i].complete, not candidates[i].is_baseline)
    ):
        css = "baseline" if candidates[index].is_baseline else "evolved"
        css += "" if candidates[index].complete else " stopped"
        css += " chosen" if index == chosen else ""
        x, y, radius = frame.left(params[index]), frame.top(accuracy[index]), 8 if index == chosen else 4
        marks.append(element("circle", class_=f"candidate {css}", data_candidate=str(index), cx=x, cy=y, r=radius))
    steps = line(frame, [(params[index], accuracy[index]) for index in front], "front", steps=True)
    label = element(
        "text", "chosen", class_="label strong halo", text_anchor="middle",
        x=frame.left(params[chosen]), y=frame.top(accuracy[chosen]) - 14,
    )  # fmt: skip
    description = f"{len(candidates)} candidates: accuracy on the search split against millions of parameters"
    titles = axes(frame, "parameters, millions", "top-1 accuracy on the search split, inherited weights, %")
    return plot(frame, titles + steps + "".join(marks) + label, description, "scatter")


def architecture(space: SearchSpace, spec: SubnetSpec) -> str:
    """The subnet block by block, filled, within the outline of the supernet."""
    size, token = space.supernet, "mean of the patches" if space.pooling == "mean" else "class token"
    widest = int(size.embed_dim * size.mlp_ratio)
    rows = [_architecture_row("", "width", "heads", "", "MLP: ratio · channels", "", "head")]
    for block in range(size.depth):
        if block < spec.depth:
            heads, hidden = spec.num_heads[block], spec.hidden_dim(block)
            values = (str(heads), f"{ratio_text(spec.mlp_ratio[block])} · {hidden}")
        else:
            heads, hidden, values = 0, 0, ("–", "left out")
        width = spec.embed_dim if heads else 0
        drawn = (_bar(width, size.embed_dim), _cells(heads, size.num_heads), _bar(hidden, widest))
        css = "" if heads else "absent"
        rows.append(_architecture_row(str(block + 1), drawn[0], drawn[1], values[0], drawn[2], values[1], css))
    grid, side = space.grid, space.patch_size
    start = f"{grid} × {grid} patches of {side} × {side} pixels, embedded in {spec.embed_dim} channels"
    end = f"norm, {token}, linear to {space.num_classes} classes"
    flow = [element("p", escape(text), class_="flow") for text in (start, end)]
    return element("div", flow[0] + element("div", "".join(rows), class_="blocks") + flow[1], class_="architecture")


def _architecture_row(index: str, width: str, heads: str, head_count: str, mlp: str, hidden: str, css: str) -> str:
    cells = (index, width, heads, head_count, mlp, hidden)
    return element("div", "".join(element("span", cell) for cell in cells), class_=f"block {css}".strip())


def _bar(value: float, outline: float) -> str:
    filled = element("rect", class_="filled", width=f"{number(100 * value / outline)}%", height="100%")
    return element(
        "svg", element("rect", class_="outline", width="100%", height="100%") + filled, class_="bar", aria_hidden="true"
    )


def _cells(filled: int, outline: int) -> str:
    step = 100 / outline
    cells = [
        element(
            "rect", class_="filled" if index < filled else "outline",
            x=f"{number(index * step)}%", width=f"{number(0.86 * step)}%", height="100%",
        )
        for index in range(outline)
    ]  # fmt: skip
    return element("svg", "".join(cells), class_="bar", aria_hidden="true")


def confusion(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> str:
    """The confusion matrix, rows actual classes. Shade: share of the row, its square root, so that rare errors show."""
    count = len(classes)
    side = 56 if count <= 4 else 30 if count <= 15 else max(10, 560 // count)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    step = 100 / count
    parts = []
    for row, column in np.ndindex(count, count):
        css = "right" if row == column else "wrong"
        if matrix[row, column] == 0:
            css = "none"
        opacity = number(0.08 + 0.72 * math.sqrt(share[row, column])) if css != "none" else "1"
        place = {"x": f"{number(column * step)}%", "y": side * row, "width": f"{number(step)}%", "height": side}
        tip = f"{classes[row]} taken for {classes[column]}: {matrix[row, column]} of {matrix[row].sum()}"
        parts.append(
            element("rect", element("title", escape(tip)), class_=f"cell {css}", fill_opacity=opacity, **place)
        )
        if count <= 15 and css != "none":
            middle = {"x": f"{number((column + 0.5) * step)}%", "y": side * (row + 0.5), "dy": "0.35em"}
            parts.append(element("text", str(matrix[row, column]), class_="count", text_anchor="middle", **middle))
    if side >= 10:
        parts += [_class_labels(index, name, side, step) for index, name in enumerate(classes)]
    frame = Frame(scale([0, 1]), scale([0, 1]), side * count)
    drawn = plot(frame, "".join(parts), "confusion matrix, actual classes in rows, predicted in columns", "confusion")
    few = f"max-width: {CONFUSION_MARGIN + 2 * side * count}px"  # two or three classes make no banner
    return element("div", drawn, style=few)


def _class_labels(index: int, name: str, side: int, step: float) -> str:
    short = escape(name if len(name) <= 13 else name[:12] + "…")
    row = element("text", short, class_="tick", x=0, dx=-8, y=side * (index + 0.5), dy="0.35em", text_anchor="end")
    turned = element("text", short, class_="tick", transform="rotate(-90)", dx=8, dy="0.35em")
    return row + element("svg", turned, x=f"{number((index + 0.5) * step)}%", y=0, overflow="visible")


def top_confusions(matrix: npt.NDArray[np.int64], classes: Sequence[str], most: int) -> str:
    """The most frequent errors as bars: actual class, the class it is taken for, how often.

    An error that happened once is left out where another happened more often.
    """
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    rows = []
    for actual, predicted in zip(*np.unravel_index(order, errors.shape), strict=True):
        count, of = int(errors[actual, predicted]), int(matrix[actual].sum())
        if not count or (count == 1 and errors.max() > 1):
            break
        name = f"{escape(classes[actual])} <span class='soft'>taken for</span> {escape(classes[predicted])}"
        value = f"{count} of {of} ({100 * count / of:.1f} %)"
        rows.append(_bar_row(name, value, count / errors.max()))
    return element("ul", "".join(rows), class_="bars")


def hardest_classes(matrix: npt.NDArray[np.int64], classes: Sequence[str], most: int) -> str:
    """The classes with the smallest share of images named right, as bars of what is named wrong."""
    images = matrix.sum(axis=1)
    wrong = images - np.diag(matrix)
    share = wrong / np.maximum(images, 1)
    order = [int(index) for index in np.argsort(-share, kind="stable")[:most] if wrong[index]]
    rows = []
    for index in order:
        value = f"{wrong[index]} of {images[index]} wrong ({100 * share[index]:.1f} %)"
        rows.append(_bar_row(escape(classes[index]), value, share[index] / share[order[0]]))
    return element("ul", "".join(rows), class_="bars")


def _bar_row(name: str, value: str, length: float) -> str:
    filled = element("rect", class_="wrong", width=f"{number(100 * length)}%", height="100%")
    bar = element("svg", filled, class_="bar", aria_hidden="true")
    return element("li", element("span", name) + element("span", value, class_="value") + bar)


def thumbnails(mistakes: Sequence[tuple[npt.NDArray[np.uint8], str, str, float, float]]) -> tuple[str, int]:
    """Images with what they are and what they were taken for, and how many there was room for.

    Mistakes: (pixels (C, S, S), actual class, predicted class, its probability, that of the actual class).
    """
    figures: list[str] = []
    size = 0
    for pixels, actual, predicted, probability, of_actual in mistakes:
        source = data_uri(pixels)
        size += len(source)
        if size > THUMBNAIL_BYTES:
            break
        css = ' class="small"' if pixels.shape[1] < PHOTOGRAPH else ""  # enlarged as squares, not as a blur
        image = f'<img{css} src="{source}" alt="{escape(actual)}" width="{pixels.shape[2]}" height="{pixels.shape[1]}">'
        said = element("span", f"{escape(predicted)} {100 * probability:.1f} %", class_="said")
        true = element("span", f"is {escape(actual)} ({100 * of_actual:.1f} %)", class_="soft")
        figures.append(element("figure", image + element("figcaption", said + true)))
    long = any(len(name) > LONG_NAME for mistake in mistakes for name in mistake[1:3])
    return element("div", "".join(figures), class_="mistakes roomy" if long else "mistakes"), len(figures)


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """A PNG of an image (C, S, S) as a data URI, at most 96 pixels on a side: grey, or the first three channels."""
    channels = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]
    image = Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0).squeeze()))
    if image.width > LARGEST_THUMBNAIL:
        image = image.resize((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text; columns after the first are set right."""
    head = element("tr", "".join(element("th", escape(cell)) for cell in header))
    body = "".join(element("tr", "".join(element("td", escape(cell)) for cell in row)) for row in rows)
    return element("div", element("table", element("thead", head) + element("tbody", body)), class_="scroll")


def definitions(values: Mapping[str, str]) -> str:
    """Names and values, one a line."""
    rows = "".join(element("dt", escape(name)) + element("dd", escape(value)) for name, value in values.items())
    return element("dl", rows)
