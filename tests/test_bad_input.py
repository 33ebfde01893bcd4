"""Bad input ends in exit code 2 and one line, before anything heavy is imported, and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from run_steps import arguments, argv, config_of, run, run_all
from tiny import TinyData, make_tiny_data

from components.config import ROOT

Given = dict[str, str]
Spoil = Callable[[Given, Path], None]


class Prepared:
    """Good folders, and the good command line of each step on copies that a test may spoil."""

    def __init__(self, data: TinyData, folder: Path) -> None:
        self.data, self.folder = data, folder

    def given(self, step: str, copy: Path) -> Given:
        shutil.copytree(self.folder, copy / "before")
        return arguments(step, self.data, copy / "before", copy / "result" / "out", config_of(step))


@pytest.fixture(scope="module")
def prepared(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp("good")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_WORK", str(tmp_path_factory.mktemp("work")))
        patch.setenv("AUTOFORMER_TRACKING", "off")
        run_all(tiny_data, folder)
        yield Prepared(tiny_data, folder)
    torch.set_num_threads(threads)


def gone(argument: str) -> Spoil:
    """The file or folder of an argument is not there."""
    return lambda given, tmp: given.update({argument: str(tmp / "gone")})


def setting(override: str) -> Spoil:
    return lambda given, tmp: given.update({"--set": override})


def config(**changes: object) -> Spoil:
    return lambda given, tmp: given.update({"--config": json.dumps(json.loads(given["--config"]) | changes)})


def source(text: str) -> Spoil:
    return lambda given, tmp: given.update({"--config": text})


def other_split(given: Given, tmp: Path) -> None:
    given["--search-split"] = str(make_tiny_data(tmp / "other", seed=5).search)


def changed_archives(given: Given, tmp: Path) -> None:
    given["--data"] = str(make_tiny_data(tmp / "other", seed=5).data)


def cut(file: str) -> Spoil:
    """A file of an earlier step, cut off in the middle."""

    def spoil(given: Given, tmp: Path) -> None:
        path = tmp / "before" / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def removed(file: str) -> Spoil:
    return lambda given, tmp: (tmp / "before" / file).unlink()


def chosen(**changes: object) -> Spoil:
    def spoil(given: Given, tmp: Path) -> None:
        file = tmp / "before" / "search" / "chosen.yaml"
        data = yaml.safe_load(file.read_text())
        data["subnet"] |= changes
        file.write_text(yaml.safe_dump(data))

    return spoil


TRAIN, SEARCH, RETRAIN = "train_supernet", "search_subnet", "retrain_subnet"
CASES: list[tuple[str, Spoil, list[str]]] = [
    (TRAIN, gone("--card"), ["gone: no such file or folder; it is made by prepare_data"]),
    (TRAIN, gone("--train-split"), ["gone: no such file or folder; it is made by prepare_data"]),
    (TRAIN, gone("--search-split"), ["gone: no such file or folder; it is made by prepare_data"]),
    (TRAIN, gone("--data"), ["gone", "`make data` fetches it"]),
    (TRAIN, other_split, ["search.parquet: not a split of the card"]),
    (TRAIN, changed_archives, ["sha256 is"]),
    (TRAIN, setting("space=autoformer-tiny"), ["image_size = 224", "has 28", "choose another space"]),
    (TRAIN, setting("space.num_classes=9"), ["num_classes = 9", "has 10"]),
    (TRAIN, setting("train_supernet.batch_size=501"), ["train_supernet.batch_size = 501", "500", "a smaller one"]),
    (TRAIN, setting("train_supernet.batchsize=50"), ["unknown key", "did you mean 'batch_size'?"]),
    (TRAIN, setting("train_supernet.epochs"), ["--set train_supernet.epochs: expected section.key=value"]),
    (TRAIN, source("demmo"), ["no preset 'demmo'", "did you mean 'demo'?"]),
    (TRAIN, source('{"name": 1'), ["--config: not readable as JSON"]),
    (TRAIN, config(train_supernet=None), ["the section 'train_supernet' is missing"]),
    (SEARCH, gone("--card"), ["gone: no such file or folder; it is made by prepare_data"]),
    (SEARCH, gone("--supernet"), ["gone: no such file or folder; it is made by train_supernet"]),
    (SEARCH, removed("supernet/supernet.json"), ["supernet.json: no such file"]),
    (SEARCH, cut("supernet/supernet.json"), ["supernet.json: not readable as JSON"]),
    (SEARCH, removed("supernet/ema.safetensors"), ["without ema_decay", "set search_subnet.weights to raw"]),
    (SEARCH, setting("space.choices.depth=[1]"), ["a supernet of space 'forty' as it was then"]),
    (SEARCH, setting("search_subnet.images=101"), ["search_subnet.images = 101", "the search split has 100"]),
    (SEARCH, setting("search_subnet.limits.max_params_m=0.001"), ["no legal candidate", "widen the limits"]),
    (SEARCH, setting("search_subnet.limits.max_param_m=1"), ["unknown key", "'max_params_m'?"]),
    (SEARCH, setting("search_subnet.parents=7"), ["parents 7 are more than population 6"]),
    (RETRAIN, gone("--search"), ["gone: no such file or folder; it is made by search_subnet"]),
    (RETRAIN, gone("--supernet"), ["gone: no such file or folder; it is made by train_supernet"]),
    (RETRAIN, removed("search/chosen.yaml"), ["chosen.yaml: no such file"]),
    (RETRAIN, cut("search/provenance.json"), ["provenance.json: not readable as JSON"]),
    (RETRAIN, chosen(embed_dim=24), ["embed_dim = 24 is not in the search space 'forty'", "legal choices: 16, 32"]),
    (RETRAIN, chosen(depth=3), ["chosen.yaml", "entries for depth 3"]),
    (RETRAIN, setting("space.head_dim=4"), ["a supernet of space 'forty' as it was then"]),
    (RETRAIN, setting("retrain_subnet.batch_size=501"), ["retrain_subnet.batch_size = 501"]),
    (RETRAIN, setting("retrain_subnet.mode=none"), ["retrain_subnet.mode = 'none'"]),
]  # fmt: skip


@pytest.mark.parametrize(("step", "spoil", "parts"), CASES, ids=[f"{case[0]}-{case[2][0][:40]}" for case in CASES])
def test_bad_input_is_one_line_and_leaves_nothing(
    step: str, spoil: Spoil, parts: list[str], prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = prepared.given(step, tmp_path)
    spoil(given, tmp_path)
    capsys.readouterr()
    assert run(step, given) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{step}: ") and message.count("\n") == 1, message
    assert all(part in message for part in parts), message
    assert not (tmp_path / "result").exists()  # no record either: it was refused before the work began


@pytest.mark.parametrize(
    ("step", "file"),
    [(SEARCH, "ema.safetensors"), (RETRAIN, "ema.safetensors")],
)
def test_damaged_weights_are_named(
    step: str, file: str, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only torch can tell, so the work has begun: the record says that it failed."""
    given = prepared.given(step, tmp_path)
    cut(f"supernet/{file}")(given, tmp_path)
    capsys.readouterr()
    assert run(step, given) == 2
    message = capsys.readouterr().err
    assert f"{file}: not the weights that the file beside it describes" in message and message.count("\n") == 1
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["out.record.json"]
    assert json.loads(Path(given["--record"]).read_text())["succeeded"] is False


def test_an_old_result_survives_a_failure(prepared: Prepared, tmp_path: Path) -> None:
    given = prepared.given(SEARCH, tmp_path)
    out = Path(given["--out"])
    out.mkdir(parents=True)
    (out / "kept").write_text("as it was")
    cut("supernet/ema.safetensors")(given, tmp_path)
    assert run(SEARCH, given) == 2
    assert [path.name for path in out.iterdir()] == ["kept"]


PROBE = """
import importlib, json, sys
for step, argv in json.loads(sys.argv[1]):
    assert importlib.import_module(f"components.{step}.step").main(argv) == 2, step
print(json.dumps(sorted({"torch", "timm", "mlflow", "kfp"} & set(sys.modules))))
"""


def test_bad_input_is_reported_before_torch_is_imported(prepared: Prepared, tmp_path: Path) -> None:
    """The last check of each step fails here, so every check comes before the import."""
    late = {
        TRAIN: "train_supernet.batch_size=501",
        SEARCH: "search_subnet.limits.max_params_m=0.001",
        RETRAIN: "space.head_dim=4",
    }
    calls = [
        [step, [*argv(prepared.given(step, tmp_path / step)), "--set", override]] for step, override in late.items()
    ]
    command = [sys.executable, "-c", PROBE, json.dumps(calls)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert done.stderr.count("\n") == len(calls)
