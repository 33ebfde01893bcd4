"""Several budgets from one search: tiny data through all steps, against runs of one budget and plain computations."""

import importlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_steps import SECTIONS, SPACE, arguments, contents, run
from tiny import TinyData
from tracking_fixtures import make_empty_store, use_store

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError
from autoformer.limits import Limits
from autoformer.reading import read_json
from autoformer.space import SearchSpace, SubnetSpec
from commands.compare import report as comparison
from commands.predict import main as predict
from components.register_model.card import Facts
from components.register_model.gate import Decision
from components.search_subnet.budgets import choose_for_all, repeats
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult
from pipeline.summary import summary
from runtime import tracking
from runtime.common.config import load_config
from runtime.common.tables import read_table

BUDGETS = {"0.0035m": 3_500, "0.0138m": 13_800, "0.0147m": 14_700}  # no subnet is between the last two
LARGEST, REPEATED = "0.0147m", "0.0138m"
NAME = "tiny"
RETRAIN = SECTIONS["retrain_subnet"] | {"epochs": 1, "mode": "best"}


class Run(NamedTuple):
    """All folders below `root`, as `make run` and `dvc repro` name them, and what the steps have printed."""

    root: Path
    data: TinyData
    printed: dict[str, str]
    parent: str  # the pipeline run

    def folder(self, step_folder: str, label: str) -> Path:
        return self.root / step_folder / "budgets" / label


def whole_config(**search: Any) -> dict[str, Any]:
    """A configuration with all sections, as plain data."""
    search = SECTIONS["search_subnet"] | {"limits": {}} | search
    return {
        "name": "tiny", "seed": 0, "threads": 1, "dataset": "tiny", "space": SPACE, "prepare_data": {},
        "train_supernet": SECTIONS["train_supernet"], "search_subnet": search, "retrain_subnet": RETRAIN,
        "evaluate_subnet": {"mistakes": 4}, "register_model": {"model_name": NAME, "min_top1_percent": 0.0},
    }  # fmt: skip


def config_text(**search: Any) -> str:
    return json.dumps(whole_config(**search))


MILLIONS = [params / 1e6 for params in BUDGETS.values()]


def command_lines(data: TinyData, root: Path) -> dict[str, list[str]]:
    made = {name: [f"--{name}", str(root / name)] for name in ("supernet", "search", "retrain", "evaluation")}
    reads = ["--data", str(data.data), "--card", str(data.card_path)]
    return {
        "evaluate_subnet": [
            *reads, "--test-split", str(data.test), *made["supernet"], *made["search"], *made["retrain"],
            "--out", str(root / "evaluation"),
        ],
        "register_model": [
            *reads[2:], *made["supernet"], *made["search"], *made["retrain"], *made["evaluation"],
            "--model-card", str(root / "model_card.md"), "--out", str(root / "registration.json"),
        ],
    }  # fmt: skip


def run_step(step: str, config: str, data: TinyData, root: Path) -> int:
    given = ["--config", config, *command_lines(data, root)[step], "--record", str(root / f"{step}.json")]
    code: int = importlib.import_module(f"components.{step}.step").main(given)
    return code


@pytest.fixture(scope="module")
def ran(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One supernet, one search and three budgets, with a real MLflow store."""
    root, config = tmp_path_factory.mktemp("budgets"), config_text(budgets=MILLIONS)
    store = root / "mlflow.db"
    store.write_bytes(make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store").read_bytes())
    threads, printed = torch.get_num_threads(), {}
    with pytest.MonkeyPatch.context() as patch:
        use_store(f"sqlite:///{store}", root / "work", patch)
        parent = tracking.open_pipeline_run(load_config(config))
        patch.setenv("AUTOFORMER_PARENT_RUN_ID", parent)
        for step, folder in (
            ("train_supernet", "supernet"),
            ("search_subnet", "search"),
            ("retrain_subnet", "retrain"),
        ):
            printed[step] = captured(lambda s=step, f=folder: run(s, arguments(s, tiny_data, root, root / f, config)))
        for step in ("evaluate_subnet", "register_model"):
            printed[step] = captured(lambda s=step: run_step(s, config, tiny_data, root))
        tracking.close_pipeline_run(parent, "FINISHED")
        yield Run(root, tiny_data, printed, parent)
    torch.set_num_threads(threads)


def captured(step: Any) -> str:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert step() == 0, out.getvalue()
    return out.getvalue()


@pytest.fixture
def alone(ran: Run, tmp_path: Path) -> Path:
    """A folder with the supernet, for a run of its own; nothing is tracked."""
    (tmp_path / "supernet").symlink_to(ran.root / "supernet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_TRACKING", "off")
        yield tmp_path


# The search


def rows_of(table: Path, label: str) -> list[dict[str, str]]:
    """The rows of one budget, without the label, and with the ids that its search alone gives."""
    rows = [row for row in read_table(table) if row.pop("budget") == label]
    first = int(rows[0]["id"])
    for row in rows:
        row["id"] = str(int(row["id"]) - first)
        row["parents"] = ";".join(str(int(parent) - first) for parent in row["parents"].split(";") if parent)
    return rows


@pytest.mark.parametrize("label", BUDGETS)
def test_each_budget_has_the_search_that_it_has_alone(label: str, ran: Run, alone: Path) -> None:
    limited = config_text(limits={"max_params_m": BUDGETS[label] / 1e6})
    assert run("search_subnet", arguments("search_subnet", ran.data, alone, alone / "search", limited)) == 0
    assert rows_of(ran.root / "search" / "candidates.csv", label) == read_table(alone / "search" / "candidates.csv")
    progress = [row for row in read_table(ran.root / "search" / "progress.csv") if row.pop("budget") == label]
    assert progress == read_table(alone / "search" / "progress.csv")


def test_one_budget_gives_what_the_limit_alone_gives(ran: Run, alone: Path) -> None:
    for name, settings in (("budget", {"budgets": [0.0138]}), ("limit", {"limits": {"max_params_m": 0.0138}})):
        given = arguments("search_subnet", ran.data, alone, alone / name, config_text(**settings))
        assert run("search_subnet", given) == 0
    search, limited = contents(alone / "budget"), contents(alone / "limit")
    for table in ("candidates.csv", "finalists.csv", "progress.csv"):
        without = re.sub(rb",(budget|0\.0138m)(?=\r?$)", b"", search[table], flags=re.MULTILINE)
        assert without == limited[table]
    chosen, expected = (yaml.safe_load(text["chosen.yaml"]) for text in (search, limited))
    assert chosen["subnet"] == expected["subnet"] and search["budgets/0.0138m.yaml"] == search["chosen.yaml"]
    metrics = json.loads(search["metrics.json"])
    assert {key: value for key, value in metrics.items() if "/" not in key} == json.loads(limited["metrics.json"])


def test_the_front_of_each_budget_and_an_earlier_search_of_several_budgets(ran: Run, alone: Path) -> None:
    """NSGA-II, from the scores of the three searches: a front for each budget, within it."""
    changes = {"budgets": MILLIONS, "method": "front", "warm_start": {"search": str(ran.root / "search")}}
    given = arguments("search_subnet", ran.data, alone, alone / "search", config_text(**changes))
    assert run("search_subnet", given) == 0
    front = read_table(alone / "search" / "front.csv")
    assert {row["budget"] for row in front} == set(BUDGETS)
    assert all(int(row["params"]) <= BUDGETS[row["budget"]] for row in front)
    ids = [row["id"] for row in read_table(alone / "search" / "candidates.csv")]
    assert len(ids) == len(set(ids)) and {row["id"] for row in front} <= set(ids)


def test_each_choice_is_the_best_within_its_budget_of_all_finalists(ran: Run) -> None:
    finalists = read_table(ran.root / "search" / "finalists.csv")
    for label, most in BUDGETS.items():
        chosen = yaml.safe_load((ran.root / "search" / "budgets" / f"{label}.yaml").read_text())["subnet"]
        within = [row for row in finalists if int(row["params"]) <= most]
        best = max(within, key=lambda row: (float(row["top1_percent"]), -float(row["loss"])))
        assert (chosen["depth"], chosen["embed_dim"]) == (int(best["depth"]), int(best["embed_dim"]))
        assert ";".join(map(str, chosen["num_heads"])) == best["num_heads"]
    assert (ran.root / "search" / "chosen.yaml").read_text() == (
        ran.root / "search" / "budgets" / f"{LARGEST}.yaml"
    ).read_text()


def test_a_better_subnet_that_another_budgets_search_found_is_chosen(tmp_path: Path) -> None:
    """By hand: 'large' was found for the larger budget and is the best in it; 'lucky', too, and fits the smaller."""
    space = SearchSpace.model_validate(SPACE)
    own, lucky, large = (SubnetSpec(1, 16, (heads,), (ratio,)) for heads, ratio in ((1, 1.0), (2, 1.0), (2, 2.0)))
    right = {own: 5, lucky: 8, large: 9}
    cache = ScoreCache(
        tmp_path / "scores", 10, lambda tasks: ((task, result(right[task.spec], task)) for task in tasks)
    )

    def result(count: int, task: Any) -> Any:
        from autoformer.racing import ScoringResult

        correct = task.images < count
        return ScoringResult(correct, np.where(correct, 0.1, 2.0).astype(np.float32))

    def scored(id: int, spec: SubnetSpec) -> ScoredCandidate:
        candidate = Candidate(id, spec, "initial", 0, (), count_params(space, spec), 1)
        return ScoredCandidate(candidate, 10.0 * right[spec], 1.0, 10)

    first = SearchResult([scored(0, own)], [scored(0, own)], [], {}, [])
    second = SearchResult([scored(0, lucky), scored(1, large)], [scored(1, large), scored(0, lucky)], [], {}, [])
    budgets = [count_params(space, spec) / 1e6 for spec in (lucky, large)]
    section = load_config(config_text(budgets=budgets)).search_subnet
    assert section is not None
    chosen = choose_for_all({"small": first, "large": second}, section, cache, 10)
    assert [one.chosen.candidate.spec for one in chosen.values()] == [lucky, large]
    assert [one.candidate.id for one in chosen["large"].candidates] == [1, 2]  # no two candidates have one id
    assert chosen["small"].metrics["chosen_top1_percent"] == 80 and repeats(chosen) == {}
    second = SearchResult(second.candidates[:1], second.finalists[1:], [], {}, [])
    again = choose_for_all({"small": first, "large": second}, section, cache, 10)
    assert repeats(again) == {lucky: ["small", "large"]}


def test_a_subnet_that_two_budgets_choose_is_said_to_be_one_and_trained_once(ran: Run) -> None:
    assert f"the subnet of {REPEATED} is also the best found within {LARGEST}" in ran.printed["search_subnet"]
    assert f"retrain_subnet {LARGEST}: the subnet of a smaller budget" in ran.printed["retrain_subnet"]
    assert f"retrain_subnet {LARGEST} (best)" not in ran.printed["retrain_subnet"]
    assert f"evaluate_subnet {LARGEST}: images" not in ran.printed["evaluate_subnet"]
    for folder in ("retrain", "evaluation"):
        first, again = (contents(ran.folder(folder, label)) for label in (REPEATED, LARGEST))
        assert first == again and len(first) >= 4


# One budget after the other is as each alone


@pytest.mark.parametrize("label", ["0.0035m", "0.0138m"])
def test_a_budgets_models_are_those_that_its_subnet_gets_alone(label: str, ran: Run, alone: Path) -> None:
    shutil.copytree(ran.root / "search", alone / "search", ignore=lambda *_: ["budgets"])
    shutil.copyfile(ran.root / "search" / "budgets" / f"{label}.yaml", alone / "search" / "chosen.yaml")
    config = config_text(budgets=MILLIONS)
    assert run("retrain_subnet", arguments("retrain_subnet", ran.data, alone, alone / "retrain", config)) == 0
    mine, expected = contents(ran.folder("retrain", label)), contents(alone / "retrain")
    assert mine.keys() == expected.keys()
    assert [name for name in mine if mine[name] != expected[name] and not name.endswith("model.json")] == []
    assert run_step("evaluate_subnet", config, ran.data, alone) == 0
    assert read_json(ran.folder("evaluation", label) / "metrics.json") == read_json(
        alone / "evaluation" / "metrics.json"
    )
    assert (ran.folder("evaluation", label) / "confusion.json").read_bytes() == (
        alone / "evaluation" / "confusion.json"
    ).read_bytes()


@pytest.mark.parametrize("folder", ["search", "retrain", "evaluation"])
def test_metrics_of_a_step_are_the_largest_budgets_and_each_by_its_label(folder: str, ran: Run) -> None:
    metrics: Mapping[str, float] = read_json(ran.root / folder / "metrics.json")
    by_label = {
        label: {key.removeprefix(f"{label}/"): value for key, value in metrics.items() if key.startswith(f"{label}/")}
        for label in BUDGETS
    }
    assert {key: value for key, value in metrics.items() if "/" not in key} == by_label[LARGEST]
    if folder != "search":
        assert all(read_json(ran.folder(folder, label) / "metrics.json") == by_label[label] for label in BUDGETS)
    assert len({json.dumps(values) for values in by_label.values()}) >= 2


def test_both_runners_ways_to_pass_the_configuration_give_the_same_bytes(ran: Run, alone: Path) -> None:
    """KFP passes a step's part as JSON, DVC the file of the whole."""
    (alone / "params.yaml").write_text(yaml.safe_dump(whole_config(budgets=MILLIONS)))
    config = load_config(str(alone / "params.yaml"))
    for name, given in (("kfp", config.step_json("search_subnet")), ("dvc", str(alone / "params.yaml"))):
        assert run("search_subnet", arguments("search_subnet", ran.data, alone, alone / name, given)) == 0
    assert contents(alone / "kfp") == contents(alone / "dvc") == contents(ran.root / "search")


# One report, and three registered models


def test_one_report_shows_the_budgets_side_by_side(ran: Run) -> None:
    html = (ran.root / "evaluation" / "report.html").read_text()
    table = html[html.index('<table class="several">') : html.index("</table>")]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in table.split("<tr>")[2:]]
    for row, label in zip(rows, BUDGETS, strict=True):
        tested = read_json(ran.folder("evaluation", label) / "metrics.json")
        assert row[0] == label and row[1] == f"{tested['params']:,}"
        assert row[2] == f"{tested['test_top1_percent']:.2f}\u00a0%"
        assert row[3] == f"{tested['test_top1_low_percent']:.2f} to {tested['test_top1_high_percent']:.2f}"
        assert f"<h2>\n      {label}: " in html
    assert f"{LARGEST} has the subnet of {REPEATED}" in html
    marks = re.findall(r'<text class="label strong halo"[^>]*>([^<]+)<', html)
    assert marks == ["0.0035m", f"{REPEATED}, {LARGEST}"]


def test_each_budget_has_a_registered_model_of_its_own(ran: Run) -> None:
    registration = read_json(ran.root / "registration.json")
    assert list(registration["budgets"]) == list(BUDGETS)
    for label in BUDGETS:
        name = f"{NAME}-{label}"
        version = tracking.aliased_version(name, "champion")
        assert version is not None and version.version == registration["budgets"][label]["version"] == "1"
        assert version.tags["budget"] == label and int(version.tags["params"]) <= BUDGETS[label]
        assert f"{name}@champion is version 1" in ran.printed["register_model"]
    card = (ran.root / "model_card.md").read_text()
    assert [line for line in card.splitlines() if line.startswith(f"# {NAME}")] == [
        f"# {NAME}-{label}" for label in BUDGETS
    ]
    assert card.count("\n---\n") == 1 and card.startswith("---\n")


def test_predict_names_the_models_to_choose_from_and_takes_one(
    ran: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((28, 28), dtype=np.uint8)).save(image)
    assert predict([str(image)]) == 2
    refusal = capsys.readouterr().err
    assert refusal.count("\n") == 1 and all(f"{NAME}-{label} (" in refusal for label in BUDGETS)
    for label in BUDGETS:
        assert predict(["--model", f"{NAME}-{label}", str(image)]) == 0
        assert predict(["--model", str(ran.folder("retrain", label) / "model"), str(image)]) == 0
        by_name, by_folder = capsys.readouterr().out.splitlines()
        assert by_name == by_folder


def test_a_gate_that_one_budget_fails_keeps_none_of_the_others(ran: Run, tmp_path: Path) -> None:
    """And what is registered already stays: the other budgets are decided, each on its own."""
    for name in ("supernet", "search", "retrain", "evaluation"):
        (tmp_path / name).symlink_to(ran.root / name)
    scores = [read_json(ran.folder("evaluation", label) / "metrics.json")["test_top1_percent"] for label in BUDGETS]
    low, high = sorted(scores[:2])
    assert low < high, "the two subnets of this seed must differ"
    config = whole_config(budgets=MILLIONS)
    config["register_model"] |= {"model_name": "gated", "min_top1_percent": (low + high) / 2}
    assert run_step("register_model", json.dumps(config), ran.data, tmp_path) == 0
    decided = read_json(tmp_path / "registration.json")["budgets"]
    expected = ["registered" if score == high else "refused" for score in scores]
    assert [decided[label]["decision"] for label in BUDGETS] == expected
    there = [tracking.aliased_version(f"gated-{label}", "champion") is not None for label in BUDGETS]
    assert there == [decision == "registered" for decision in expected]


def test_an_error_about_one_model_is_raised_when_the_others_are_registered(
    ran: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from components.register_model import step

    def decide(facts: Facts) -> Any:
        if facts.budget == "0.0035m":
            raise AutoFormerError("the name is taken")
        return Decision("unchanged", "a test"), "7"

    for name in ("supernet", "search", "retrain", "evaluation"):
        (tmp_path / name).symlink_to(ran.root / name)
    monkeypatch.setattr(step, "decide_now", decide)
    assert run_step("register_model", config_text(budgets=MILLIONS), ran.data, tmp_path) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "the name is taken" in shown.err
    assert all(f"unchanged: a test; {NAME}-{label}@champion is version 7" in shown.out for label in (REPEATED, LARGEST))
    assert not (tmp_path / "registration.json").exists()


def test_the_last_table_lists_all_budgets(ran: Run) -> None:
    outputs = {name: ran.root / name for name in ("search", "retrain", "evaluation")}
    outputs["registration"] = ran.root / "registration.json"
    shown = summary(load_config(config_text(budgets=MILLIONS)), outputs, {}, [])
    for label in BUDGETS:
        tested = read_json(ran.folder("evaluation", label) / "metrics.json")
        (line,) = (line for line in shown.splitlines() if line.startswith(f"  {label} "))
        assert f"{tested['params']:,}" in line and f"{tested['test_top1_percent']:.2f} % (" in line
        assert line.endswith(f"{NAME}-{label} version 1")
    assert f"that of {REPEATED}: the search found none that is larger and better" in shown


def test_mlflow_has_the_budgets_side_by_side(ran: Run) -> None:
    import mlflow

    from runtime.tracking.views import BUDGETS as BUDGETS_VIEW
    from runtime.tracking.views import save_views

    client = mlflow.MlflowClient()
    whole = client.get_run(ran.parent).data.metrics
    for label in BUDGETS:
        tested = read_json(ran.folder("evaluation", label) / "metrics.json")
        assert whole[f"{label}/test_top1_percent"] == tested["test_top1_percent"]
        assert whole[f"{label}/cost/params_m"] == tested["params"] / 1e6
    assert whole["test_top1_percent"] == whole[f"{LARGEST}/test_top1_percent"]
    experiment = client.get_experiment_by_name("autoformer").experiment_id  # type: ignore[union-attr]
    children = client.search_runs([experiment], "tags.stage = 'budget'", order_by=["metrics.`cost/params_m` ASC"])
    mine = [child for child in children if child.data.tags["model_name"].startswith(f"{NAME}-")]
    assert {child.data.tags["budget"]: child.data.tags["version"] for child in mine} == dict.fromkeys(BUDGETS, "1")
    assert all(child.data.metrics["test_top1_percent"] for child in mine)
    pages = {page.shows: page.path for page in save_views(client)}
    assert "the budgets of all runs" in pages and "the budgets of the latest run compared" in pages
    view = json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{BUDGETS_VIEW}"])
    order = json.loads(view["state"])["orderByKey"]
    assert order != "attributes.start_time", "in the order of time MLflow's page folds the runs into their parent"


def test_two_runs_are_compared_budget_by_budget(ran: Run) -> None:
    first = tracking.read_pipeline_run(ran.parent)
    worse = first.scores | {"0.0035m/test_top1_percent": 1.0, "0.0138m/test_top1_percent": 2.0}
    text = comparison(first, first._replace(scores=worse))
    before = first.scores["0.0035m/test_top1_percent"]
    (line,) = (line for line in text.splitlines() if line.strip().startswith("0.0035m: test top-1 "))
    assert f"{before:.2f} %" in line and f"{1 - before:+.2f}" in line


# Configurations


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["search_subnet.budgets=[0.25, 0.1]"], "0.25 stands before 0.1"),
        (["search_subnet.budgets=[0.1, 0.1]"], "0.1 stands twice"),
        (["search_subnet.budgets=[0.1, 0.10000001]"], "0.1 stands twice"),
        (["search_subnet.budgets=[0]"], "less than one parameter"),
        (["search_subnet.budgets=[-1, 0.1]"], "less than one parameter"),
        (["search_subnet.budgets=[.nan]"], "finite number"),
        (["search_subnet.budgets=[.inf]"], "finite number"),
        (["search_subnet.budgets=[]"], "expected a list such as [0.1, 0.25, 0.5]"),
        (["search_subnet.budgets=0.1"], "expected a list such as [0.1, 0.25, 0.5]"),
        (["search_subnet.budgets=[a]"], "valid number"),
        ([f"search_subnet.budgets={[n / 10 for n in range(1, 12)]}"], "11 budgets; at most 10"),
        (["search_subnet.budgets=[0.01, 0.1]"], "0.01 is too small: the smallest subnet of 'fashion-mnist' has 27,914"),
        (["search_subnet.limits.max_params_m=0.3"], "not limits.max_params_m 0.3; make them equal, or that limit null"),
        (["search_subnet.limits.min_params_m=0.2"], "0.05 is below limits.min_params_m 0.2"),
        ([f"register_model.model_name={'a' * 247}"], "it is longer than 250"),
    ],
)
def test_budgets_that_cannot_be_are_refused_in_one_line(settings: list[str], words: str) -> None:
    from components.resolve_config.step import resolve

    with pytest.raises(AutoFormerError) as error:
        resolve("demo-budgets", settings)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert "budget" in str(error.value)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("limits.max_params_m=0.03 limits.min_macs_g=0.01", "<= 30,000 and MACs without relative position >= 10,000,"),
        ("limits.min_params_m=0.2 limits.max_params_m=0.2", "parameters >= 200,000 and parameters <= 200,000"),
        ("limits.min_params_m=0.04 limits.max_macs_g=0.0014", "parameters >= 40,000 and parameters <= 250,000 and"),
        ("limits.max_params_m=null budgets=[0.029,0.3] limits.min_macs_g=0.01", "parameters <= 29,000 and MACs"),
    ],
)
def test_limits_that_no_subnet_meets_together_are_refused_before_anything_runs(limits: str, words: str) -> None:
    from components.resolve_config.step import resolve

    with pytest.raises(AutoFormerError) as error:
        resolve("demo", [f"search_subnet.{limit}" for limit in limits.split()])
    assert str(error.value).startswith("search_subnet.limits: no legal candidate in 10,000 tries under ")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_preset_is_the_demos_recipe() -> None:
    demo, budgets = load_config("demo"), load_config("demo-budgets")
    assert demo.search_subnet is not None and budgets.search_subnet is not None
    assert budgets.search_subnet.budgets and budgets.search_subnet.within(0.25) == demo.search_subnet
    update = {"name": demo.name, "search_subnet": demo.search_subnet}
    assert budgets.model_copy(update=update) == demo


def test_any_ascending_budgets_have_labels_of_their_own() -> None:
    from runtime.common.budgets import check_budgets, label_of

    rng, limits = Random(0), Limits()
    for _ in range(200):
        budgets = sorted({round(10 ** rng.uniform(-5, 4), rng.randrange(7)) for _ in range(8)} - {0.0})
        labels = [label_of(budget) for budget in budgets]
        if len(set(labels)) == len(labels):
            check_budgets(budgets, limits)
        assert [float(label[:-1]) for label in labels] == pytest.approx(budgets, abs=1e-6)
