"""The report as a page: well-formed, self-contained, escaped, complete, the same for the same input."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_sample import read_search, write_search
from latencies import table_of
from PIL import Image

from autoformer.candidates import ScoredCandidate
from autoformer.evaluation import confusion_matrix, paired_difference, score
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.named import NamedSubnet, load_space
from autoformer.space import SearchSpace, SubnetSpec
from components.evaluate_subnet import report, search_sections
from components.evaluate_subnet.charts import Frame, Scale, amount, end_labels, scale, thinned
from components.evaluate_subnet.confusions import top_confusions_markdown
from components.evaluate_subnet.drawings import data_uri
from components.evaluate_subnet.effects import effects
from components.evaluate_subnet.measure import Evaluation, worst_mistakes
from components.evaluate_subnet.report import flat, render
from components.evaluate_subnet.results import SUPERNET_CURVES, Results, Search
from runtime.common.records import Confusion

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that every element is closed in order; collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


@pytest.fixture(scope="module")
def search_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_search(folder, load_space("fashion-mnist"), population=10, generations=3)
    return folder


def example(folder: Path, classes: tuple[str, ...]) -> tuple[Results, Evaluation]:
    """Results and an evaluation of 400 invented images."""
    space: SearchSpace = load_space("fashion-mnist")
    subnet = NamedSubnet.from_yaml(folder / "chosen.yaml")
    card = DatasetCard(
        name="Boxes & <bags>", classes=classes, image_size=28, channels=1, encoding="raw", mean=(0.3,), std=(0.3,),
        counts={"test": 400}, licence="MIT", source="invented", archives={}, split_hashes={"test": "0" * 64},
    )  # fmt: skip
    curve = [(float(epoch), 2 / epoch) for epoch in range(1, 6)]
    results = Results(
        card=card, space=space, subnet=subnet, mode="finetune", models={}, search=read_search(folder, subnet.subnet),
        supernet_curves={column: curve for column in ("train_loss", *SUPERNET_CURVES)},
        retrain_curves={"train_loss": curve, "search_top1_percent": curve}, scratch_curves={},
        provenance={"train_supernet": {"seed": 3}, "retrain_subnet": {"code": "c0de", "inputs": {"card": "abc"}}},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % len(classes)
    logits = torch.randn(400, len(classes), generator=generator)
    logits[torch.arange(400), labels] += 2
    pixels = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8, generator=generator).numpy()
    images = DecodedSplit(pixels, labels.numpy(), [""] * 400)
    predicted = logits.argmax(1).numpy()
    right = predicted == images.labels
    return results, Evaluation(
        scores={"retrained": score(logits, labels), "inherited": score(logits.roll(1, 0), labels)},
        weights={"retrained": "a", "inherited": "b"},
        differences={"inherited": paired_difference(right, ~right)},
        actual=images.labels,
        predicted=predicted,
        confusion=confusion_matrix(images.labels, predicted, len(classes)),
        mistakes=worst_mistakes(logits, images.labels, images.pixels.__getitem__, 9),
    )


CLASSES = ("<b>&", "'quote\"", "</script>", "plain")
CONFIG: dict[str, Any] = {"seed": 3, "name": "x", "evaluate_subnet": {"mistakes": 9}}


@pytest.fixture(scope="module")
def html(search_folder: Path) -> str:
    return render(*example(search_folder, CLASSES), CONFIG)


def test_models_that_no_image_tells_apart_have_no_interval(search_folder: Path) -> None:
    """It would be +0.00 to +0.00, as if the difference were known exactly."""
    results, evaluation = example(search_folder, CLASSES)
    right = evaluation.predicted == evaluation.actual
    level = {f"evolution_minus_random_{part}percent": 0.0 for part in ("", "low_", "high_")}
    results = results._replace(search=results.search._replace(metrics=dict(results.search.metrics) | level))
    page = render(results, evaluation._replace(differences={"inherited": paired_difference(right, right)}), CONFIG)
    text = " ".join(page.split())
    assert "Compared with the inherited weights, the chosen subnet is right on the same test images." in text
    assert re.search(r"the best of as many random subnets [\d.]+ %, right on the same images, both with", text)
    assert "+0.00" not in text


def test_the_page_is_well_formed_and_loads_nothing(html: str) -> None:
    page = Page(html)
    assert html.startswith("<!doctype html>")
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"https?:|//[a-z0-9.-]+\.[a-z]{2,}|@import|url\(", html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(html) < 1_000_000
    templates = Path(report.__file__).parent / "templates"
    for file in ("report.css", "report.js"):
        assert (templates / file).read_text(encoding="utf-8").strip() in html  # inlined as it is


def test_latencies_are_shown_where_the_search_had_a_table(search_folder: Path, html: str) -> None:
    assert "latency" not in html
    results, evaluation = example(search_folder, CLASSES)
    table, search = table_of(results.space), results.search
    candidates = [
        outcome._replace(
            candidate=replace(outcome.candidate, latency_ms=round(table.predict(outcome.candidate.spec), 2))
        )
        for outcome in search.candidates
    ]
    measured = results._replace(search=search._replace(candidates=candidates, table=table))
    page = render(measured, evaluation, CONFIG)
    shown = re.sub(r"\s+", " ", " ".join(Page(page).text))
    chosen = f"{table.predict(results.subnet.subnet):.3g}"
    assert f"{chosen} ms predicted latency: a processor, 2 cores, 1 thread, batch 1, float32;" in shown
    assert "median error 10.0 % on 3 measured subnets" in shown
    described = json.loads(page.partition('id="candidates">')[2].partition("</script>")[0])
    assert all(one["costs"][2].endswith(" ms") for one in described)
    front = search_sections.candidates(measured)["front"][0].candidate
    assert f"<td>{front.latency_ms:.3g} ms</td>" in page
    marks = [mark["data-candidate"] for mark in Page(page).of_class("candidate") if "cx" in mark]
    assert sorted(marks) == sorted(2 * [str(index) for index in range(len(candidates))])  # against size, and latency
    assert "top-1 accuracy" in page.partition("latency, ms")[2]


def test_names_are_escaped(html: str) -> None:
    page = Page(html)
    text = "".join(page.text)
    assert not any(tag in ("b&", "bags") for tag, _ in page.elements)
    assert "Boxes & <bags>" in text
    assert all(name in text for name in CLASSES)
    assert html.count("</script>") == 2  # the two that the page has itself: data and program


def test_one_mark_for_each_candidate_and_the_chosen_one_marked(html: str, search_folder: Path) -> None:
    page = Page(html)
    rows = (search_folder / "candidates.csv").read_text().splitlines()[1:]
    marks = [mark for mark in page.of_class("candidate") if "cx" in mark]
    assert sorted(int(str(mark["data-candidate"])) for mark in marks) == list(range(len(rows)))
    baseline = [int(str(mark["data-candidate"])) for mark in page.of_class("baseline") if "data-candidate" in mark]
    assert sorted(baseline) == [index for index, row in enumerate(rows) if row.split(",")[1] == "baseline"]
    chosen = page.of_class("chosen")
    assert len(chosen) == 2 and chosen[0]["data-candidate"] == chosen[1]["data-candidate"]  # a mark and a line
    data = re.search(r'id="candidates">(.*?)</script>', html)
    assert data is not None
    described = json.loads(data[1])
    assert len(described) == len(rows)
    spec = NamedSubnet.from_yaml(search_folder / "chosen.yaml").subnet
    of_chosen = described[int(str(chosen[0]["data-candidate"]))]
    assert "chosen" in of_chosen["score"]
    assert of_chosen["heads"] == list(spec.num_heads)
    assert of_chosen["ratios"] == list(spec.mlp_ratio)


def test_mistakes_are_shown_surest_first(html: str, search_folder: Path) -> None:
    _, evaluation = example(search_folder, CLASSES)
    probabilities = [mistake.probability for mistake in evaluation.mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(mistake.actual != mistake.predicted for mistake in evaluation.mistakes)
    assert sum(tag == "img" for tag, _ in Page(html).elements) == 9


def test_the_same_input_gives_the_same_bytes(html: str, search_folder: Path) -> None:
    assert render(*example(search_folder, CLASSES), CONFIG) == html


def test_many_classes_get_a_list_instead_of_a_matrix(search_folder: Path) -> None:
    many = render(*example(search_folder, tuple(f"class {index}" for index in range(60))), CONFIG)
    page = Page(many)
    assert not page.of_class("cell")
    assert "taken for" in "".join(page.text)


def test_the_list_of_confusions_names_both_classes_and_the_images_of_the_first() -> None:
    classes, matrix = ("cat", "a*b_", "dog"), ((1_000, 200, 0), (0, 3, 1), (0, 0, 0))
    assert top_confusions_markdown(Confusion(classes=classes, matrix=matrix)).splitlines() == [
        "### The most frequent confusions on the test split",
        "",
        "- **cat** taken for **a\\*b\\_**: 200 of 1,200 images (16.7 %)",
        "- **a\\*b\\_** taken for **dog**: 1 of 4 images (25.0 %)",
    ]


def test_a_list_without_confusions_says_so() -> None:
    perfect = Confusion(classes=("cat", "dog"), matrix=((2, 0), (0, 3)))
    assert top_confusions_markdown(perfect) == "No image of the test split was misclassified.\n"


def test_what_is_not_there_is_left_out(search_folder: Path) -> None:
    results, evaluation = example(search_folder, CLASSES)
    evolved = [candidate for candidate in results.search.candidates if not candidate.is_baseline]
    progress = {"evolution_best_top1_percent": results.search.progress["evolution_best_top1_percent"]}
    bare = results._replace(
        search=Search(evolved, results.search.chosen, progress, {}, None), mode="inherited", retrain_curves={},
        supernet_curves={},
    )  # fmt: skip
    text = "".join(Page(render(bare, evaluation._replace(mistakes=[]), CONFIG)).text)
    assert "random" not in text.replace("drawn at random", "")
    assert "mistakes" not in text.split("configuration and inputs")[0]


def test_accuracies_on_the_search_split_stand_beside_what_they_are_worth(html: str) -> None:
    """Beside the comparison of both searches, the curves of training and the progress of the search."""
    sections = re.split(r"<section>", "".join(html))
    shown = [part for part in sections if "on the search split" in part or "whole search split" in part]
    assert len(shown) >= 3
    assert all("ranks subnets; it is no estimate of test accuracy" in part for part in shown[:3])


def test_a_search_split_that_was_trained_on_is_said_to_be(search_folder: Path, html: str) -> None:
    results, evaluation = example(search_folder, CLASSES)
    provenance = results.provenance["retrain_subnet"] | {"search_split_trained_on": True}
    changed = results._replace(provenance=results.provenance | {"retrain_subnet": provenance})
    sentence = "it was trained on the search split too (train_full)"
    assert sentence in "".join(Page(render(changed, evaluation, CONFIG)).text)
    assert sentence not in "".join(Page(html).text)


def test_the_subnet_is_drawn_within_the_supernet(html: str, search_folder: Path) -> None:
    results, _ = example(search_folder, CLASSES)
    space, spec = results.space, results.subnet.subnet
    page = Page(html)
    rows = page.of_class("block")
    assert len(rows) == 1 + space.supernet.depth
    assert len(page.of_class("absent")) == space.supernet.depth - spec.depth
    bars = 2 * space.supernet.depth  # width and MLP; one filled rectangle each, of no width where left out
    assert len(page.of_class("filled")) == bars + sum(spec.num_heads)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.3, 9.1], (0, 10, ["0", "2", "4", "6", "8", "10"])),
        ([84.1, 84.9], (84, 85, ["84.0", "84.2", "84.4", "84.6", "84.8", "85.0"])),
        ([5, 5], (4.4, 5.6, ["4.4", "4.6", "4.8", "5.0", "5.2", "5.4", "5.6"])),
        ([0, 12], (0, 12.5, ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"])),
    ],
)
def test_scales_hold_all_values_and_end_on_round_ticks(
    values: list[float], expected: tuple[float, float, list[str]]
) -> None:
    found = scale(values)
    assert (found.low, found.high) == pytest.approx(expected[:2])
    assert [found.label(tick) for tick in found.ticks] == expected[2]


def test_labels_at_line_ends_do_not_touch() -> None:
    frame = Frame(Scale(0, 1, ()), Scale(0, 1, ()), 100)
    drawn = end_labels(frame, [("one", 0.02, "a"), ("two", 0.03, "a"), ("three", 0.02, "b")])
    tops = [float(y) for y in re.findall(r' y="([0-9.]+)"', drawn)]
    assert all(below - above >= 16 for above, below in pairwise(tops))
    assert max(tops) <= 100


def test_thinning_keeps_ends_and_means() -> None:
    points = [(float(x), 1.0) for x in range(1000)]
    thin = thinned(points, most=100)
    assert len(thin) == 100
    assert thin[-1] == points[-1]
    assert {y for _, y in thin} == {1.0}
    assert thinned(points[:100], most=100) == points[:100]


def test_images_become_png_of_their_own_pixels() -> None:
    import base64
    import io

    for channels, mode in ((1, "L"), (3, "RGB")):
        pixels = np.random.default_rng(0).integers(0, 256, (channels, 5, 5), dtype=np.uint8)
        content = base64.b64decode(data_uri(pixels).split(",")[1])
        image = Image.open(io.BytesIO(content))
        assert image.mode == mode
        assert (np.asarray(image).reshape(5, 5, channels).transpose(2, 0, 1) == pixels).all()
    assert len(data_uri(np.zeros((3, 224, 224), np.uint8))) < 10_000


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12"),
        (999, "999"),
        (9_840_000, "9.84 M"),
        (312_345, "312 k"),
        (999_900, "1.00 M"),
        (12_340_000_000, "12.3 G"),
        (4_800_000_000_000, "4.80 T"),
        (2_530_000_000_000_000_000, "2.53 E"),
    ],
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count).replace("\u00a0", " ") == text


def test_flat_names_every_value() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": "x", "f": [1, 2]}
    assert flat(nested) == {"a.b": "1", "a.c.d": "null", "e": "x", "f": "[1, 2]"}


def test_the_mean_of_each_choice_is_that_of_the_complete_candidates_with_it(search_folder: Path) -> None:
    """Against a plain loop: each subnet counts once, stopped ones and blocks that are left out do not."""
    results, _ = example(search_folder, CLASSES)
    made = effects(results)
    assert made is not None
    depth, width, heads, ratios = made["tables"]
    complete = {one.candidate.spec: one.top1_percent for one in results.search.candidates if one.loss is not None}
    assert len(complete) < len(results.search.candidates)
    expected = [[top1 for spec, top1 in complete.items() if spec.depth == value] for value in (2, 3, 4, 5)]
    assert [cell.candidates for cell in depth.rows[0][1]] == [len(of) for of in expected]
    assert [cell.mean for cell in depth.rows[0][1] if cell.candidates] == pytest.approx(
        [np.mean(of) for of in expected if of]
    )
    assert sum(cell.candidates for cell in width.rows[0][1]) == len(complete)
    for table, field in ((heads, "num_heads"), (ratios, "mlp_ratio")):
        assert [label for label, _ in table.rows] == ["1", "2", "3", "4", "5"]
        for block, (_, cells) in enumerate(table.rows):
            assert sum(cell.candidates for cell in cells) == sum(spec.depth > block for spec in complete)
            for choice, cell in zip(map(float, table.choices), cells, strict=True):
                of = [top1 for s, top1 in complete.items() if s.depth > block and getattr(s, field)[block] == choice]
                assert cell.candidates == len(of) and (cell.mean is None or cell.mean == pytest.approx(np.mean(of)))
    every = [cell for table in made["tables"] for _, cells in table.rows for cell in cells if cell.candidates]
    assert min(cell.shade for cell in every) == 0 and max(cell.shade for cell in every) == 1


def test_the_heading_names_the_choice_whose_means_differ_most_and_none_that_chance_explains(
    search_folder: Path,
) -> None:
    """Width 32 has 60 %, 64 has 70 % (6 each), 128 has 99 % once: the last is too few for the heading."""
    results, evaluation = example(search_folder, CLASSES)
    space = results.space
    scored = []
    for number in range(13):
        width, top1 = (128, 99.0) if number == 12 else (32, 60.0) if number % 2 else (64, 70.0)
        spec = replace(space.smallest, embed_dim=width, mlp_ratio=(space.choices.mlp_ratio[number % 5], 1.0),
                       num_heads=(1 + number % 4, 1 + number // 6))  # fmt: skip
        scored.append(replace_top1(results.search.candidates[0], spec, top1))
    changed = results._replace(search=results.search._replace(candidates=scored, chosen=0))
    made = effects(changed)
    assert made is not None
    assert made["strongest"] == {"name": "width", "best": "64", "high": 70.0, "worst": "32", "low": 60.0}
    assert [(cell.candidates, cell.mean) for cell in made["tables"][1].rows[0][1]] == [
        (6, 60),
        (6, 70),
        (0, None),
        (1, 99),
    ]
    text = " ".join("".join(Page(render(changed, evaluation, CONFIG)).text).split()).replace("\u00a0", " ")
    assert "Accuracy differs most by width: 70.00 % on average at 64, 60.00 % at 32" in text
    noise = np.random.default_rng(0).normal(65, 8, 13)  # chance alone sets some of these means apart by points
    scored = [replace_top1(one, one.candidate.spec, top1) for one, top1 in zip(scored, noise, strict=True)]
    made = effects(results._replace(search=results.search._replace(candidates=scored, chosen=0)))
    assert made is not None and made["strongest"] is None
    level = results._replace(search=results.search._replace(candidates=scored[:1], chosen=0))
    assert effects(level) is None
    assert "Accuracy differs most" not in render(level, evaluation, CONFIG)


def replace_top1(scored: ScoredCandidate, spec: SubnetSpec, top1: float) -> ScoredCandidate:
    return ScoredCandidate(replace(scored.candidate, spec=spec), top1, 0.5, 3000)
