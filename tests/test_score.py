"""`make score`: subnets of one's own, scored as a search has scored its own."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from earlier import FORTY, STEP, made, untracked
from latencies import table_of, write_latencies
from run_steps import arguments, config_of, contents, run
from tiny import TinyData

from autoformer.candidates import COLUMNS, ScoredCandidate
from autoformer.complexity import count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.space import SubnetSpec
from autoformer.subnet_text import CELLS, to_cells
from commands import score
from runtime.common.config import load_config

__all__ = ["made", "untracked"]

FIRST, SECOND = SubnetSpec(1, 16, (2,), (1.0,)), SubnetSpec(2, 32, (2, 1), (1.0, 2.0))
NAMED = f"name,{','.join(CELLS)}\n"
YAML = """# two blocks of lines
- {depth: 1, embed_dim: 16, num_heads: [2], mlp_ratio: [1]}
- name: large
  subnet:
    depth: 2
    embed_dim: 32
    num_heads: [2, 1]
    mlp_ratio: [1, 2]
"""


@pytest.fixture(scope="module")
def search(made: Path, tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search in a folder such as `make run` leaves."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(made / "supernet", folder / "train-supernet" / "supernet")
    shutil.copytree(made / "search", folder / "search-subnet" / "search")
    (folder / "prepare-data").mkdir()
    shutil.copy(tiny_data.card_path, folder / "prepare-data" / "card")
    shutil.copy(tiny_data.search, folder / "prepare-data" / "search_split")
    return folder / "search-subnet" / "search"


def command(search: Path, tiny_data: TinyData, subnets: Path, out: Path, *more: str) -> int:
    given = ["--subnets", str(subnets), "--search", str(search), "--data", str(tiny_data.data), "--out", str(out)]
    return score.main([*given, *more])


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("form", ["list.yaml", "list.csv", "candidates.csv"])
def test_listed_subnets_get_the_scores_that_the_search_gave_them(
    form: str, search: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subnets = tmp_path / form
    if form == "list.yaml":
        subnets.write_text(YAML)
    elif form == "list.csv":
        cells = [to_cells(FIRST) | {"name": "small"}, to_cells(SECOND) | {"name": "large"}]
        subnets.write_text(
            "\ufeff" + "\n".join([",".join(cells[0]), *(",".join(map(str, one.values())) for one in cells)]) + "\n"
        )
    else:
        shutil.copy(search / "candidates.csv", subnets)
    assert command(search, tiny_data, subnets, tmp_path / "scores") == 0
    assert set(contents(tmp_path / "scores")) == {"candidates.csv", "provenance.json"}
    rows = rows_of(tmp_path / "scores" / "candidates.csv")
    assert [*rows[0]] == ["name", *COLUMNS]
    found = [ScoredCandidate.from_row(row) for row in rows]
    searched = [ScoredCandidate.from_row(row) for row in rows_of(search / "candidates.csv")]
    known = {one.candidate.spec: one for one in searched if one.complete}
    if form == "candidates.csv":
        assert [one.candidate.spec for one in found] == [one.candidate.spec for one in searched]
    else:
        assert [one.candidate.spec for one in found] == [FIRST, SECOND]
        assert [row["name"] for row in rows] == ["line 2" if form == "list.yaml" else "small", "large"]
    assert sum(one.candidate.spec in known for one in found) > 0
    for number, one in enumerate(found):
        spec, macs = one.candidate.spec, count_macs(FORTY, one.candidate.spec)
        assert (one.candidate.id, one.candidate.origin, one.images) == (number, "listed", 80)
        assert (one.candidate.params, one.candidate.macs) == (count_params(FORTY, spec), macs)
        if spec in known:
            assert (one.top1_percent, one.loss) == (known[spec].top1_percent, known[spec].loss)
    lines = capsys.readouterr().out.splitlines()
    best = min(found, key=lambda one: one.rank("loss"))
    shown = [line for line in lines if " loss " in line]
    assert len(shown) == len(found) and f"loss {best.loss:.4f}" in shown[0]
    assert all(
        ("beyond the limits" in line) == (float(line.split(" M param")[0].split()[-1]) > 0.015) for line in shown
    )


def test_a_search_starts_from_the_scores_of_listed_subnets(
    search: Path, made: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subnets, out = tmp_path / "mine.yml", tmp_path / "scores"
    subnets.write_text(YAML)
    assert command(search, tiny_data, subnets, out, "--set", "search_subnet.limits.max_params_m=1") == 0
    text = config_of(STEP, objective="loss", warm_start={"search": str(out)}, limits={}, generations=0)
    config = load_config(text, (), ()).step_json(STEP)
    assert run(STEP, arguments(STEP, tiny_data, made, tmp_path / "search", config)) == 0
    assert (
        f"2 scores on 80 images known from {out}; generation 0 begins with the best 2 within" in capsys.readouterr().out
    )
    entered = [row for row in rows_of(tmp_path / "search" / "candidates.csv") if row["origin"] == "earlier"]
    scores = {row["num_heads"]: row["loss"] for row in rows_of(out / "candidates.csv")}
    assert {row["num_heads"]: row["loss"] for row in entered} == scores and len(scores) == 2


def test_with_a_table_of_latencies_the_scores_hold_them(
    search: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subnets = tmp_path / "mine.yaml"
    subnets.write_text(YAML)
    table = f"search_subnet.latency.table={write_latencies(tmp_path / 'table.json', FORTY)}"
    assert command(search, tiny_data, subnets, tmp_path / "scores", "--set", table) == 0
    latencies = [float(row["latency_ms"]) for row in rows_of(tmp_path / "scores" / "candidates.csv")]
    assert latencies == [table_of(FORTY).predict(spec) for spec in (FIRST, SECOND)]
    assert f", {latencies[0]:.3g} ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", YAML.replace("embed_dim: 32", "embed_dim: 24"), "a.yaml, line 3: subnet: embed_dim = 24 is not in"),
        ("a.yaml", YAML.replace("[2]", "[2, 2]"), "a.yaml, line 2: subnet: num_heads has 2 entries for depth 1"),
        ("a.yaml", YAML.replace("depth: 1,", ""), "a.yaml, line 2: subnet: a subnet has the keys depth, embed_dim"),
        ("a.yaml", YAML.replace("name: large", "nmae: large"), "a.yaml, line 3: unknown key 'nmae'"),
        ("a.yaml", YAML + "- 5\n", "a.yaml, line 9: subnet: a subnet has the keys"),
        ("a.yaml", YAML.replace("name: large", "space: fifty"), "line 3: a subnet of space 'fifty', but the supernet"),
        (
            "a.yaml",
            YAML.replace("name: large", 'name: "large\\e[2J"'),
            "line 3: name = 'large\\x1b[2J': a name",
        ),
        ("a.csv", NAMED + "a\tb,1,16,2,1\n", "a.csv, line 2: a name holds no line break"),
        (
            "a.csv",
            NAMED + "x,1,16,2,1\ny,1,16,2,1\nx,1,32,2,1\n",
            "line 4: the subnet of line 2 is named 'x', too; rename one",
        ),
        ("a.csv", NAMED + "line 3,1,16,2,1\n,1,32,2,1\n", "line 3: the subnet of line 2 is named 'line 3'"),
        ("a.yaml", "[]", "a.yaml: lists no subnet"),
        ("a.yaml", "{", "a.yaml: not readable as YAML"),
        ("a.csv", "depth,embed_dim,num_heads\n1,16,2\n", "a.csv: has no column 'mlp_ratio'"),
        (
            "a.csv",
            "depth,embed_dim,num_heads,mlp_ratio\n1,16,2,1\n1,16,x,1\n",
            "a.csv, line 3: num_heads = 'x': expected whole numbers, one a block",
        ),
        ("a.csv", "depth,embed_dim,num_heads,mlp_ratio\n1,16,2;2,1\n", "a.csv, line 2: subnet: num_heads has 2"),
        (
            "a.csv",
            "depth,embed_dim,num_heads,mlp_ratio\n1;1,16,2,1\n",
            "a.csv, line 2: depth = 1;1, embed_dim = 16: exp",
        ),
        (
            "a.csv",
            "depth,embed_dim,num_heads,mlp_ratio\n1,16,2,wide\n",
            "a.csv, line 2: mlp_ratio = 'wide': expected n",
        ),
        ("a.csv", "", "a.csv: lists no subnet"),
        ("a.csv", "depth,embed_dim,num_heads,mlp_ratio\n\n\n1,16,x,1\n", "a.csv, line 4: num_heads = 'x'"),
        (
            "a.csv",
            "depth,embed_dim,num_heads,mlp_ratio\n1,16\n",
            "line 2: not as many values as the table has columns; l",
        ),
        ("a.csv", "1,16,2,1\n", "a.csv: has no column 'depth'; list subnets under the columns depth, embed_dim, num"),
        ("a.csv", f"depth,embed_dim,num_heads,mlp_ratio\n1{'0' * 400},16,2,1\n", "line 2: subnet: depth = 100"),
        (
            "a.yaml",
            YAML.replace("embed_dim: 32", f"embed_dim: 1{'0' * 400}"),
            "line 3: subnet: subnet: embed_dim = 100",
        ),
        ("missing.csv", None, "missing.csv: no such file; list subnets under the columns depth, embed_dim"),
        ("a.txt", YAML, "a.txt: expected a .yaml, .yml or .csv file"),
        ("missing.yaml", None, "missing.yaml: no such file"),
    ],
)
def test_a_list_that_is_wrong_is_refused_naming_the_line(
    name: str, text: str | None, words: str, search: Path, tiny_data: TinyData, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if text is not None:
        (tmp_path / name).write_text(text)
    assert command(search, tiny_data, tmp_path / name, tmp_path / "scores") == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("score: ") and error.count("\n") == 1
    assert not (tmp_path / "scores").exists()


def test_what_a_search_has_read_is_found_by_its_content_in_any_run(
    search: Path, made: Path, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A step that KFP's cache has answered left its output in an older run."""
    monkeypatch.setattr(score, "ROOT", tmp_path)
    later = tmp_path / "runs" / "autoformer-2" / "search-subnet" / "search"
    shutil.copytree(search, later)
    (tmp_path / "mine.yaml").write_text(YAML)
    assert command(later, tiny_data, tmp_path / "mine.yaml", tmp_path / "scores") == 2
    error = capsys.readouterr().err
    content = json.loads((later / "provenance.json").read_text())["inputs"]["supernet"][:12]
    assert f"{later}: its supernet ({content}) is in no run here" in error and error.count("\n") == 1
    shutil.copytree(search.parent.parent, tmp_path / "runs" / "autoformer-1")
    shutil.rmtree(tmp_path / "runs" / "autoformer-1" / "search-subnet")
    assert score._latest() == later
    assert command(later, tiny_data, tmp_path / "mine.yaml", tmp_path / "scores") == 0
    shutil.rmtree(later)
    with pytest.raises(AutoFormerError, match="no finished search in runs/ or artifacts/"):
        score._latest()


def test_a_folder_of_other_things_is_not_replaced(
    search: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(YAML)
    for out in (tmp_path, tmp_path / "mine.yaml"):
        assert command(search, tiny_data, tmp_path / "mine.yaml", out) == 2
        assert f"--out {out}: is there, and holds other things than scores" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == YAML
    for _ in range(2):  # scores are replaced
        assert command(search, tiny_data, tmp_path / "mine.yaml", tmp_path / "new" / "scores") == 0


def test_a_key_of_the_search_that_is_refused_names_its_file(
    search: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(YAML)
    shutil.copytree(search, tmp_path / "search")
    provenance = tmp_path / "search" / "provenance.json"
    provenance.write_text(provenance.read_text().replace('"parents"', '"elders"'))
    assert command(tmp_path / "search", tiny_data, tmp_path / "mine.yaml", tmp_path / "scores") == 2
    assert f"score: {provenance}: unknown key 'search_subnet.elders'" in capsys.readouterr().err


def test_a_killed_command_scores_no_subnet_again(
    search: Path, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(YAML)
    made_scorer, scored = score.make_scorer, list[SubnetSpec]()

    def counted(*given: object):  # type: ignore[no-untyped-def]
        def run_tasks(tasks):  # type: ignore[no-untyped-def]
            for task, result in zip(tasks, made_scorer(*given)(tasks), strict=True):  # type: ignore[arg-type]
                if len(scored) == 1 and not (tmp_path / "killed").exists():
                    (tmp_path / "killed").touch()
                    raise KeyboardInterrupt
                scored.append(task.spec)
                yield result

        return run_tasks

    monkeypatch.setattr(score, "make_scorer", counted)
    with pytest.raises(KeyboardInterrupt):
        command(search, tiny_data, tmp_path / "mine.yaml", tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    assert command(search, tiny_data, tmp_path / "mine.yaml", tmp_path / "scores") == 0
    assert scored == [FIRST, SECOND]
