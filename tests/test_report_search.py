"""The report on a search: objectives of NSGA-II, parallel coordinates, predicted against measured latency."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_sample import read_search, write_search
from latencies import table_of
from report_samples import GARMENTS, SAMPLES, Sample, invent
from test_report import CLASSES, CONFIG, Page, example

from autoformer.errors import AutoFormerError
from autoformer.front import front_of
from autoformer.latency import CheckedSubnet
from autoformer.named import NamedSubnet, load_space
from components.evaluate_subnet.report import render
from components.evaluate_subnet.results import Results
from components.evaluate_subnet.search_sections import MOST_LINES, candidates

SPACE = load_space("fashion-mnist")


def text_of(page: str) -> str:
    return " ".join(" ".join(Page(page).text).split()).replace("\u00a0", " ")


def searched(folder: Path, *objectives: str, population: int = 10) -> tuple[Results, str]:
    """Results of a search and the text of their report; without objectives of evolution."""
    latencies = table_of(SPACE) if "latency_ms" in objectives else None
    write_search(folder, SPACE, population, 3, 700_000, latencies, objectives)
    results, evaluation = example(folder, CLASSES)
    return results, render(results, evaluation, CONFIG)


@pytest.mark.parametrize(
    ("objectives", "title", "axes"),
    [
        (("loss", "params_m"), "parameters and loss", ["parameters, millions"]),
        (("loss", "macs_g"), "MACs and loss", ["MACs without relative position, billions"]),
        (("accuracy", "latency_ms"), "latency and accuracy", ["latency, ms"]),
        (
            ("params_m", "loss", "latency_ms"),
            "parameters, latency and loss",
            ["parameters, millions", "latency, ms"],
        ),
    ],
)
def test_charts_headings_and_table_follow_the_objectives_of_nsga_ii(
    objectives: tuple[str, ...], title: str, axes: list[str], tmp_path: Path
) -> None:
    results, page = searched(tmp_path, *objectives)
    shown, front = text_of(page), front_of(results.search.candidates, objectives)
    assert results.search.objectives == objectives and len(front) > 1
    count = len(results.search.candidates)
    assert f"{len(front)} of {count} candidates are on the Pareto front of {title}" in shown
    assert "evolution" not in shown.lower() and shown.count("NSGA-II") >= 4
    assert [chart for chart in re.findall(r'aria-label="\d+ candidates: [^"]* against ([^"]*)"', page)] == axes
    y_title = (
        "loss on the search split, nats; lower is better"
        if "loss" in objectives
        else "search split, inherited weights, %"
    )
    assert shown.count(y_title) == len(axes)
    table = page.partition("The Pareto front as a table")[2].partition("</table>")[0]
    assert ("<th>loss</th>" in table) == ("loss" in objectives)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [int(row[0]) for row in cells] == [one.candidate.id for one in front]
    if "loss" in objectives:
        assert [row[2] for row in cells] == [f"{one.loss:.4f}" for one in front]
    faint = [mark for mark in Page(page).of_class("candidate") if "dominated" in str(mark["class"])]
    assert bool(faint) == (len(objectives) > 2)
    kept = {int(str(mark["data-candidate"])) for mark in faint}
    members = {index for index, one in enumerate(results.search.candidates) if any(one is other for other in front)}
    assert not kept or kept == set(range(count)) - members


def test_evolution_keeps_accuracy_against_parameters_whatever_ranks_its_candidates(tmp_path: Path) -> None:
    _, page = searched(tmp_path)
    shown = text_of(page)
    assert "NSGA-II" not in shown and "Evolution is" in shown
    assert re.search(r"candidates: top-1 accuracy on the [^\"]* against parameters, millions", page)


def test_objectives_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    write_search(tmp_path, SPACE, 10, 3, 700_000, None, ("loss", "params_m"))
    chosen = NamedSubnet.from_yaml(tmp_path / "chosen.yaml").subnet
    for objectives, problem in (
        (["loss", "colour"], "'colour' is none of accuracy, loss, params_m, macs_g, latency_ms"),
        (["loss", "latency_ms"], "no column latency_ms, an objective of the search; run search_subnet again"),
    ):
        section = {"method": "front", "objective": "loss", "objectives": objectives}
        (tmp_path / "provenance.json").write_text(json.dumps({"config": {"search_subnet": section}}))
        with pytest.raises(AutoFormerError, match=re.escape(problem)) as raised:
            read_search(tmp_path, chosen)
        assert "\n" not in str(raised.value)


def lines(drawing: Any) -> dict[int, list[tuple[float, float]]]:
    """Candidate -> the corners of its line, in the order of the drawing."""
    found = re.findall(r'data-candidate="(\d+)" style="[^"]*" points="([^"]*)"', drawing)
    corners = [(int(index), [tuple(map(float, pair.split(","))) for pair in text.split()]) for index, text in found]
    return {index: [(x, y) for x, y in pairs] for index, pairs in corners}


@pytest.mark.parametrize("objectives", [(), ("loss", "params_m")], ids=["accuracy", "loss"])
def test_a_line_goes_from_depth_to_the_score_with_the_best_at_the_top(
    objectives: tuple[str, ...], tmp_path: Path
) -> None:
    """By hand: depths 2 to 5 are 300 pixels apart; the better a score, the higher its end, and the later its line."""
    results, _ = searched(tmp_path, *objectives)
    outcomes = results.search.candidates
    drawn = lines(candidates(results)["parallel"])
    assert set(drawn) == {index for index, one in enumerate(outcomes) if one.complete}
    for index, corners in drawn.items():
        spec = outcomes[index].candidate.spec
        assert [x for x, _ in corners] == [0, 20, 40, 60, 80, 100]
        assert corners[0][1] == pytest.approx(300 * (5 - spec.depth) / 3, abs=0.1)
        assert corners[1][1] == pytest.approx(300 * (128 - spec.embed_dim) / 96, abs=0.1)
    *others, last = drawn
    assert last == results.search.chosen
    ends = [drawn[index][-1][1] for index in others]
    assert ends == sorted(ends, reverse=True)


def test_many_candidates_are_thinned_by_score_and_the_chosen_one_stays(tmp_path: Path) -> None:
    results, page = searched(tmp_path, "accuracy", "params_m", population=100)
    assert len(results.search.candidates) > 2 * MOST_LINES
    drawn = lines(candidates(results)["parallel"])
    assert MOST_LINES / 2 < len(drawn) <= MOST_LINES + 1 and results.search.chosen in drawn
    assert re.search(r"of which one in 3 by accuracy is drawn", text_of(page))


def test_a_space_with_one_depth_and_one_score_still_has_its_chart(tmp_path: Path) -> None:
    """No axis divides by zero."""
    results, _ = searched(tmp_path)
    choices = SPACE.choices.model_copy(update={"depth": (3,)})
    one = results.search.candidates[0]
    spec = replace(SPACE.smallest, depth=3, num_heads=(1, 1, 1), mlp_ratio=(1.0, 1.0, 1.0))
    only = one._replace(candidate=replace(one.candidate, spec=spec), loss=0.5)
    narrow = results._replace(
        space=SPACE.model_copy(update={"choices": choices}),
        search=results.search._replace(candidates=[only], chosen=0),
    )
    assert lines(candidates(narrow)["parallel"])[0] == [(x, pytest.approx(150, abs=150)) for x in range(0, 101, 20)]


def test_predicted_latencies_stand_against_the_measured_ones_with_their_median_error(tmp_path: Path) -> None:
    """By hand: errors of 10, 2 and 25 %; two predictions are too low. Without a check there is no chart."""
    results, evaluation = invent(SAMPLES["hundred"], tmp_path)
    table = table_of(results.space)
    page = render(results._replace(search=results.search._replace(table=table)), evaluation, CONFIG)
    shown = text_of(page)
    assert "Predicted latency is off by 10.0 % at the median, on 3 measured subnets" in shown
    assert "2 of 3 predictions are below it" in shown
    assert "The largest error is 25.0 %: 3 ms predicted, 4 ms measured." in shown
    assert page.count("</title></circle>") == 3 and "predicted 1.96 ms, measured 2 ms" in page
    one = table.model_copy(update={"check": (CheckedSubnet(subnet=SPACE.smallest, predicted_ms=1, measured_ms=1),)})
    page = render(results._replace(search=results.search._replace(table=one)), evaluation, CONFIG)
    assert "off by 0.0 % at the median, on 1 measured subnet" in text_of(page)
    unchecked = table.model_copy(update={"check": ()})
    page = render(results._replace(search=results.search._replace(table=unchecked)), evaluation, CONFIG)
    assert "Predicted latency is off" not in text_of(page) and "predicted latency:" in text_of(page)


def test_a_search_of_the_papers_size_with_two_charts_stays_below_a_megabyte(tmp_path: Path) -> None:
    """2,100 candidates, and three objectives: the largest report of a setting that the paper has."""
    sample = Sample(
        "photos-64", 4_000_000, GARMENTS, 50, 20, timed=True, objectives=("accuracy", "macs_g", "latency_ms")
    )
    results, evaluation = invent(sample, tmp_path)
    page = render(results, evaluation, CONFIG)
    assert len(results.search.candidates) == 2100 and len(page.encode()) < 1_000_000
