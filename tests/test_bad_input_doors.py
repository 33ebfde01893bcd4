"""Bad input at the doors that a person uses: the runners, own images, the plan, prediction, compilation.

Each case ends in exit code 2 and one line on stderr, soon, with every file as it was.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_steps import contents
from user_images import class_folders, noise

import commands.deliver
import commands.fetch
import commands.own_images
import commands.plan
import commands.predict
import components.prepare_data.step
import components.search_subnet.step
import pipeline.cluster.compile
import pipeline.local
import pipeline.repro
from autoformer.files import write_json
from autoformer.reading import read_json
from components.prepare_data.pack import pack
from components.prepare_data.step import SPLITS
from runtime.common.config import ROOT
from runtime.common.tables import read_table, write_table
from runtime.tracking.store import initialise

SECONDS = 20  # that a refusal may take, here with other tests beside it
Argv = list[str]
Case = tuple[str, Callable[[Path], Argv], list[str]]
MAINS = {
    "local": pipeline.local.main,
    "repro": pipeline.repro.main,
    "own": commands.own_images.main,
    "compile": pipeline.cluster.compile.main,
    "plan": commands.plan.main,
    "predict": commands.predict.main,
    "prepare": components.prepare_data.step.main,
    "fetch": commands.fetch.main,
    "deliver": commands.deliver.main,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the repository is locked or written; no store is asked but where a case names one."""
    for module in (pipeline.local, commands.own_images):
        monkeypatch.setattr(module, "ROOT", tmp_path / "root")
        monkeypatch.setattr(module, "DATASETS", tmp_path / "root" / "datasets")
    monkeypatch.setattr(pipeline.repro, "ROOT", tmp_path / "root")
    monkeypatch.setattr(pipeline.repro, "PARAMS", tmp_path / "root" / "params.yaml")
    monkeypatch.setenv("AUTOFORMER_TRACKING", "off")
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "root" / "work"))
    for name in ("data", "runs", ".dvc/tmp"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())


def refused(door: str, argv: Argv, parts: list[str], tmp: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = contents(tmp)
    capsys.readouterr()
    start = time.monotonic()
    assert MAINS[door](argv) == 2
    assert time.monotonic() - start < SECONDS
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message, message
    assert all(part in message for part in parts), message
    assert contents(tmp) == before
    return message


def setting(override: str) -> Callable[[Path], Argv]:
    return lambda tmp: ["--set", override]


def argv(*parts: str) -> Callable[[Path], Argv]:
    """`…/x` is x in the test's own folder."""
    return lambda tmp: [str(tmp / part[2:]) if part.startswith("…/") else part for part in parts]


def preset(content: str | bytes) -> Callable[[Path], Argv]:
    """A params file with this content."""

    def write(tmp: Path) -> Argv:
        (tmp / "my.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return ["--preset", str(tmp / "my.yaml")]

    return write


def edited(old: str, new: str) -> Callable[[Path], Argv]:
    """The smoke preset with one text in the place of another."""
    text = (ROOT / "configs" / "presets" / "smoke.yaml").read_text()
    assert old in text
    return preset(text.replace(old, new, 1))


RUNNERS: list[tuple[str, Callable[[Path], Argv], list[str]]] = [
    ("misspelt key", setting("train_supernet.epochz=3"), ["unknown key 'train_supernet.epochz'", "'epochs'?"]),
    ("misspelt section", setting("train_supernett.epochs=3"), ["unknown key 'train_supernett'", "'train_supernet'?"]),
    ("nested misspelt key", setting("train_supernet.augmentation.flipp=1"), ["flipp'", "did you mean 'flip'?"]),
    ("wrong type", setting("train_supernet.epochs=many"), ["train_supernet.epochs = 'many'", "valid number"]),
    ("a list for a number", setting("seed=[1]"), ["seed = [1]", "valid integer"]),
    ("negative seed", setting("seed=-1"), ["seed = -1", "greater than or equal to 0"]),
    ("huge seed", setting("seed=1000000000000000000000"), ["seed = 1000000000000000000000", "less than"]),
    ("infinity", setting("train_supernet.epochs=1e400"), ["train_supernet.epochs", "finite number"]),
    ("infinity, as YAML has it", setting("train_supernet.learning_rate=.inf"), ["learning_rate = inf", "finite"]),
    ("not a number", setting("search_subnet.limits.min_params_m=.nan"), ["min_params_m = nan", "finite"]),
    ("null", setting("train_supernet.batch_size="), ["train_supernet.batch_size = None", "valid integer"]),
    ("threads without end", setting("threads=100000000"), ["threads = 100000000", "4096"]),
    ("negative budget", setting("search_subnet.limits.max_params_m=-3"), ["max_params_m = -3", "greater than 0"]),
    ("limits too low", setting("search_subnet.limits.max_params_m=0.001"), ["less than the smallest subnet", "0.0279"]),
    ("limits too high", setting("search_subnet.limits.min_macs_g=50"), ["min_macs_g", "more than the largest subnet"]),
    ("limits crossed", setting("'search_subnet.limits={min_params_m: 2, max_params_m: 1}'"), ["2 is above max_"]),
    ("unknown device", setting("device=tpu"), ["device = 'tpu'", "cuda", "mps"]),
    ("head count", setting("space.choices.num_heads=[2,9]"), ["space", "num_heads", "9", "raise the supernet's"]),
    ("patch", setting("space.patch_size=5"), ["patch_size 5 does not divide image_size 28"]),
    ("unknown space", setting("space=fashion-mnst"), ["fashion-mnst", "did you mean 'fashion-mnist'?"]),
    ("no value", setting("seed"), ["--set seed: expected key=value, such as seed=1"]),
    ("below a value", setting("seed.x=1"), ["'seed' is a value, not a section"]),
    ("quotes", setting("name='a"), ["--set name='a", "quote values with spaces"]),
    ("YAML tag", setting("name=!!python/object/apply:os.getpid [[]]".replace(" ", "")), ["not readable as YAML"]),
    ("unknown preset", argv("--preset", "smokee"), ["no preset 'smokee'", "did you mean 'smoke'?"]),
    ("no file", argv("--preset", "…/gone.yaml"), ["gone.yaml: no such file"]),
    ("unknown argument", argv("--frsh"), ["unrecognized arguments: --frsh"]),
    ("argument without value", argv("--set"), ["--set: expected one argument", "--help"]),
    ("empty file", preset(""), ["my.yaml: expected sections, found NoneType"]),
    ("a list", preset("- 1\n- 2\n"), ["my.yaml: expected sections, found list"]),
    ("binary", preset(bytes(range(256))), ["my.yaml: not readable as YAML"]),
    ("UTF-16", preset("name: x".encode("utf-16")), ["my.yaml: not readable as YAML"]),
    ("malformed", preset("name: [x\nseed: 1\n"), ["my.yaml: not readable as YAML", "line"]),
    ("a key twice", edited("seed: 0", "seed: 0\nseed: 1"), ["my.yaml", "the key 'seed' is there twice", "line"]),
    ("a nested key twice", edited("  epochs:", "  epochs: 9\n  epochs:"), ["the key 'epochs' is there twice"]),
    ("a missing section", edited("search_subnet:", "search:"), ["unknown key 'search'"]),
    ("a number for a key", edited("seed: 0", "seed: 0\n1: 2"), ["my.yaml"]),
    ("deep nesting", preset("[" * 5000), ["my.yaml: not readable as YAML"]),
]  # fmt: skip


def folder_preset(tmp: Path) -> Argv:
    (tmp / "folder.yaml").mkdir()
    return ["--preset", str(tmp / "folder.yaml")]


RUNNERS.append(("a folder", folder_preset, ["folder.yaml: not readable as YAML", "directory"]))


@pytest.mark.parametrize(("given", "parts"), [case[1:] for case in RUNNERS], ids=[case[0] for case in RUNNERS])
@pytest.mark.parametrize("door", ["local", "repro"])
def test_settings_are_refused_by_both_runners(
    door: str, given: Callable[[Path], Argv], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(door, given(tmp_path), parts, tmp_path, capsys)


def test_a_tag_of_python_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    text = f"name: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]\n"
    refused("local", preset(text)(tmp_path), ["my.yaml: not readable as YAML", "python/object"], tmp_path, capsys)
    assert not mark.exists()


def own(**files: int) -> Callable[[Path], Argv]:
    """Class folders with so many images."""

    def make(tmp: Path) -> Argv:
        for name, images in files.items():
            (tmp / "src" / name).mkdir(parents=True)
            for number in range(images):
                noise(len(name) + 10 * number).save(tmp / "src" / name / f"{name}{number}.png")
        return ["--source", str(tmp / "src")]

    return make


def unreadable(tmp: Path) -> Argv:
    class_folders(tmp / "src", 8, 8)
    for number in range(4):
        (tmp / "src" / "a" / f"broken{number}.png").write_bytes(b"")
    return ["--source", str(tmp / "src")]


def labels(text: str) -> Callable[[Path], Argv]:
    def write(tmp: Path) -> Argv:
        class_folders(tmp / "src", 2, 2)
        noise(1).save(tmp / "secret.png")
        (tmp / "src" / "link.png").symlink_to(tmp / "secret.png")
        (tmp / "src" / "labels.csv").write_text(f"path,label\n{text}")
        return ["--source", str(tmp / "src" / "labels.csv")]

    return write


def with_setting(make: Callable[[Path], Argv], override: str) -> Callable[[Path], Argv]:
    return lambda tmp: [*make(tmp), "--set", override]


OWN: list[tuple[str, Callable[[Path], Argv], list[str]]] = [
    ("nothing there", argv("--source", "…/gone"), ["gone: no such folder or CSV file"]),
    ("empty class folder", own(a=3, b=0), ["src/b: a class folder without images", "fill it or remove it"]),
    ("one class", own(a=3), ["one class only, 'a'"]),
    ("no class folder", own(), ["src: no such folder"]),
    ("outside by dots", labels("../secret.png,a\n"), ["line 2: ../secret.png lies outside the folder of the CSV"]),
    ("outside, absolute", labels("/etc/passwd,a\n"), ["/etc/passwd lies outside"]),
    ("outside by a link", labels("link.png,a\n"), ["link.png lies outside"]),
    ("a file of another kind", argv("--source", "…/root/params.yaml"), ["neither a folder nor a .csv file"]),
    ("a bad setting first", with_setting(own(a=3, b=3), "seed=x"), ["seed = 'x'"]),
    ("a share of 200", with_setting(own(a=3, b=3), "prepare_data.max_unreadable_percent=200"), ["= 200", "100"]),
    ("nothing to train", with_setting(own(a=3, b=3), "prepare_data.test_percent=50"), ["test_percent = 50"]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "parts"), [case[1:] for case in OWN], ids=[case[0] for case in OWN])
@pytest.mark.parametrize("door", ["local", "own"])
def test_images_are_refused_by_the_runner_and_by_make_data(
    door: str, given: Callable[[Path], Argv], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(door, [*given(tmp_path), *(["--name", "x"] if door == "own" else [])], parts, tmp_path, capsys)


@pytest.mark.parametrize("door", ["local", "own"])
def test_too_many_unreadable_images(door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report is left beside what is packed so far, no pack."""
    arguments = [*unreadable(tmp_path), *(["--name", "x"] if door == "own" else [])]
    assert MAINS[door](arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "4 of 20 images cannot be read (20.0 %)" in message
    assert not list((tmp_path / "root").rglob("dataset.json")) and not list((tmp_path / "root" / "data").iterdir())
    (report,) = (tmp_path / "root" / "datasets").glob("*.csv")
    assert len(read_table(report)) == 4 and str(report) in message


def quiet(what: str, done: int, total: int) -> None:
    pass


def packed(tmp: Path, images: int = 8) -> Path:
    return pack(class_folders(tmp / "src", images, images), tmp, 32, 3, 0.0, quiet)


def prepare(data: Path, tmp: Path, *settings: str) -> Argv:
    given = ["--config", "photos", "--data", str(data), "--card", str(tmp / "out" / "card.json")]
    for split in SPLITS:
        given += [f"--{split.replace('_', '-')}-split", str(tmp / "out" / f"{split}.parquet")]
    return [*given, "--record", str(tmp / "run.json"), *(part for text in settings for part in ("--set", text))]


Spoil = Callable[[Path], object]


def table(change: Callable[[list[dict[str, str]]], object]) -> Spoil:
    """A pack whose index was edited."""

    def spoil(data: Path) -> None:
        rows = read_table(data / "index.csv")
        change(rows)
        write_table(data / "index.csv", list(rows[0]), rows)

    return spoil


def card(**changes: object) -> Spoil:
    return lambda data: write_json(data / "dataset.json", read_json(data / "dataset.json") | changes)


def cut(name: str) -> Spoil:
    return lambda data: (data / name).write_bytes((data / name).read_bytes()[: (data / name).stat().st_size // 2])


def changed(data: Path) -> None:
    content = bytearray((data / "images-00000.tar").read_bytes())
    content[700] ^= 1
    (data / "images-00000.tar").write_bytes(content)


PACKS: list[tuple[str, Spoil, list[str]]] = [
    ("truncated archive", cut("images-00000.tar"), ["images-00000.tar: sha256 is"]),
    ("changed archive", changed, ["images-00000.tar: sha256 is", "as expected"]),
    ("no archive", lambda data: (data / "images-00000.tar").unlink(), ["images-00000.tar: no such archive"]),
    ("cut index", cut("index.csv"), ["index.csv"]),
    ("no index", lambda data: (data / "index.csv").unlink(), ["index.csv: no such file"]),
    ("binary index", lambda data: (data / "index.csv").write_bytes(b"\xff\x00\xff"), ["index.csv: not readable"]),
    ("cut card", cut("dataset.json"), ["dataset.json: not readable as JSON"]),
    ("a card's key", card(extra=1), ["dataset.json: unknown key 'extra'"]),
    ("a card's type", card(classes="ab"), ["dataset.json: classes"]),
    ("one row less", table(lambda rows: rows.pop()), ["index.csv: 15 rows, but dataset.json counts 16"]),
    ("outside", table(lambda rows: rows[0].update(archive="../secret.tar")), ["line 2: '../secret.tar' is no archive"]),
    ("outside, absolute", table(lambda rows: rows[3].update(archive="/etc/passwd")), ["line 5: '/etc/passwd' is no"]),
    ("the card's outside", card(archives={"../x.tar": "0"}), ["the archive '../x.tar' lies outside the pack"]),
    ("another split", table(lambda rows: rows[0].update(split="holdout")), ["line 2: 'holdout' is no split"]),
    ("another class", table(lambda rows: rows[0].update(label="z")), ["index.csv: not the index of a pack"]),
    ("no number", table(lambda rows: rows[0].update(offset="x")), ["index.csv: not the index of a pack"]),
    ("beyond the end", table(lambda rows: rows[0].update(offset="99999999")), ["index.csv: an image lies outside"]),
    ("before the start", table(lambda rows: rows[0].update(offset="-5")), ["index.csv: an image lies outside"]),
    ("no image there", table(lambda rows: rows[0].update(offset="0")), ["index.csv, line 2: another image"]),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "parts"), [case[1:] for case in PACKS], ids=[case[0] for case in PACKS])
def test_a_damaged_pack_is_refused(
    spoil: Spoil, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = packed(tmp_path)
    spoil(data)
    before = contents(tmp_path)
    capsys.readouterr()
    assert MAINS["prepare"](prepare(data, tmp_path, "prepare_data.test_percent=20")) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(part in message for part in parts), message
    after = contents(tmp_path)
    assert not (tmp_path / "out").exists() and {k: v for k, v in after.items() if k != "run.json"} == before


def test_images_without_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in "ab":
        (tmp_path / "src" / label).mkdir(parents=True)
        for number in range(5):
            image = Image.fromarray(np.zeros((9, 9 + number + 5 * (label == "a"), 3), np.uint8))
            image.save(tmp_path / "src" / label / f"{number}.png")
    data = pack(tmp_path / "src", tmp_path, 32, 3, 0.0, quiet)
    assert MAINS["prepare"](prepare(data, tmp_path)) == 2
    assert "a channel has one value in all training images" in capsys.readouterr().err


DOORS: list[Case] = [
    ("plan", argv("--config", "photos"), ["--data"]),
    ("plan", argv("--config", "photos", "--data", "…/gone"), ["gone: no such file or folder; it is made"]),
    ("plan", argv("--config", '{"name": "x"}', "--data", "…/root"), ["'seed' is missing"]),
    ("plan", argv("--config", '{"a": ' * 5000, "--data", "…/root"), ["--config: not readable as JSON"]),
    ("predict", argv(), ["IMAGE"]),
    ("predict", argv("…/gone.png"), ["gone.png: no such image"]),
    ("predict", argv("…/root"), ["a folder, not an image"]),
    ("predict", argv("--model", "…/gone", "…/root/params.yaml"), ["gone"]),
    ("predict", argv("--model", "…/root", "…/root/params.yaml"), ["root/model.json: no such file"]),
    ("compile", argv("--out", "…/root"), ["root: a folder; name the file to write"]),
    ("compile", argv("--out", "…/root/params.yaml/x.yaml"), ["params.yaml"]),
    ("compile", argv("--image", "x"), ["unrecognized arguments: --image x"]),
    ("own", argv("--source", "…/root"), ["--name"]),
    ("own", argv("--source", "…/root", "--name", "Größe"), ["NAME=Größe", "lower case letters"]),
    ("prepare", argv("--config", "demo"), ["required: --data, --card"]),
    ("prepare", lambda tmp: prepare(tmp / "gone", tmp), ["gone: no such file or folder"]),
    ("prepare", lambda tmp: prepare(tmp / "root", tmp), ["dataset = photos", "no pack of images", "make data DATA=…"]),
    ("prepare", lambda tmp: prepare(packed(tmp), tmp, "prepare_data.search_images=10"), ["search_percent instead"]),
    ("prepare", lambda tmp: prepare(packed(tmp, 2), tmp), ["classes have too few different images", "a 2, b 2", "3"]),
    ("deliver", argv("--dataset", "../x", "--archives", "…/root", "--data", "…/x"), ["DATASET=../x: expected"]),
    ("fetch", argv("--dataset", "cifar"), ["DATASET=cifar: only fashion-mnist", "ARCHIVES=folder"]),
]  # fmt: skip


@pytest.mark.parametrize(("door", "given", "parts"), DOORS, ids=[f"{door}-{parts[0][:30]}" for door, _, parts in DOORS])
def test_other_doors(
    door: str, given: Callable[[Path], Argv], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = given(tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    assert MAINS[door](arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(part in message for part in parts), message
    assert {k: v for k, v in contents(tmp_path).items() if k != "run.json"} == before


def test_an_output_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card below a file; the record below a file."""
    data = packed(tmp_path)
    (tmp_path / "file").write_text("kept")
    for name in ("--card", "--record"):
        arguments = prepare(data, tmp_path)
        arguments[arguments.index(name) + 1] = str(tmp_path / "file" / "x.json")
        capsys.readouterr()
        assert MAINS["prepare"](arguments) == 2, name
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "file" in message
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("kind", ["long", "deep", "a link to itself"])
@pytest.mark.parametrize("flag", ["--preset", "--data", "--source", "--adopt", "--space"])
def test_a_path_that_no_file_can_have_is_refused(
    flag: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    paths = {"long": tmp_path / ("y" * 300), "deep": tmp_path / ("a/" * 3000), "a link to itself": tmp_path / "loop"}
    given = [flag, str(paths[kind])]
    assert MAINS["local"]([*given, "--dry-run", "--preset", "smoke"] if flag != "--preset" else given) == 2
    assert capsys.readouterr().err.count("\n") == 1


STORES = [
    ("http://127.0.0.1:1", ["MLflow at http://127.0.0.1:1 cannot be used", "MLFLOW_TRACKING_URI"]),
    ("postgresql://me:secret@127.0.0.1/x", ["MLflow at postgresql://127.0.0.1/x cannot be used"]),
    ("postgresql://me:p@ss:secret@127.0.0.1/x", ["MLflow at postgresql://127.0.0.1/x cannot be used"]),
    ("gopher://x", ["MLflow at gopher://x cannot be used"]),
    *(
        (uri, [f"MLFLOW_TRACKING_URI={shown}: expected the name of a server, and a port from 1 to 65535"])
        for uri, shown in (
            ("http://127.0.0.1:99999", "http://127.0.0.1:99999"),
            ("http://me:secret@127.0.0.1:abc/x", "http://127.0.0.1:abc/x"),
            ("https://:5000", "https://:5000"),
            ("http://[::1", "http://[::1"),
            ("postgresql://me:p@secret@127.0.0.1:0x1/x", "postgresql://127.0.0.1:0x1/x"),
        )
    ),
]


@pytest.mark.parametrize(("uri", "parts"), STORES, ids=[uri for uri, _ in STORES])
@pytest.mark.parametrize("door", ["local", "repro"])
def test_a_store_that_is_not_there_is_found_before_anything_runs(
    door: str,
    uri: str,
    parts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("AUTOFORMER_TRACKING")
    given = ["--data", str(packed(tmp_path))] if door == "local" else []
    assert "secret" not in refused(door, given, parts, tmp_path, capsys)


def test_a_store_that_is_no_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("AUTOFORMER_TRACKING")
    initialise.cache_clear()
    assert MAINS["repro"]([]) == 2
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link to a device"])
def test_a_database_that_is_no_file_is_refused_at_once(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    make: dict[str, Callable[[], object]] = {
        "a pipe": lambda: os.mkfifo(file), "a folder": file.mkdir,
        "a link to a device": lambda: file.symlink_to("/dev/null"),
    }  # fmt: skip
    make[kind]()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.delenv("AUTOFORMER_TRACKING")
    start = time.monotonic()
    assert MAINS["repro"]([]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "mlflow.db: " in message and time.monotonic() - start < 15


PROCESSES = [
    ["components.train_supernet", "--config", "demo"],
    ["components.prepare_data", "--config", "demmo", "--data", "x", "--card", "x", "--train-split", "x",
     "--search-split", "x", "--test-split", "x", "--train-full-split", "x", "--record", "x"],
    ["pipeline.local", "--set", "seed=x"],
    ["commands.predict", "gone.png"],
    ["commands.plan", "--config", "demo", "--data", "gone"],
]  # fmt: skip


@pytest.mark.parametrize("command", PROCESSES, ids=[command[0] for command in PROCESSES])
def test_a_real_process_ends_with_the_code_and_the_line(command: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AUTOFORMER_")}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_there_are_at_least_sixty_cases() -> None:
    cases = 2 * len(RUNNERS) + 2 * len(OWN) + len(PACKS) + len(DOORS) + 2 * len(STORES) + len(PROCESSES)
    assert cases >= 60
