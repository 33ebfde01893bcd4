"""The Makefile hands every value on as it was typed, and fetches no images that a run does not use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import fetch
from runtime.common.config import ROOT

NASTY = """a b/it's "$HOME" $(date) ${PATH `id` \\ Äpfel 数据 *#;&|%,<x>.yaml"""
PROGRAM = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.environ.get("AUTOFORMER_IMAGE")]))
"""
Call = list[str]


def make(folder: Path, *arguments: str) -> list[tuple[str, Call, str | None]]:
    """The programs that a target runs: name, arguments, AUTOFORMER_IMAGE. Those of the environment only record them."""
    folder.mkdir(exist_ok=True)
    for name in ("python", "dvc"):
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    command = ["make", "--silent", "--old-file=.venv/.installed", f"BIN={folder}", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "AUTOFORMER_IMAGE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def options(call: Call) -> dict[str, str]:
    """Each `--name=value`, behind `-m module`."""
    return dict(word.split("=", 1) for word in call[2:] if "=" in word)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("target", "variables"),
    [
        ("run", {"DATA": "--source", "PRESET": "--preset", "SET": "--set", "RUNNER": "--runner"}),
        ("repro", {"PRESET": "--preset", "SET": "--set"}),
        ("data", {"DATA": "--source", "NAME": "--name", "PRESET": "--preset", "SET": "--set"}),
        ("data", {"ARCHIVES": "--archives", "DATASET": "--dataset"}),
        ("compile", {"CLUSTER": "--cluster", "SET": "--set"}),
        ("images", {"TAG": "--tag", "REGISTRY": "--registry", "CLUSTER": "--cluster"}),
        ("submit", {"HOST": "--host", "CLUSTER": "--cluster", "PRESET": "--preset", "SET": "--set", "DATA": "--data",
                    "DATA_HASH": "--data-hash", "EXPERIMENT": "--experiment", "NAMESPACE": "--namespace",
                    "EVERY": "--every", "RUN": "--run", "TERMINATE": "--terminate"}),
        ("ui", {"PORT": "--port"}),
        ("score", {"SUBNETS": "--subnets", "SEARCH": "--search", "DATA": "--data", "OUT": "--out", "SET": "--set"}),
        ("latency", {"SPACE": "--space", "OUT": "--out", "CLASSES": "--classes", "DEVICE": "--device",
                     "BATCH": "--batch", "THREADS": "--threads"}),
        ("evaluate-official", {"CHECKPOINT": "--checkpoint", "SUBNET": "--subnet", "DATA": "--data", "SIZE": "--size",
                               "BATCH": "--batch-size", "LIMIT": "--limit", "OUT": "--out"}),
    ],
)  # fmt: skip
def test_each_value_arrives_as_it_was_typed(target: str, variables: dict[str, str], tmp_path: Path) -> None:
    values = {name: f"{NASTY}.{name}" for name in variables}
    calls = make(tmp_path / "bin", target, *(f"{name}={value}" for name, value in values.items()))
    found = options(calls[0][1])
    assert {variable: found[option] for variable, option in variables.items()} == values
    assert len(found) == len(variables) or (target, found["--data"]) == ("data", f"data/{values['DATASET']}")


def test_values_that_are_no_options_arrive_too(tmp_path: Path) -> None:
    assert make(tmp_path, "run", "DATA=x", "DRY_RUN=1", "FRESH=1")[0][1][3:] == ["--dry-run", "--fresh"]
    (predict,) = make(tmp_path, "predict", f"IMAGE={NASTY}", f"MODEL={NASTY}")
    assert predict[1] == ["-m", "commands.predict", f"--model={NASTY}", "--", NASTY]
    (built,) = make(tmp_path, "images", f"BUILD=--pull {NASTY}", "PUSH=1")
    assert built[1] == ["-m", "pipeline.images", "--push", f"--build=--pull {NASTY}"]
    assert make(tmp_path, "predict", "IMAGE=-1.jpg", "MODEL=-m")[0][1][2:] == ["--model=-m", "--", "-1.jpg"]
    assert make(tmp_path, "run", "DATA=-photos")[0][1][2:] == ["--source=-photos"]
    for target in ("compile", "submit"):
        (call,) = make(tmp_path, target, f"IMAGE={NASTY}")
        assert call[2] == NASTY
    (compared,) = make(tmp_path, "compare", """RUNS=runs/a "it's $HOME/数 据" """)
    assert compared[1] == ["-m", "commands.compare", """--named=runs/a "it's $HOME/数 据" """]
    assert make(tmp_path, "compare")[0][1] == ["-m", "commands.compare"]


@pytest.mark.parametrize("source", ["command line", "environment"])
def test_no_variable_runs_a_function_of_make(source: str, tmp_path: Path) -> None:
    """Flags and lists of words, too; those of `PYTEST` are the shell's."""
    flags = {"run": ["DRY_RUN", "FRESH"], "images": ["PUSH"], "submit": ["WAIT", "FRESH"], "compile": ["KUBERNETES"],
             "bench": ["QUICK", "PARTS"], "test": ["PYTEST"]}  # fmt: skip
    for target, names in flags.items():
        values = {name: f"$(shell touch {tmp_path}/{name})" for name in names}
        given = [f"{name}={value}" for name, value in values.items()] if source == "command line" else []
        command = ["make", "--dry-run", "--old-file=.venv/.installed", target, *given]
        subprocess.run(command, cwd=ROOT, env=os.environ | values, check=True, capture_output=True)
        assert list(tmp_path.iterdir()) == []
    assert make(tmp_path, "bench", "PARTS=engine $(id)", "QUICK=1")[-1][1][2:] == ["engine", "$(id)", "--quick"]


def test_images_are_fetched_for_a_parameter_file_of_fashion_mnist(tmp_path: Path) -> None:
    mine = tmp_path / "it's $mine.yaml"

    def fetches(*arguments: str) -> bool:
        return any("commands.fetch" in call for _, call, _ in make(tmp_path / "bin", "run", *arguments))

    assert fetches() and fetches("PRESET=smoke") and not fetches("PRESET=photos")
    assert not fetches("PRESET=gone") and not fetches(f"PRESET={mine}") and not fetches("DATA=photos")
    for line in ("dataset: flowers", "dataset: 'flowers'  # fashion-mnist", "space: fashion-mnist"):
        mine.write_text(f"name: mine\n{line}\n")
        assert not fetches(f"PRESET={mine}")
    for line in ("dataset: fashion-mnist", 'dataset: "fashion-mnist"', "dataset:   fashion-mnist # clothes"):
        mine.write_text(f"name: mine\n{line}\n")
        assert fetches(f"PRESET={mine}")


@pytest.mark.parametrize(
    ("words", "missing", "example"),
    [
        (["predict"], "IMAGE", "make predict IMAGE=photo.jpg"),
        (["predict", "MODEL=flowers", "IMAGE="], "IMAGE", "make predict IMAGE=photo.jpg"),
        (["score", "OUT=scores"], "SUBNETS", "make score SUBNETS=my-subnets.yaml"),
        (["latency", "OUT=a.json"], "SPACE", "make latency SPACE=fashion-mnist OUT="),
        (["latency", "SPACE=photos-64"], "OUT", "make latency SPACE=fashion-mnist OUT="),
        (["evaluate-official", "CHECKPOINT=a.pth", "SUBNET=b"], "DATA", "DATA=data/imagenet-1k"),
        (["data", "DATA=photos"], "NAME", "make data DATA=photos NAME=flowers"),
        (["data", "ARCHIVES=downloads"], "DATASET", "make data DATASET=cifar-10 ARCHIVES=downloads"),
        (["data", "DATASET=cifar-10", "ARCHIVES="], "ARCHIVES", "make data DATASET=cifar-10 ARCHIVES=downloads"),
        (
            ["submit", "CLUSTER=mine", "DATA=s3://a/b", "EVERY="],
            "EVERY",
            "make submit HOST=http://127.0.0.1:8080 EVERY=…",
        ),
        (["submit", "CLUSTER=mine", "DATA=s3://a/b", "RUN="], "RUN", "make submit HOST=http://127.0.0.1:8080 RUN=…"),
        (["submit", "TERMINATE="], "TERMINATE", "make submit HOST=http://127.0.0.1:8080 TERMINATE=…"),
        (["run", "DATA="], "DATA", "make run DATA=photos"),  # of a shell's empty variable: not the demo instead
    ],
)
def test_a_missing_variable_is_named_with_an_example(words: list[str], missing: str, example: str) -> None:
    command = ["make", "--old-file=.venv/.installed", *words]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{missing}= is missing; for example: " in done.stderr and example in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "A=nothing"], "A= is no variable of the Makefile; `make help` names them"),
        (["run", "PRESTE=smoke"], "PRESTE= is no variable of the Makefile"),
        (["run", "train_supernet.epochs=3"], 'a key of the configuration is set by SET="key=value"'),
        (["repro", "seed=1"], 'a key of the configuration is set by SET="key=value"'),
        (["compare", "RUN=a"], 'RUN= is for make submit; the runs to compare are RUNS="a b"'),
        (["compare", "RUNS= "], 'RUNS= is missing; for example: make compare RUNS="a b"'),
    ],
)
def test_a_variable_that_would_be_ignored_is_refused(words: list[str], says: str) -> None:
    command = ["make", "--old-file=.venv/.installed", *words]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


def test_variables_of_the_environment_may_stand_behind_make(tmp_path: Path) -> None:
    (call,) = make(tmp_path, "compare", "AUTOFORMER_TRACKING=off", "PATH=" + os.environ["PATH"], "TMPDIR=/tmp")
    assert call[1] == ["-m", "commands.compare"]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["evaluate-official"], "CHECKPOINT= SUBNET= DATA="),
        (["evaluate-official", "SUBNET=b"], "CHECKPOINT= DATA="),
        (["latency"], "SPACE= OUT="),
        (["test-cluster", "CLUSTER=mine"], "HOST= DATA="),
    ],
)
def test_all_missing_variables_are_named_at_once(words: list[str], missing: str) -> None:
    command = ["make", "--old-file=.venv/.installed", *words]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"*** {missing} are missing; for example: make {words[0]} " in done.stderr


@pytest.mark.parametrize("target", ["run", "repro"])
def test_settings_are_checked_before_anything_is_fetched(target: str, tmp_path: Path) -> None:
    words = ["PRESET=smoke", "SET=seed 1"]
    called = [call[1] for _, call, _ in make(tmp_path, target, *words)]
    assert called[0] == "commands.check_settings" and called[1] == "commands.fetch"
    bad = ["make", "--old-file=.venv/.installed", "--silent", target, *words]
    done = subprocess.run(bad, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("settings: --set seed: expected key=value, such as seed=1 or train_supernet.epochs=3")


def test_runs_that_cannot_be_compared_end_with_code_2_and_not_with_that_of_xargs() -> None:
    command = ["make", "--old-file=.venv/.installed", "--silent", "compare", "RUNS='a"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    line, last = done.stderr.splitlines()
    assert line == "compare: --named 'a: no closing quotation; quote values with spaces"
    assert last.endswith("Error 2")


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("cifar-10", "DATASET=cifar-10: download its archives yourself, and give their folder: ARCHIVES=folder"),
        ("imagenet-1k", "download its archives yourself"),
        ("flower", "ARCHIVES=folder is for imagenet-1k, cifar-10, cifar-100, flowers-102, oxford-iiit-pets, stanford-"),
        ("flower", "DATA=folder NAME=name is for your own images"),
    ],
)
def test_a_data_set_that_is_not_fetched_is_refused_with_the_variable_it_wants(
    dataset: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch.main(["--dataset", dataset, "--data", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()
