"""A limit in milliseconds, from the configuration to the result of the search."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from earlier import FORTY, adopt_random_weights, untracked  # noqa: F401 a fixture for all tests here
from evaluation_sample import read_search
from latencies import table_of, write_latencies
from run_steps import arguments, config_of, run
from s3_server import S3Server
from tiny import TinyData

from autoformer.candidates import COLUMNS, ScoredCandidate
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.named import NamedSubnet
from autoformer.reading import read_json
from components.evaluate_subnet import search_sections
from components.resolve_config.step import resolve
from runtime.common.config import load_config
from runtime.storage.uploads import upload
from runtime.tracking.step_logger import child_run

LIMIT = 3.2  # of 1.3 to 2.9 ms with one block, 2.4 to 5.1 ms with two


def searching(file: Any, **limits: float) -> str:
    """`--config` of a search with a table, as a run resolves it."""
    text = config_of("search_subnet", latency={"table": str(file)}, limits=limits or {"max_latency_ms": LIMIT})
    return load_config(text, (), ()).step_json("search_subnet")


@pytest.fixture(scope="module")
def supernet(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above a supernet with random weights."""
    folder = tmp_path_factory.mktemp("adopted")
    adopt_random_weights(folder, tiny_data)
    return folder


def test_every_candidate_keeps_to_the_limit_and_the_result_holds_the_table(
    supernet: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = FORTY.model_copy(update={"name": "other"})  # which is accepted, and reported
    config = searching(write_latencies(tmp_path / "table.json", other))
    out = tmp_path / "search"
    assert run("search_subnet", arguments("search_subnet", tiny_data, supernet, out, config)) == 0
    note = (
        "search_subnet: search_subnet.latency.table: measured for the space 'other', which differs from 'forty' in name"
    )
    assert capsys.readouterr().out.count(note) == 1
    table = table_of(FORTY)
    for name in ("candidates.csv", "finalists.csv"):
        with (out / name).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [*rows[0]] == [*COLUMNS, "latency_ms"]
        found = [ScoredCandidate.from_row(row) for row in rows]
        assert {one.is_baseline for one in found} == {True, False} or name == "finalists.csv"
        for one in found:
            assert one.candidate.latency_ms == table.predict(one.candidate.spec) <= LIMIT
            assert {key: str(value) for key, value in one.to_row().items()} == rows[found.index(one)]
    chosen = NamedSubnet.from_yaml(out / "chosen.yaml").subnet
    assert read_json(out / "metrics.json")["chosen_latency_ms"] == table.predict(chosen)
    assert read_json(out / "provenance.json")["config"]["search_subnet"]["latency"]["sha256"]

    search = read_search(out, chosen)
    assert search.table == table_of(other)
    shown = search_sections._described(search.candidates[search.chosen], "chosen")["costs"]
    assert shown[2:] == [f"{table.predict(chosen):.3g} ms"]
    assert child_run(found[0], [chosen])["metrics"]["cost/latency_ms"] == found[0].candidate.latency_ms

    with (out / "candidates.csv").open(encoding="utf-8") as file:
        cut = [line.rsplit(",", 1)[0] for line in file]
    (out / "candidates.csv").write_text("\n".join(cut) + "\n")
    with pytest.raises(AutoFormerError, match="has no column 'latency_ms'"):
        read_search(out, chosen)


def test_a_table_in_s3_is_downloaded_and_verified(
    supernet: Path, tiny_data: TinyData, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_latencies(tmp_path / "table.json", FORTY)
    upload(file, s3.uri("table.json"))
    named = {"table": s3.uri("table.json"), "sha256": hash_file(file)}
    given = arguments(
        "search_subnet", tiny_data, supernet, tmp_path / "search",
        config_of("search_subnet", latency=named, generations=0, limits={"max_latency_ms": LIMIT}),
    )  # fmt: skip
    assert run("search_subnet", given) == 0
    wrong = config_of("search_subnet", latency=named | {"sha256": "0" * 64})
    given = arguments("search_subnet", tiny_data, supernet, tmp_path / "other", wrong)
    assert run("search_subnet", given) != 0
    assert "checksum" in capsys.readouterr().err
    with pytest.raises(AutoFormerError, match=r"set search_subnet.latency.sha256"):
        searching(s3.uri("table.json"))


def test_a_table_that_changes_after_it_was_resolved_is_refused(
    supernet: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_latencies(tmp_path / "table.json", FORTY)
    config = searching(file)
    write_latencies(file, FORTY, constant_ms=0.5)
    assert run("search_subnet", arguments("search_subnet", tiny_data, supernet, tmp_path / "search", config)) == 2
    error = capsys.readouterr().err
    assert "changed since the run was resolved" in error and error.count("\n") == 1
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("limits.max_latency_ms=2.5", "max_latency_ms = 2.5 is less than the smallest subnet of 'fashion-mnist' has"),
        ("limits.min_latency_ms=99", "min_latency_ms = 99.0 is more than the largest subnet"),
        ("limits.min_latency_ms=9 search_subnet.limits.max_latency_ms=8", "min_latency_ms 9 is above max_latency_ms 8"),
        ("limits.max_latency_ms=9 search_subnet.latency=null", "limits on latency need a table"),
        ("limits.max_latency_ms=-1", "max_latency_ms"),
        ("latency.table=/nowhere.json", "search_subnet.latency.table = /nowhere.json: no such file"),
        (f"latency.sha256={'a' * 64}", "table.json: changed since the run was resolved"),
        ("latency.table=/nowhere.json search_subnet.latency.sha256=" + "a" * 64, "table = /nowhere.json: no such file"),
        ("latency.tabel=a.json", "unknown key 'search_subnet.latency.tabel'; did you mean 'table'?"),
    ],
)
def test_a_limit_that_cannot_be_met_is_refused_before_anything_runs(settings: str, words: str, tmp_path: Path) -> None:
    table = write_latencies(tmp_path / "table.json", load_config("demo").space)
    given = [f"search_subnet.latency.table={table}", *f"search_subnet.{settings}".split()]
    with pytest.raises(AutoFormerError) as caught:
        resolve("demo", given)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"device": 1}', "no json"])
def test_a_damaged_table_or_one_of_another_space_is_refused_before_anything_runs(content: str, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(content)
    with pytest.raises(AutoFormerError, match=r"table\.json"):
        resolve("demo", [f"search_subnet.latency.table={table}"])
    write_latencies(table, FORTY)
    with pytest.raises(AutoFormerError, match=r"table\.json: measured for head_dim = 8, but 'fashion-mnist' has 32"):
        resolve("demo", [f"search_subnet.latency.table={table}"])


def test_a_table_decides_the_key_of_the_search(tmp_path: Path) -> None:
    table = write_latencies(tmp_path / "table.json", FORTY)
    before = json.loads(searching(table))["search_subnet"]["latency"]
    write_latencies(table, FORTY, rounds=4)
    after = json.loads(searching(table))["search_subnet"]["latency"]
    assert before["table"] == after["table"] and before["sha256"] != after["sha256"]
