"""Limits of a row, rounds of the runs, the opponents of the engine, and ImageNet's archives in small."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import TinyData

from autoformer.complexity import count_macs, count_params
from autoformer.named import load_space, load_subnet
from benchmarks import anchors, bench, packing, recipe
from benchmarks.engine import make_twin, products
from benchmarks.index import write_archives
from benchmarks.rows import Row, interleaved, measured, ratio, table
from components.prepare_data import imagenet
from runtime.common.config import load_config

SUBNET = load_subnet("autoformer-tiny")
SPACE = load_space(SUBNET.space)


def test_a_row_knows_whether_it_holds() -> None:
    assert Row("a / b", 1.2, "x", 1.25).holds is True
    assert Row("a / b", 1.3, "x", 1.25).holds is False
    assert Row("share", 80.0, "%", 75.0, "at least").holds is True
    assert Row("share", 70.0, "%", 75.0, "at least").holds is False
    assert Row("rate", 3.0, "s").holds is None


def test_the_table_shows_what_misses() -> None:
    result = measured([Row("a / b", 1.2, "x", 1.25), Row("share", 70.0, "%", 75.0, "at least"), Row("c", 2.0, "s")])
    assert table(result["rows"]).splitlines() == [
        "       value  limit",
        "a / b  1.2 x  at most 1.25  holds",
        "share  70 %   at least 75   MISSED",
        "c      2 s",
    ]


def test_quick_figures_neither_hold_nor_miss_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    part = ModuleType("benchmarks.part")
    part.measure = lambda quick: measured([Row("share", 119.0, "%", 75.0), Row("c", 2.0, "s")])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, part.__name__, part)
    assert [row["holds"] for row in bench.run_part("part", quick=False)["rows"]] == [False, None]
    rows = bench.run_part("part", quick=True)["rows"]
    assert table(rows).splitlines()[1:] == ["share  119 %  at most 75", "c      2 s"]


def test_torchs_profiler_reports_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINETO_LOG_LEVEL", "")  # to be restored afterwards
    monkeypatch.delenv("KINETO_LOG_LEVEL")
    bench.quiet_profiler()
    program = """
import torch
from torch.profiler import ProfilerActivity, profile
with profile(activities=[ProfilerActivity.CPU], profile_memory=True):
    torch.ones(9) + 1
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_packing_is_measured_against_pillow_on_clip_art_and_photographs() -> None:
    cases = [
        packing.Case("art", lambda folder, images: packing.clip_art(folder, images, (120, 90)), 4, 32),
        packing.Case("photographs", packing.photographs(120, 90, 90), 4, 32),
    ]
    rows = packing.measure(quick=True, cases=cases)["rows"]
    assert [row["name"].partition(":")[0] for row in rows] == ["art", "photographs"]
    assert all(row["value"] > 0 and row["limit"] == packing.MAX_RATIO for row in rows)


def test_the_order_of_runs_rotates_and_ratios_are_of_one_round() -> None:
    order: list[str] = []
    taken = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order[2:] == ["a", "b", "b", "a", "a", "b"]  # the first two are warm-up
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}
    assert interleaved({"a": lambda: None}, 3, is_over=lambda: True) == {"a": []}
    assert ratio([2.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == 3.0


def test_the_products_are_those_of_the_model_without_relative_position() -> None:
    forward, step = (products(SPACE, SUBNET.subnet, 3, kind) for kind in ("forward", "step"))
    macs, of_step = (sum(one.times * one.m * one.k * one.n for one in each) for each in (forward, step))
    assert macs == 3 * count_macs(SPACE, SUBNET.subnet, "none")
    patches = forward[0]
    assert of_step == 3 * macs - patches.m * patches.k * patches.n  # images need no gradient


def test_timms_twin_has_the_subnet_s_shape_less_the_tables() -> None:
    with torch.device("meta"):
        twin = make_twin(SPACE, SUBNET.subnet)
    plain = SPACE.model_copy(update={"relative_position": False})
    assert sum(one.numel() for one in twin.parameters()) == count_params(plain, SUBNET.subnet)


def test_archives_have_the_real_layout_and_no_image_twice(tmp_path: Path) -> None:
    published = write_archives(tmp_path, train=25, val=10, classes=10)
    delivered = imagenet.read(tmp_path, published)
    assert (delivered.splits == "train").sum() == 25 and (delivered.splits == "val").sum() == 10
    assert len(set(delivered.rows.checksums)) == 35 and len(delivered.classes) == 10
    assert hashlib.md5((tmp_path / imagenet.VAL).read_bytes()).hexdigest() == published.archives[imagenet.VAL].md5


def test_the_parts_of_the_recipe_are_compared_by_means_and_intervals_over_the_seeds(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "DATA", tiny_data.data)
    config = load_config("demo", ["prepare_data.search_images=100", "train_supernet.batch_size=50"])
    for part, variants in {"augmentation": 3, "fine_tuning": 5}.items():
        table = recipe.lines(part, config, seeds=2, share=0.005)
        assert len(table) == 1 + variants
        found = re.findall(rf"{part}, seed (\d): (.+): ([\d.]+) %", capsys.readouterr().out)
        assert [seed for seed, *_ in found] == ["0"] * variants + ["1"] * variants
        for line in table[1:]:
            of_seeds = [float(top1) for _, name, top1 in found if line.startswith(name + "  ")]
            mean, low, high = map(float, re.findall(r"  ([\d.]+) +(-?[\d.]+) to ([\d.]+)  ", line)[0])
            assert mean == pytest.approx(sum(of_seeds) / 2, abs=0.01) and len(of_seeds) == 2
            half = 12.706 * abs(of_seeds[0] - of_seeds[1]) / 2  # Student's t with one degree of freedom
            assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05)


def test_anchors_have_the_parameters_of_the_subnet_and_learn_from_the_same_splits(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "DATA", tiny_data.data)
    monkeypatch.setattr(anchors, "BATCHES", 30)
    config = load_config("demo", ["prepare_data.search_images=100", "train_supernet.batch_size=50"])
    bench = anchors.Anchors(config, 60_000)
    for build in bench.models.values():
        assert 45_000 < anchors.size(build()) <= 60_000
    assert [len(images.labels) for images in bench.images.splits.values()] == [500, 100, 100]
    rows = bench.rows(seconds=0.0, seeds=1)
    assert len(rows) == 9 and {row.unit for row in rows} == {"%", "images"}
    assert all(row.value == 1500 for row in rows if row.unit == "images")
    assert all(row.value > 30 for row in rows if row.name.startswith("MLP") and row.unit == "%")
