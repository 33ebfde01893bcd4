"""The documents tell the truth, and the check that says so sees each kind of lie."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import check
from docs.configuration import PAGE, page, rows, tables, undescribed
from runtime.common.config import ROOT, load_config

LIBRARY = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
HELP = "\n".join(f"make {name}   {text}" for name, text in check.help_texts().items() if name != "clean")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", LIBRARY, re.MULTILINE | re.DOTALL)


def test_the_documents_tell_the_truth() -> None:
    assert [str(problem) for problem in (*check.generated(), *check.problems())] == []


def test_the_page_of_the_configuration_is_what_the_models_say() -> None:
    assert undescribed() == []
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_page_knows_every_key_of_the_presets() -> None:
    """Found another way: the keys of the parameter files, whole, as the validated configuration has them."""

    def keys(value: object, prefix: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {prefix.removesuffix(".")}
        return {key for name, below in value.items() for key in keys(below, f"{prefix}{name}.")}

    for preset in sorted((ROOT / "configs" / "presets").glob("*.yaml")):
        found = keys(load_config(str(preset)).model_dump(mode="json"))
        assert len(found) > 60 and found <= check.known_keys(), preset


def test_a_row_says_type_default_and_range() -> None:
    training = {row.key: row for row in tables()["train_supernet"]}
    assert training["label_smoothing"][1:4] == ("number", "`0.0`", "≥ 0, < 1")
    assert training["clip_grad"][1:4] == ("number or null", "`null`", "> 0")
    assert training["epochs"][1:4] == ("number", "required", "> 0")
    assert training["augmentation.flip"][1:4] == ("true or false", "`false`", "")
    assert training["precision"].type.startswith("`auto` or `float32`")
    assert {row.key for row in tables()["retrain_subnet"]} == {
        *("mode", "scratch_reference", "split", "compile"),
    }
    assert "choices.num_heads" in {row.key for row in tables()["Search spaces"]}


def test_a_key_without_a_meaning_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.common.sections import EvaluateSubnet

    monkeypatch.setattr(EvaluateSubnet.model_fields["mistakes"], "description", None)
    assert undescribed() == ["evaluate_subnet: mistakes"]
    assert [row.meaning for row in rows(EvaluateSubnet) if row.key == "mistakes"] == [""]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[there](docs/design-decision.md)", "leads nowhere"),
        ("![image](docs/picture.png)", "leads nowhere"),
        ("[`code`](../README.md#no-such-part)", "no such heading: ../README.md#no-such-part"),
        ("[here](#below)\n\n## Beneath", "no such heading: #below"),
        ("`make runn`", "no such target of make: runn"),
        ("```\nmake run PRESETS=smoke\n```", "the Makefile reads no PRESETS"),
        ("```\nmake run         walk the whole pipeline\n```", "`make help` says otherwise of run"),
        (f"```\n{HELP}\n```", "the list of commands lacks clean"),
        ("`python -m components.train_supernets --help`", "cannot be run: python -m components.train_supernets"),
        ('`make run SET="seed=1 search_subnet.limits.max_params=3"`', "no such key of a parameter file"),
        ("```\ndvc exp run -S train_supernet.epoch=3\n```", "no such key of a parameter file: train_supernet.epoch"),
        ("`register_model.min_top1`", "no such key of a parameter file: register_model.min_top1"),
        ("`components/training_supernet.py`", "no such file: components/training_supernet.py"),
        ("`supernets.py`", "no such file: supernets.py"),
        ("`AUTOFORMER_TRACK=off`", "no such variable: AUTOFORMER_TRACK"),
        ("```text\n…: no such file or folders; it is made by …\n```", "no such message in the source"),
        ("```python\nmodel = (\n```", "not Python"),
    ],
)
def test_each_kind_of_lie_is_seen(text: str, says: str, tmp_path: Path) -> None:
    path = ROOT / "docs" / "not-a-page.md"  # never written: where links start from
    found = check.read_page(_written(tmp_path, text))._replace(path=path)
    checks = (check.links, check.make_commands, check.python_commands, check.keys, check.files, check.variables)
    told = [str(problem) for one in (*checks, check.quotes, check.examples) for problem in one(found)]
    if "#below" in text:  # anchors are read from the file
        told = [str(problem) for problem in check.links(check.read_page(_written(tmp_path, text)))]
    assert len(told) == 1 and says in told[0], told


def test_what_is_true_is_let_through(tmp_path: Path) -> None:
    text = """# A page

[up](../README.md#two-commands), [web](https://kubeflow.org), [here](#a-page), `make run PRESET=smoke SET="seed=1"`,
`make run SET="space.choices.depth=[2]"`, `python -m commands.fetch`, `python -m mlflow ui`,
`train_supernet.*`, `prepare_data.search_images`, `artifacts/search/nothing`, `autoformer/search.py`, `gate.py`

```
make compile     compile the DAG to dist/autoformer.yaml, for a KFP cluster: CLUSTER=name, or IMAGE=… for any
```

```text
…: no such file or folder; it is made by …
```
"""
    found = check.read_page(_written(tmp_path, text))._replace(path=ROOT / "docs" / "not-a-page.md")
    checks = (check.make_commands, check.python_commands, check.keys, check.files, check.variables, check.quotes)
    assert [str(problem) for one in (*checks, check.examples) for problem in one(found)] == []
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Two commands\n")
    inside = check.read_page(_written(tmp_path / "docs", text))
    assert [str(problem) for problem in check.links(inside)] == []


def test_the_check_is_quick_and_needs_no_torch() -> None:
    code = "import sys, docs.check as check; check.problems(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "timm", "mlflow", "kfp"} & {name.partition(".")[0] for name in done.stdout.split()} == set()


@pytest.mark.parametrize("example", [text for text in EXAMPLES if ".pth" not in text])
def test_the_examples_of_the_library_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "library.md", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def _written(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path
