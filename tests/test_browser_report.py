"""The report in a real browser: at two widths, light and dark, offline, and in use."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from report_samples import SAMPLES, invent, make_report

from docs.screenshots import Watched, watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LARGEST_REPORT = 1_000_000  # bytes
SMALLEST_TEXT = 11  # pixels
LEAST_CONTRAST = 4.5  # WCAG 2.2, AA, for text of usual size

# What a reader would stumble over. Text in a folded part has no size; a table scrolls in a frame of its own.
FAULTS = """
(([smallest, contrast]) => {
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, index) => sum + v * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0.99) return found;
    }
    return [255, 255, 255];
  };
  const faults = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const ticks = [];
  while (walker.nextNode()) {
    const text = walker.currentNode, owner = text.parentElement;
    if (!text.data.trim() || owner.closest("script, style, title, .scroll")) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    const box = range.getBoundingClientRect(), said = text.data.trim().slice(0, 40);
    if (!box.width) continue;
    const style = getComputedStyle(owner), frame = (owner.closest("section") ?? document.body).getBoundingClientRect();
    if (parseFloat(style.fontSize) < smallest) faults.push(`${style.fontSize}: ${said}`);
    if (box.left < frame.left - 0.5 || box.right > frame.right + 0.5) faults.push(`out of its card: ${said}`);
    const drawn = owner.closest("svg"), ink = light(rgb(drawn ? style.fill : style.color)), page = light(behind(owner));
    const seen = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
    const needed = said === "●" ? 3 : contrast; // a mark, not a letter: WCAG 1.4.11
    if (seen < needed && !owner.closest(".count, .mini .absent")) faults.push(`contrast ${seen.toFixed(1)}: ${said}`);
    if (owner.closest("text.tick, text.label") && said !== "●") ticks.push([box, said]);
  }
  ticks.forEach(([a, first], index) => ticks.slice(index + 1).forEach(([b, second]) => {
    const beside = a.left > b.right - 1 || b.left > a.right - 1, above = a.top > b.bottom - 1 || b.top > a.bottom - 1;
    if (!beside && !above) faults.push(`one over the other: ${first} / ${second}`);
  }));
  const width = document.documentElement.scrollWidth;
  if (width > innerWidth) faults.push(`scrolls sideways: ${width}`);
  return faults;
})
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_report(name, tmp_path_factory.mktemp("reports")) for name in SAMPLES}


@contextlib.contextmanager
def opened(browser: "Browser", report: Path, **window: Any) -> Iterator[Watched]:
    """The report in a browser without a network; ends with a look at what it asked for and complained of."""
    address = report.as_uri()
    with watched(browser, own=address, **window) as seen:
        seen.page.context.set_offline(True)
        seen.page.goto(address)
        yield seen
        assert seen.errors == [] and seen.requests == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", SAMPLES)
def test_it_reads_well(name: str, width: int, dark: bool, reports: dict[str, Path], browser: "Browser") -> None:
    assert reports[name].stat().st_size < LARGEST_REPORT
    with opened(browser, reports[name], width=width, dark=dark) as seen:
        background = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(19, 21, 24)" if dark else "rgb(246, 246, 243)")
        for closed in seen.page.locator("details").all():
            closed.evaluate("details => details.open = true")
        assert seen.page.evaluate(FAULTS, [SMALLEST_TEXT, LEAST_CONTRAST]) == []


def rows(report: Path) -> list[dict[str, str]]:
    with (report.parent / "candidates.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def shown(page: "Page") -> tuple[str, list[int], list[float]]:
    """The score in the panel, and the architecture drawn below it: filled heads of each block, its MLP ratio."""
    score = page.locator("#candidate .big").inner_text().removesuffix(" · chosen")
    blocks = page.locator("#candidate .block:not(.head):not(.absent)").all()
    heads = [block.locator(".heads .on").count() for block in blocks]
    ratios = []
    for block in blocks:
        frame, filled = block.locator(".ratio"), block.locator(".ratio .on")
        share = filled.evaluate("bar => bar.getBoundingClientRect().width / bar.parentElement.clientWidth")
        ratios.append(share * float(page.locator("#candidate").get_attribute("data-ratio") or 0))
        assert frame.count() == 1
    return score, heads, ratios


def expected(row: dict[str, str]) -> tuple[str, list[int], Any]:
    heads = [int(value) for value in row["num_heads"].split(";")]
    ratios = [float(value) for value in row["mlp_ratio"].split(";")]
    score = f"{float(row['top1_percent']):.2f}\N{NO-BREAK SPACE}%"
    if not row["loss"]:  # stopped early: an estimate, and said to be one
        score = f"about {float(row['top1_percent']):.1f}\N{NO-BREAK SPACE}% · stopped after {row['images']} images"
    return score, heads, pytest.approx(ratios, abs=0.02)


def at(page: "Page", candidate: int) -> dict[str, float]:
    """Where a candidate's mark lies in the window."""
    mark = page.locator(f'.scatter .candidate[data-candidate="{candidate}"]')
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box is not None
    return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}


def lone_candidates(table: list[dict[str, str]]) -> list[int]:
    """The smallest and the largest: nothing else lies so near that a pointer could mean it."""
    sizes = [int(row["params"]) for row in table]
    return [sizes.index(min(sizes)), sizes.index(max(sizes))]


def test_a_candidate_under_the_pointer_is_shown_and_a_click_keeps_it(
    reports: dict[str, Path], browser: "Browser"
) -> None:
    table = rows(reports["ten"])
    first, second = lone_candidates(table)
    with opened(browser, reports["ten"]) as seen:
        page = seen.page
        start = shown(page)
        assert "chosen" in page.locator("#candidate .big").inner_text()
        page.mouse.move(**at(page, first))
        assert shown(page) == expected(table[first]) != start
        page.mouse.move(**at(page, second))
        assert shown(page) == expected(table[second])
        page.mouse.move(5, 5)  # away: the chosen one again
        assert shown(page) == start
        page.mouse.click(**at(page, first))
        page.mouse.move(**at(page, second))
        assert shown(page) == expected(table[first])  # kept
        page.mouse.click(**at(page, first))  # let go
        page.mouse.move(**at(page, second))
        assert shown(page) == expected(table[second])


def current(page: "Page") -> int:
    """The candidate whose mark is set off."""
    return int(page.locator(".scatter .candidate.shown").get_attribute("data-candidate") or -1)


def at_x(page: "Page", candidate: int) -> float:
    """How far to the right a candidate's mark lies, in pixels of the chart."""
    mark = page.locator(f'.scatter .candidate[data-candidate="{candidate}"]')
    return float(mark.evaluate("mark => mark.cx.baseVal.value"))


def test_the_keyboard_goes_from_candidate_to_candidate(reports: dict[str, Path], browser: "Browser") -> None:
    table = rows(reports["ten"])
    sizes = [int(row["params"]) for row in table]
    with opened(browser, reports["ten"]) as seen:
        start = shown(seen.page)
        seen.page.locator(".scatter").focus()
        seen.page.keyboard.press("Home")
        assert sizes[current(seen.page)] == min(sizes)
        seen.page.keyboard.press("ArrowLeft")  # before the first comes the last
        assert sizes[current(seen.page)] == max(sizes)
        visited = []
        for _ in range(40):
            seen.page.keyboard.press("ArrowRight")
            visited.append(current(seen.page))
        places = [at_x(seen.page, candidate) for candidate in visited]
        assert len(set(visited)) == 40 and places == sorted(places)
        seen.page.keyboard.press("End")
        assert sizes[current(seen.page)] == max(sizes)
        assert shown(seen.page) == expected(table[current(seen.page)])
        seen.page.keyboard.press("Escape")
        assert shown(seen.page) == start


def test_a_candidate_is_set_off_in_both_plots(reports: dict[str, Path], browser: "Browser") -> None:
    table = rows(reports["hundred"])
    slowest = max(range(len(table)), key=lambda index: float(table[index]["latency_ms"]))
    with opened(browser, reports["hundred"]) as seen:
        page = seen.page
        sizes, latencies = page.locator(".scatter").all()
        latencies.focus()
        page.keyboard.press("End")
        assert shown(page) == expected(table[slowest])
        assert f"{float(table[slowest]['latency_ms']):.3g} ms" in page.locator("#candidate").inner_text()
        for plot in (sizes, latencies):
            assert plot.locator(".shown.pinned").get_attribute("data-candidate") == str(slowest)
        page.keyboard.press("Escape")
        assert page.locator(".pinned").count() == 0 and page.locator(".scatter .shown.chosen").count() == 2


def test_a_line_and_a_mark_of_one_candidate_are_set_off_together(reports: dict[str, Path], browser: "Browser") -> None:
    table = rows(reports["front"])
    best = min(range(len(table)), key=lambda index: float(table[index]["loss"]))
    worst = max(range(len(table)), key=lambda index: float(table[index]["loss"]))
    with opened(browser, reports["front"]) as seen:
        page = seen.page
        start = shown(page)
        lines = page.locator(".parallel")
        lines.scroll_into_view_if_needed()
        box = lines.locator("> svg").bounding_box()
        assert box is not None
        end = lines.locator(f'[data-candidate="{worst}"]').evaluate("line => line.points[line.points.length - 1].y")
        page.mouse.move(box["x"] + box["width"], box["y"] + end)  # its end on the axis of the score
        assert shown(page) == expected(table[worst]) != start
        assert page.locator(".scatter .shown").get_attribute("data-candidate") == str(worst)
        over = lines.locator("polyline").last  # drawn over the others
        assert over.get_attribute("data-candidate") == str(worst)
        page.mouse.move(5, 5)
        assert shown(page) == start
        lines.focus()
        page.keyboard.press("Home")
        assert current(page) == worst
        page.keyboard.press("ArrowLeft")
        assert current(page) in (best, int(page.locator(".scatter .chosen").get_attribute("data-candidate") or -1))
        page.mouse.move(**at(page, worst))
        assert page.locator(".path.shown").count() == 1
        assert page.locator(".path.pinned").get_attribute("data-candidate") == str(current(page))


def test_a_finger_does_what_a_pointer_does(reports: dict[str, Path], browser: "Browser") -> None:
    table = rows(reports["two"])
    with opened(browser, reports["two"], width=390, height=844, touch=True) as seen:
        for candidate in lone_candidates(table):
            place = at(seen.page, candidate)
            seen.page.touchscreen.tap(place["x"], place["y"])
            assert shown(seen.page) == expected(table[candidate])


def test_photographs_keep_their_colours(reports: dict[str, Path], browser: "Browser", tmp_path: Path) -> None:
    """What the browser decodes is the image, pixel by pixel: no channel swapped, nothing cut."""
    _, evaluation = invent(SAMPLES["two"], tmp_path)
    with opened(browser, reports["two"]) as seen:
        pictures = seen.page.locator(".mistakes img")
        assert pictures.count() == len(evaluation.mistakes) == 24
        for index in (0, 5, 23):
            decoded = pictures.nth(index).evaluate(
                """image => {
                  const canvas = document.createElement("canvas"), size = [image.naturalWidth, image.naturalHeight];
                  [canvas.width, canvas.height] = size;
                  const context = canvas.getContext("2d");
                  context.drawImage(image, 0, 0);
                  return [size, [...context.getImageData(0, 0, ...size).data]];
                }"""
            )
            pixels = np.array(decoded[1], np.uint8).reshape(*decoded[0][::-1], 4)[:, :, :3].transpose(2, 0, 1)
            assert (pixels == evaluation.mistakes[index].pixels).all()
        box = pictures.first.bounding_box()
        assert box is not None and box["width"] == pytest.approx(box["height"], abs=1)
        assert pictures.first.evaluate("image => getComputedStyle(image).imageRendering") == "auto"


def test_many_classes_are_summed_up(reports: dict[str, Path], browser: "Browser") -> None:
    with opened(browser, reports["hundred"]) as seen:
        assert seen.page.locator(".cell").count() == 0
        for title in ("Hardest classes", "Most frequent confusions"):
            bars = seen.page.locator("h3", has_text=title).locator("+ .bars li")
            assert 0 < bars.count() <= 12
