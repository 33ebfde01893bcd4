"""A search that takes over the scores of an earlier one of the same supernet and search split."""

import csv
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from earlier import FORTY, STEP, made, untracked
from run_steps import arguments, config_of, run
from s3_server import S3Server
from tiny import TinyData

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.front import make_search
from autoformer.limits import Limits
from autoformer.search import Evolution, EvolutionSettings
from autoformer.space import SubnetSpec
from components.resolve_config.step import resolve
from runtime.common.config import load_config
from runtime.storage.uploads import upload

__all__ = ["made", "untracked"]

FILES = ("candidates.csv", "provenance.json")


def warm(search: Path | str, seed: int = 1, **changes: Any) -> str:
    """`--config` of a search with a warm start, as a run resolves it."""
    text = config_of(STEP, seed, **{"objective": "loss", "warm_start": {"search": str(search)}} | changes)
    return load_config(text, (), ()).step_json(STEP)


def table_of(search: Path) -> list[ScoredCandidate]:
    with (search / "candidates.csv").open(encoding="utf-8") as file:
        return [ScoredCandidate.from_row(row) for row in csv.DictReader(file)]


def test_scores_are_known_from_the_start_and_the_best_enter_generation_0(
    made: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(STEP, tiny_data, made, tmp_path / "search", warm(made / "search"))
    assert run(STEP, given) == 0
    complete = [one for one in table_of(made / "search") if one.complete]
    known = {one.candidate.spec: one for one in reversed(complete)}
    found = table_of(tmp_path / "search")
    best = sorted(known.values(), key=lambda one: one.rank("loss"))[:3]
    entered = [one for one in found if one.candidate.origin == "earlier"]
    assert [(one.candidate.spec, one.loss) for one in entered] == [(one.candidate.spec, one.loss) for one in best]
    assert all(one.candidate.generation == 0 for one in entered) and found[:3] == entered
    for one in found:
        if earlier := known.get(one.candidate.spec):
            assert (one.top1_percent, one.loss, one.images) == (earlier.top1_percent, earlier.loss, 80)
    out = capsys.readouterr().out
    assert (
        f"{len(known)} scores on 80 images known from {made / 'search'}; generation 0 begins with the best 3 within"
        in out
    )
    metrics = json.loads((tmp_path / "search" / "metrics.json").read_text())
    assert metrics["known_scores"] == len(known)
    assert metrics["candidates_scored"] == len({one.candidate.spec for one in found} - known.keys())
    assert metrics["chosen_loss"] <= json.loads((made / "search" / "metrics.json").read_text())["chosen_loss"]


def test_the_best_known_subnets_within_the_limits_seed_the_search_by_hand() -> None:
    specs = [SubnetSpec(1, 16, (1,), (1.0,)), SubnetSpec(1, 16, (2,), (1.0,)), SubnetSpec(2, 32, (2, 2), (2.0, 2.0))]
    specs.append(SubnetSpec(1, 32, (1,), (1.0,)))
    known = [
        ScoredCandidate(Candidate(7, spec, "initial", 3, (1, 2), 0, 0), top1, 1.0, 80)
        for spec, top1 in zip(specs, (50.0, 60.0, 99.0, 70.0), strict=True)
    ]
    settings = EvolutionSettings(population=4, generations=1, parents=2, mutations=2, crossovers=2)
    limits = Limits(max_params_m=count_params(FORTY, specs[3]) / 1e6)
    first = Evolution(FORTY, limits, settings, Random(0), known=known).ask()
    assert [(one.id, one.spec, one.origin, one.generation, one.parents) for one in first[:2]] == [
        (0, specs[3], "earlier", 0, ()), (1, specs[1], "earlier", 0, ()),
    ]  # fmt: skip
    assert [one.origin for one in first[2:]] == ["initial"] * 2 and len({one.spec for one in first}) == 4
    full = settings.model_copy(update={"parents": 4})
    alone = Evolution(FORTY, Limits(), full, Random(0), known=known).ask()
    assert [one.spec for one in alone] == [specs[2], specs[3], specs[1], specs[0]]


def test_a_search_for_the_front_starts_from_the_front_of_the_known_subnets_by_hand() -> None:
    """The cheapest and the best are the ends of the front; the fourth is dominated by the second."""
    specs = [SubnetSpec(1, 32, (2,), (1.0,)), SubnetSpec(1, 16, (2,), (1.0,)), SubnetSpec(2, 32, (2, 2), (2.0, 2.0))]
    specs.append(SubnetSpec(1, 16, (2,), (2.0,)))
    known = [
        ScoredCandidate(Candidate(0, spec, "initial", 0, (), 0, 0), top1, 1.0, 80)
        for spec, top1 in zip(specs, (60.0, 50.0, 90.0, 49.0), strict=True)
    ]
    settings = EvolutionSettings(population=4, generations=1, parents=3, mutations=2, crossovers=2, method="front")
    search = make_search(FORTY, Limits(), settings, Random(0), known=known)
    first = search.ask()
    assert [(one.id, one.spec, one.origin) for one in first[:3]] == [
        (0, specs[1], "earlier"), (1, specs[2], "earlier"), (2, specs[0], "earlier"),
    ]  # fmt: skip
    assert [one.origin for one in first[3:]] == ["initial"]
    with pytest.raises(ValueError, match="a predictor ranks by objective alone"):
        EvolutionSettings.model_validate(settings.model_dump() | {"predictor": 10})


def test_an_earlier_search_in_s3_is_downloaded(
    made: Path, tiny_data: TinyData, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES:
        upload(made / "search" / name, s3.uri(f"searches/first/{name}"))
    uri = s3.uri("searches/first/")
    named = {"search": uri, "sha256": hash_file(made / "search" / "candidates.csv")}
    given = arguments(STEP, tiny_data, made, tmp_path / "search", warm("", warm_start=named, generations=0))
    assert run(STEP, given) == 0
    assert f"known from {uri}" in capsys.readouterr().out
    with pytest.raises(AutoFormerError, match=r"set search_subnet\.warm_start\.sha256"):
        warm(uri)
    other = warm("", warm_start=named, generations=0, weights="raw")
    assert run(STEP, arguments(STEP, tiny_data, made, tmp_path / "other", other)) == 2
    assert f"{uri}: its scores cannot be taken over; they differ in weights (ema, here raw)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 60}, "number of images (80, here 60)"),
        ({"images": None}, "number of images (80, here 100)"),
        ({"weights": "raw", "images": 70}, "weights (ema, here raw), number of images (80, here 70)"),
        ({"precision": "bfloat16"}, "precision (auto, here bfloat16)"),
        ({"warm_start": {"search": "/nowhere"}}, "search_subnet.warm_start.search = /nowhere: no such file as /now"),
        ({"warm_start": {"serach": "x"}}, "unknown key 'search_subnet.warm_start.serach'"),
    ],
)
def test_scores_of_another_kind_are_refused_naming_what_differs(
    changes: dict[str, Any], words: str, made: Path, tiny_data: TinyData, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert refused(made, tiny_data, tmp_path, made / "search", changes, capsys).count(words) == 1


def test_scores_of_another_supernet_search_split_or_card_are_refused(
    made: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    provenance = json.loads((made / "search" / "provenance.json").read_text())
    for key, words in (
        ("supernet", "supernet (0000"), ("search_split", "search split (0000"),
        ("card", "data set's card (0000"),
    ):  # fmt: skip
        shutil.copytree(made / "search", other, dirs_exist_ok=True)
        changed = provenance | {"inputs": provenance["inputs"] | {key: "0" * 64}}
        (other / "provenance.json").write_text(json.dumps(changed))
        assert words in refused(made, tiny_data, tmp_path, other, {}, capsys)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("candidates.csv", "\n1,", "\none,", "candidates.csv, line 3: invalid literal"),
        ("candidates.csv", "\n1,initial,0,,2,", "\n1,initial,0,,9,", "candidates.csv, line 3: subnet: "),
        ("candidates.csv", "loss", "lost", "candidates.csv: has no column 'loss'"),
        ("candidates.csv", ",80\n", ",79\n", "candidates.csv: holds no complete score"),
        ("provenance.json", "{", "", "provenance.json: not readable as JSON"),
        ("provenance.json", '"ema"', "null", "weights (None, here ema)"),
        ("provenance.json", '"forty"', '"fifty"', "space ('fifty', here 'forty')"),
    ],
)
def test_a_damaged_earlier_search_is_refused_naming_file_and_line(
    file: str, old: str, new: str, words: str, made: Path, tiny_data: TinyData, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(made / "search", tmp_path / "damaged")
    text = (tmp_path / "damaged" / file).read_text()
    assert old in text
    (tmp_path / "damaged" / file).write_text(text.replace(old, new))
    assert words in refused(made, tiny_data, tmp_path, tmp_path / "damaged", {}, capsys)


def refused(
    made: Path, tiny_data: TinyData, tmp_path: Path, search: Path, changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> str:  # fmt: skip
    """The one line with which the step ends, before it writes anything."""
    text = config_of(STEP, 1, **{"objective": "loss", "warm_start": {"search": str(search)}} | changes)
    capsys.readouterr()
    assert run(STEP, arguments(STEP, tiny_data, made, tmp_path / "refused", text)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "refused").exists()
    return error


def test_a_table_that_changes_after_the_run_was_resolved_is_refused(
    made: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "search", tmp_path / "changing")
    config = warm(tmp_path / "changing")
    with (tmp_path / "changing" / "candidates.csv").open("a") as file:
        file.write("\n")
    assert run(STEP, arguments(STEP, tiny_data, made, tmp_path / "search", config)) == 2
    assert "changed since the run was resolved; start the run again" in capsys.readouterr().err


def test_a_run_refuses_another_space_before_anything_runs(made: Path) -> None:
    with pytest.raises(AutoFormerError, match=r"differ in space \('forty', here 'fashion-mnist'\)"):
        resolve("demo", [f"search_subnet.warm_start.search={made / 'search'}"])
