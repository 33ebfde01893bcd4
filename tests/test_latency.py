"""Tables of latencies: predictions are sums checked by hand; measurements run on a clock that counts operations."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from latencies import table_of, write_latencies
from small import small_space, specs, variants
from torch.utils.flop_counter import FlopCounterMode

from autoformer import part_times
from autoformer.errors import AutoFormerError
from autoformer.latency import read_latency_table
from autoformer.limits import Limits, move_towards
from autoformer.named import load_space
from autoformer.part_times import measure_table
from autoformer.search import Evolution, EvolutionSettings, random_baseline
from autoformer.space import SearchSpace, SubnetSpec
from commands import evaluate_official, score
from commands import latency as command

SPACE = small_space()
ONE = small_space(choices=SPACE.choices.model_copy(update={"embed_dim": (8, 16), "num_heads": (1, 3), "depth": (1, 3)}))
CONDITIONS: dict[str, Any] = {"device": "a device", "threads": 1, "clock": "wall time", "torch": "2.0"}


def flops(work: Callable[[], object]) -> float:
    """A clock of an ideal machine: a nanosecond for each operation of the matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e6


def zeros(space: SearchSpace, batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, space.in_channels, space.image_size, space.image_size)


def test_a_prediction_is_the_sum_of_constant_ends_and_blocks() -> None:
    spec = SubnetSpec(2, 12, (1, 3), (2.0, 1.3))
    blocks = (1 + 0.2 + 0.0012) + (3 + 0.13 + 0.0012)
    assert table_of(SPACE).predict(spec) == pytest.approx(0.25 + 0.12 + 0.012 + blocks)
    with pytest.raises(AutoFormerError, match=r"latency: \(12, 4, 1.0\) is not in the table of 'small'"):
        table_of(SPACE).predict(SubnetSpec(1, 12, (4,), (1.0,)))


@given(specs(SPACE))
def test_no_subnet_is_outside_of_the_extremes(spec: SubnetSpec) -> None:
    """Also where a larger part was measured as faster."""
    table = table_of(SPACE)
    odd = table.model_copy(
        update={"blocks": tuple(part.model_copy(update={"ms": 4 / part.ms}) for part in table.blocks)}
    )
    for each in (table, odd):
        low, high = each.extremes(SPACE)
        assert low - 1e-9 <= each.predict(spec) <= high + 1e-9
    assert table.extremes(SPACE) == pytest.approx([table.predict(SPACE.smallest), table.predict(SPACE.largest)])


@pytest.mark.parametrize("name", ["mean", "class_token", "stem"])
def test_parts_that_are_measured_in_pieces_add_up_to_whole_subnets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an ideal machine every prediction is exact, without a constant."""
    monkeypatch.setattr(part_times, "TIMED_PASSES", 1)
    space = variants()[name].model_copy(update={"choices": ONE.choices})
    table = measure_table(space, zeros(space, 3), flops, rounds=1, check=4, **CONDITIONS)
    assert table.constant_ms == pytest.approx(0, abs=1e-9)
    assert len(table.check) == 4 and table.median_error_percent == pytest.approx(0, abs=1e-6)
    for one in table.check:
        assert one.measured_ms == pytest.approx(one.predicted_ms, rel=1e-9)
    assert (table.batch_size, table.precision) == (3, "float32")
    one_image = measure_table(space, zeros(space), flops, rounds=1, check=0, **CONDITIONS)
    assert one_image.check == () and one_image.median_error_percent is None
    assert 2 < table.predict(space.middle) / one_image.predict(space.middle) <= 3  # position tables have no batch


def test_a_factor_and_a_constant_are_fitted_to_whole_subnets() -> None:
    assert part_times._fit([(1, 1.5), (2, 2.8), (4, 5.4)]) == pytest.approx((1.3, 0.2))
    assert part_times._fit([(2, 3.0), (2, 3.2), (2, 9.0)]) == pytest.approx((1, 1.2))  # one subnet alone
    with pytest.raises(AutoFormerError, match="measure again, with nothing else running"):
        part_times._fit([(1, 5.0), (2, 4.0), (3, 3.0)])


def test_a_pass_that_another_program_interrupts_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_times, "TIMED_PASSES", 3)
    clock = iter([1.0, 90.0, 1.5, 2.0, 2.5, 70.0, 50.0, 60.0, 70.0])
    done: list[int] = []
    assert part_times._medians({"a": lambda: None}, lambda work: next(clock), 3, 0, done.append) == {"a": 2.0}
    assert done == [1, 2, 3]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = read_latency_table(write_latencies(tmp_path / "table.json", SPACE))
    assert table == table_of(SPACE)
    assert table.median_error_percent == pytest.approx(10)
    assert table.conditions == "a processor, 2 cores, 1 thread, batch 1, float32"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks": []}, "blocks has 0 times, not one for each of 27 choices"),
        ({"head": [{"embed_dim": 8, "ms": 1}] * 3}, "head has 3 times, not one for each of 3 choices"),
        ({"constant_ms": "much"}, "constant_ms = 'much'"),
        ({"constant_ms": float("nan")}, "constant_ms"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"device": ""}, "device"),
        ({"constant_ms": -2}, "with constant_ms -2 some subnets would take no time"),
        ({"constant_ms": 1e300}, "constant_ms = 1e+300"),
        ({"speed": 1}, "unknown key 'speed'"),
    ],
)
def test_a_damaged_table_is_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = write_latencies(tmp_path / "table.json", SPACE)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(AutoFormerError) as caught:
        read_latency_table(file)
    assert words in str(caught.value) and str(file) in str(caught.value) and "make latency" in str(caught.value)


def test_a_table_of_another_space_is_refused() -> None:
    table = table_of(SPACE)
    table.check_fits(small_space(name="renamed", choices=ONE.choices), "table")
    assert table.note_on(SPACE) == ""
    assert table.note_on(small_space(name="renamed", choices=ONE.choices)) == (
        "measured for the space 'small', which differs from 'renamed' in name, choices; the layers of a subnet are "
        "the same in both"
    )
    for space, words in (
        (small_space(num_classes=6), "num_classes = 5, but 'small' has 6"),
        (small_space(pooling="class_token"), "pooling = mean"),
        (small_space(choices=SPACE.choices.model_copy(update={"mlp_ratio": (1.0, 1.7)})), "without mlp_ratio = 1.7"),
    ):
        with pytest.raises(AutoFormerError, match=words):
            table.check_fits(space, "table")
    shallow = table_of(SPACE.model_copy(update={"choices": SPACE.choices.model_copy(update={"depth": (1, 2)})}))
    with pytest.raises(AutoFormerError, match="measured without depth = 3 of 'small'"):  # beyond what it was fitted to
        shallow.check_fits(SPACE, "table")


def test_a_search_under_a_latency_limit_draws_legal_candidates_alone() -> None:
    table, settings = table_of(SPACE), EvolutionSettings(population=12, parents=4, mutations=4, crossovers=4)
    limits = Limits(min_latency_ms=2.0, max_latency_ms=3.5)
    evolution = Evolution(SPACE, limits, settings, Random(0), table)
    candidates = [*evolution.ask(), *random_baseline(SPACE, limits, 12, 500, Random(1), table)]
    assert len(candidates) == 24
    for candidate in candidates:
        assert candidate.latency_ms == table.predict(candidate.spec) and 2.0 <= candidate.latency_ms <= 3.5
    edge = Limits(max_latency_ms=table.extremes(SPACE)[0])
    assert move_towards(SPACE, SPACE.largest, edge, Random(0), table) == SPACE.smallest
    with pytest.raises(AutoFormerError, match=r"milliseconds <= 0.01;.*latencies are 1.439 to 10.03 ms"):
        Evolution(SPACE, Limits(max_latency_ms=0.01), EvolutionSettings(tries=50), Random(0), table).ask()
    with pytest.raises(ValueError, match="needs a latency"):
        limits.allow(limits.count(SPACE, SPACE.largest))


def test_without_a_table_candidates_have_no_latency() -> None:
    drawn = Evolution(SPACE, Limits(), EvolutionSettings(population=12, mutations=4, crossovers=4), Random(0)).ask()
    assert {candidate.latency_ms for candidate in drawn} == {None}


def ideal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "clock_of", lambda device, threads: ("processor time", flops))
    monkeypatch.setattr(part_times, "TIMED_PASSES", 1)


def test_the_command_writes_a_table_that_names_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ideal(monkeypatch)
    space = tmp_path / "space.yaml"
    space.write_text(json.dumps(ONE.model_dump(mode="json")))
    out, threads = tmp_path / "table.json", torch.get_num_threads()
    try:
        given = ["--space", str(space), "--classes", "7", "--out", str(out), "--device", "cpu", "--rounds", "1"]
        assert command.main([*given, "--check", "3", "--batch", "2", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    table = read_latency_table(out)
    assert table.device.endswith("cores") and (table.threads, table.batch_size) == (1, 2)
    assert (table.space.num_classes, table.rounds, len(table.check)) == (7, 1, 3)
    assert "median error 0.0 %, largest 0.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--space": "fashion-mnits"}, "did you mean 'fashion-mnist'?"),
        ({"--device": "cuda:77"}, "cuda:77"),
        ({"--out": "nowhere/table.json"}, "nowhere"),
        ({"--out": "."}, "--out .: expected a file"),
        ({"--out": "/proc/table.json"}, "or takes no files; choose another"),
        ({"--check": "-1"}, "--check"),
        ({"--rounds": "0"}, "expected a number above 0"),
        ({"--batch": "two"}, "expected a number above 0"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_measured(
    changes: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--space": "fashion-mnist", "--out": str(tmp_path / "table.json")} | changes
    try:
        assert command.main([part for pair in given.items() for part in pair]) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize("main", [score.main, evaluate_official.main])
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    required = {
        score.main: {"--subnets": str(tmp_path / "none.yaml")},
        evaluate_official.main: {"--checkpoint": "none.pth", "--subnet": "autoformer-tiny", "--data": "none"},
    }[main]
    arguments = required | {"--out": "/proc/result"}
    assert main([part for pair in arguments.items() for part in pair]) == 2
    assert "/proc/result" in capsys.readouterr().err


def test_a_prediction_that_is_too_far_off_is_reported() -> None:
    table = table_of(SPACE)
    near, far = (table.model_copy(update={"check": table.check[index : index + 1]}) for index in (1, 2))
    assert "too much for a limit" not in command.summary(near)[-1]
    assert "too much for a limit" in command.summary(far)[-1]


def test_one_thread_is_timed_by_the_processor_and_several_by_the_wall() -> None:
    assert [command.clock_of(torch.device("cpu"), threads)[0] for threads in (1, 2)] == ["processor time", "wall time"]


def test_the_spaces_of_this_project_have_tables_that_fit_into_a_file() -> None:
    from autoformer.bounds import BOUNDS

    space = load_space("fashion-mnist")
    assert len(table_of(space).model_dump_json()) < BOUNDS.json_bytes / 1000
