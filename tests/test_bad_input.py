"""Bad input ends in exit code 2 and one line, before anything heavy is imported, and leaves nothing behind."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_steps import arguments, argv, config_of, run, run_all
from safetensors.torch import load_file, save_file
from tiny import TinyData, make_tiny_data

from autoformer.files import write_json
from autoformer.images.split_files import Split, read_split, write_split
from autoformer.reading import read_json
from runtime.common.config import ROOT, load_config
from runtime.common.workspace import Workspace

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


def given_split(argument: str, split: str) -> Spoil:
    """Another split of the same data set."""
    return lambda given, tmp: given.update({argument: str(Path(given["--card"]).with_name(f"{split}.parquet"))})


def card(**changes: object) -> Spoil:
    def spoil(given: Given, tmp: Path) -> None:
        file = tmp / "card.json"
        write_json(file, read_json(Path(given["--card"])) | changes)
        given["--card"] = str(file)

    return spoil


def edited_split(argument: str, change: Callable[[Split], Split]) -> Spoil:
    def spoil(given: Given, tmp: Path) -> None:
        write_split(tmp / "edited.parquet", change(read_split(Path(given[argument]))))
        given[argument] = str(tmp / "edited.parquet")

    return spoil


def file_of(argument: str, content: bytes) -> Spoil:
    def spoil(given: Given, tmp: Path) -> None:
        (tmp / "file").write_bytes(content)
        given[argument] = str(tmp / "file")

    return spoil


def overlapping(given: Given, tmp: Path) -> None:
    """The search split with a training image in it."""
    train = read_split(Path(given["--train-split"]))
    more = [
        np.concatenate(pair) for pair in zip(read_split(Path(given["--search-split"])), train.take([0]), strict=True)
    ]
    write_split(tmp / "overlapping.parquet", Split(*more))
    given["--search-split"] = str(tmp / "overlapping.parquet")


TRAIN, SEARCH, RETRAIN = "train_supernet", "search_subnet", "retrain_subnet"
CASES: list[tuple[str, Spoil, list[str]]] = [
    (TRAIN, gone("--card"), ["gone: no such file or folder; it is made by prepare_data"]),
    (TRAIN, gone("--train-split"), ["gone: no such file or folder; it is made by prepare_data"]),
    (TRAIN, gone("--search-split"), ["gone: no such file or folder; it is made by prepare_data"]),
    (TRAIN, gone("--data"), ["gone: no such file or folder; it is made by `make data`"]),
    (TRAIN, other_split, ["search.parquet: not a split of the card"]),
    (TRAIN, changed_archives, ["sha256 is"]),
    (TRAIN, setting("space=autoformer-tiny"), ["image_size = 224", "has 28", "choose another space"]),
    (TRAIN, setting("space.num_classes=9"), ["num_classes = 9", "has 10"]),
    (TRAIN, setting("train_supernet.batch_size=501"), ["train_supernet.batch_size = 501", "500", "a smaller one"]),
    (TRAIN, setting("train_supernet.batchsize=50"), ["unknown key", "did you mean 'batch_size'?"]),
    (TRAIN, setting("train_supernet.epochs"), ["--set train_supernet.epochs: expected key=value"]),
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
    (TRAIN, given_split("--search-split", "test"), ["test.parquet: its hash is", "the card's search split"]),
    (TRAIN, given_split("--train-split", "search"), ["search.parquet: its hash is", "the card's train split"]),
    (TRAIN, overlapping, ["overlapping.parquet: not a split of the card"]),
    (TRAIN, edited_split("--train-split", lambda s: s._replace(labels=s.labels + 1)), ["not a split of the card"]),
    (TRAIN, edited_split("--train-split", lambda s: s.take(slice(0))), ["edited.parquet: holds no images"]),
    (TRAIN, edited_split("--train-split", lambda s: s._replace(offsets=s.offsets - 10**6)), ["lies outside train-im"]),
    (TRAIN, edited_split("--train-split", lambda s: s._replace(archives="../" + s.archives)),
     ["names the archive '../train-images-idx3-ubyte.gz', which the card does not"]),
    (TRAIN, file_of("--train-split", b"archive,offset\n"), ["file: not readable as a split"]),
    (TRAIN, file_of("--card", b"[1]"), ["file: expected a mapping", "found list"]),
    (TRAIN, file_of("--card", b"\xff\xfe"), ["file: not readable as JSON"]),
    (TRAIN, lambda given, tmp: given.update({"--card": str(tmp)}), ["not readable as JSON", "directory"]),
    (TRAIN, card(std=[0.0]), ["card.json: mean and std", "above 0"]),
    (TRAIN, card(mean=[0.1, 0.2, 0.3]), ["card.json: mean and std: expected 1 value each"]),
    (TRAIN, card(archives={"../x.gz": "0"}), ["card.json: the archive '../x.gz' lies outside the data folder"]),
    (TRAIN, card(classes=["a"]), ["card.json: classes"]),
    (TRAIN, lambda given, tmp: given.pop("--out"), ["the following arguments are required: --out"]),
    (SEARCH, config(seed=float("nan")), ["--config: seed = nan"]),
    (SEARCH, setting("device=cpu:7"), ["device = 'cpu:7'"]),
    (RETRAIN, gone("--search"), ["gone: no such file or folder; it is made by search_subnet"]),
    (RETRAIN, gone("--supernet"), ["gone: no such file or folder; it is made by train_supernet"]),
    (RETRAIN, removed("search/chosen.yaml"), ["chosen.yaml: no such file"]),
    (RETRAIN, cut("search/provenance.json"), ["provenance.json: not readable as JSON"]),
    (RETRAIN, chosen(embed_dim=24), ["embed_dim = 24 is not in the search space 'forty'", "legal choices: 16, 32"]),
    (RETRAIN, chosen(depth=3), ["chosen.yaml", "entry for depth 3"]),
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
    assert f"{file}: not a readable checkpoint" in message and message.count("\n") == 1
    assert "run the step that makes it again" in message
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["out.record.json"]
    assert json.loads(Path(given["--record"]).read_text())["succeeded"] is False


class Payload:
    """Pickled, it touches a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def fails(step: str, given: Given, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(step, given) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and not Path(given["--out"]).exists()
    return message


def test_a_checkpoint_with_code_in_it_is_not_run(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = prepared.given(TRAIN, tmp_path)
    inputs = {name: Path(given[f"--{name.replace('_', '-')}"]) for name in ("card", "train_split", "search_split")}
    file = Workspace(TRAIN, load_config(given["--config"], steps=[TRAIN]), inputs).file("checkpoint.pt")
    torch.save({"trainer": Payload(tmp_path / "mark"), "history": []}, file)
    message = fails(TRAIN, given, capsys)
    assert "checkpoint.pt: not a readable checkpoint" in message and "delete it to start again" in message
    assert not (tmp_path / "mark").exists()
    file.unlink()
    # it does run where nobody looks
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_a_teacher_with_code_in_it_is_not_run(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = prepared.given(TRAIN, tmp_path)
    torch.save({"model": Payload(tmp_path / "mark")}, tmp_path / "teacher.pth")
    teacher = {"teacher": "resnet18", "checkpoint": str(tmp_path / "teacher.pth")}
    given["--set"] = shlex.quote(f"train_supernet.distillation={json.dumps(teacher)}")
    message = fails(TRAIN, given, capsys)
    assert "teacher.pth: not a readable checkpoint: it holds builtins.getattr" in message
    assert "which could be code and is not run" in message
    assert not (tmp_path / "mark").exists()


def test_weights_that_are_not_numbers_are_refused(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = prepared.given(SEARCH, tmp_path)
    file = tmp_path / "before" / "supernet" / "ema.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, file)
    message = fails(SEARCH, given, capsys)
    assert "ema.safetensors: 'blocks.0." in message and "holds NaN or infinity" in message


def test_a_device_that_is_not_there_is_named(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = prepared.given(TRAIN, tmp_path) | {"--set": "device=cuda:7"}
    assert "device = cuda:7" in fails(TRAIN, given, capsys)


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
