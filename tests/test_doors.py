"""One reader for each format from outside: bounded, one line per error, and no other reader in the code."""

import ast
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_architecture import TREES

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from autoformer.images.card import read_card
from autoformer.reading import parse_yaml, read_json, read_json_as, read_yaml
from autoformer.space import SubnetSpec
from components.search_subnet.score_cache import ScoreCache
from runtime.common.config import load_config
from runtime.common.overrides import parse
from runtime.common.records import Accumulation, Failure, Provenance, StepRecord, read_confusion, read_metrics
from runtime.storage.artifacts import local_copy
from runtime.tracking.operations import read_operations

# readers of libraries, and the files that may call them: the doors, and what reads no file from outside
DOORS = {
    "yaml.load": {"autoformer/reading.py"},
    "yaml.load_all": {"pipeline/cluster/submit.py"},  # the package that it has just compiled
    "yaml.safe_load": set(),
    "json.load": set(),
    "json.loads": {
        "autoformer/reading.py",
        "autoformer/hash_cache.py",  # its own cache, whose damaged lines are ignored
        "pipeline/cluster/first_run.py",  # answers of servers
        "pipeline/cluster/kfp_client.py",
        "runtime/kubernetes/api.py",
        "runtime/tracking/operations.py",
    },
    "torch.load": {"autoformer/weights.py"},
    "load_file": {"autoformer/weights.py"},
    "safe_open": set(),
    "tarfile.open": {
        "components/prepare_data/cifar.py",  # in memory, after `read_archive`
        "components/prepare_data/imagenet.py",  # the devkit, whose md5 is checked first
        "components/prepare_data/tars.py",
    },
    "tarfile.TarFile": {"components/prepare_data/tars.py"},
    "shutil.unpack_archive": set(),
    "zipfile.ZipFile": {"autoformer/weights.py"},
    "gzip.open": {"autoformer/images/split_images.py"},
    "gzip.decompress": set(),
    "pickle.load": set(),
    "pickle.loads": set(),
    "csv.reader": {"components/prepare_data/label_table.py"},
    "csv.DictReader": {"runtime/common/tables.py"},
    "pq.ParquetFile": {"autoformer/images/split_files.py"},
    "pq.read_table": set(),
    "pq.read_metadata": set(),
    "np.load": set(),
    "np.loadtxt": set(),
    "pd.read_csv": set(),
    "pd.read_parquet": set(),
    "argparse.ArgumentParser": set(),  # `console.Parser` is one
}


def test_no_file_is_read_past_its_door() -> None:
    found: dict[str, set[str]] = {reader: set() for reader in DOORS}
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and not file.startswith("benchmarks/"):
                found.get(ast.unparse(node.func) if _is_short(node.func) else "", set()).add(file)
    assert found == DOORS


def _is_short(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))


def test_every_text_file_is_read_and_written_in_utf_8() -> None:
    for file, tree in TREES.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and not file.startswith("benchmarks/")]
        for call in calls:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            values = [value.value for value in call.args if isinstance(value, ast.Constant)]
            is_open = name == "open" and ast.unparse(call.func) not in OTHER_OPENS
            is_text = is_open and any(isinstance(v, str) and set(v) <= set("rwax+") for v in values)
            if is_text or (name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)):
                assert any(keyword.arg == "encoding" for keyword in call.keywords), f"{file}:{call.lineno}"


OTHER_OPENS = {"tarfile.open", "os.open", "Image.open", "gzip.open"}
DEEP = 100_000
NEXT = [*zip("abcdefg", "bcdefgh", strict=True)]


def nine(text: str) -> str:
    return ", ".join([text] * 9)


YAML = {
    "a date that is none": "name: 2026-13-45",
    "a tag of another type": "name: !!timestamp x",
    "a tag of bool": "name: !!bool x",
    "an int that is none": "name: !!int x",
    "a float that is none": "name: !!float x",
    "binary that is none": "name: !!binary é",
    "a set as a key": "? {a: 1}\n: 2",
    "a list as a key": "[1, 2]: 3",
    "deep lists": "[" * DEEP,
    "deep mappings": "{a: " * 5000,
    "deep blocks": "- " * 5000,
    "an alias inside of itself": "name: &a [*a]",
    "aliases of aliases": "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{nine(f'*{a}')}]\n" for a, b in NEXT),
    "quadratic aliases": f"a: &a [{'1, ' * 500}]\nb: [{'*a, ' * 5000}]",
    "merged merges": "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{nine(f'*{a}')}]}}\n" for a, b in NEXT),
    "many keys": "\n".join(f"k{number}: 1" for number in range(30_000)),
    "too large": "# " + "x" * BOUNDS.yaml_bytes,
}  # fmt: skip


def line_of(call: Callable[[], object], *parts: str, seconds: float = 10.0) -> str:
    start = time.monotonic()
    with pytest.raises(AutoFormerError) as caught:
        call()
    message = str(caught.value)
    assert time.monotonic() - start < seconds
    assert "\n" not in message and len(message) < 1000, message
    assert all(part in message for part in parts), message
    return message


@pytest.mark.parametrize("kind", YAML)
def test_yaml_of_any_kind_is_one_line_with_the_files_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(YAML[kind], encoding="utf-8")
    line_of(lambda: read_yaml(tmp_path / "my.yaml"), "my.yaml")
    if "\n" not in YAML[kind] and "=" not in YAML[kind]:
        line_of(lambda: parse(f"seed={YAML[kind]}"), "--set seed=")


@pytest.mark.parametrize(
    "text", ["seed: 0x" + "F" * 5000, f"seed: {'9' * 4000}", f"{'k' * 10_000}: 1", "train_supernet: {epochs: 1e999}"]
)
def test_a_value_beyond_all_numbers_and_keys_beyond_all_lines(text: str, tmp_path: Path) -> None:
    smoke = Path("configs/presets/smoke.yaml").read_text(encoding="utf-8").replace("seed: 0\n", "")
    (tmp_path / "my.yaml").write_text(
        f"{smoke.replace('train_supernet:', 'train_supernet_:', 1) if 'epochs' in text else smoke}\n{text}\n"
    )
    line_of(lambda: load_config(str(tmp_path / "my.yaml")), "my.yaml")


def test_the_projects_own_yaml_is_far_below_the_bounds() -> None:
    for file in Path("configs").rglob("*.yaml"):
        assert file.stat().st_size < BOUNDS.yaml_bytes / 10
        assert read_yaml(file)
    assert parse_yaml("a: &a {x: 1}\nb: *a", "x") == {"a": {"x": 1}, "b": {"x": 1}}


JSON = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "a little too deep": b"[" * 70 + b"]" * 70,
    "deep mappings": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a number of 10,000 digits": b"9" * 10_000,
    "not UTF-8": b'{"a": "\xff"}',
    "cut": b'{"a": ',
    "empty": b"",
    "zeros": bytes(100),
}  # fmt: skip
SHAPES = [
    b"[]",
    b"{}",
    b"1",
    b"null",
    b'"x"',
    b'[{"step": 1}]',
    b'{"config": 1, "files": 2, "classes": 3, "seconds": "x"}',
]
READERS: dict[str, Callable[[Path], object]] = {
    "card": read_card,
    "accumulation": lambda file: read_json_as(Accumulation, file),
    "failure": lambda file: read_json_as(Failure, file),
    "confusion": read_confusion,
    "metrics": lambda file: read_metrics(file, "test_top1_percent"),
    "operations": lambda file: (read_operations(file), file.read_bytes() == b"[]" and line_of_empty(file)),
}


def line_of_empty(file: Path) -> None:
    raise AutoFormerError(f"{file}: an empty list is a backlog")  # legal


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": null, "b": [], "a": 2}}]'])
def test_a_key_that_is_there_twice_is_refused_in_json_as_in_yaml(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text(text)
    line_of(lambda: read_json(tmp_path / "my.json"), "my.json", "the key 'a' is there twice")
    line_of(lambda: read_yaml(tmp_path / "my.json"), "my.json", "the key 'a' is there twice")


@pytest.mark.parametrize("kind", JSON)
def test_json_of_any_kind_is_one_line_with_the_files_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "my.json").write_bytes(JSON[kind])
    line_of(lambda: read_json(tmp_path / "my.json"), "my.json", "run the step that makes it again")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", SHAPES)
def test_json_of_another_shape_between_steps_is_one_line(reader: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "my.json").write_bytes(content)
    line_of(lambda: READERS[reader](tmp_path / "my.json"), "my.json")


@pytest.mark.parametrize("content", ['{"config": [1]}', '{"inputs": {"a": 1}}', '{"models": "x"}', "[]"])
def test_provenance_of_another_shape(content: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(content)
    line_of(lambda: read_json_as(Provenance, tmp_path / "provenance.json"), "provenance.json")


def test_a_record_of_a_later_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"seconds": 1.5, "of_later": true}')
    assert read_json_as(StepRecord, tmp_path / "run.json").seconds == 1.5


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ""])
@pytest.mark.parametrize("content", ["0" * 64, "../../x"])
def test_a_pointer_to_the_store_leads_nowhere_else(name: str, content: str, tmp_path: Path) -> None:
    files = [{"name": name if content == "0" * 64 else "a", "bytes": 1, "sha256": "0"}]
    (tmp_path / "stored.json").write_text(json.dumps({"uri": "s3://b/x", "hash": content, "files": files}))
    line_of(lambda: local_copy(tmp_path), "stored.json")


LOSSES, INFINITE = "AACAPwAAAEAAAEBAAACAQA==", "AACAPwAAAEAAAEBAAACAfw=="  # of four images, as float32
LINE = {"subnet": SubnetSpec(1, 16, (1,), (1.0,)).to_dict(), "images": "8A==", "right": "8A==", "losses": LOSSES}
LINES = {
    "garbage": "garbage",
    "a list": "[1]",
    "without subnet": json.dumps({key: value for key, value in LINE.items() if key != "subnet"}),
    "a subnet that is none": json.dumps(LINE | {"subnet": {"depth": 2}}),
    "losses of fewer images": json.dumps(LINE | {"losses": ""}),
    "an infinite loss": json.dumps(LINE | {"losses": INFINITE}),
    "not base64": json.dumps(LINE | {"images": "é"}),
    "fewer images": json.dumps(LINE | {"images": ""}),
    "more answers": json.dumps(LINE | {"right": "/////////w=="}),
    "a number beyond floats": json.dumps(LINE | {"subnet": LINE["subnet"] | {"depth": 10**400}}),  # type: ignore[operator]
    "deep": "[" * 5000,
    "long": " " * (BOUNDS.line_bytes + 1),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_bad_line_of_scores_names_file_and_line_and_the_remedy(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n{LINES[kind]}\n", encoding="utf-8")
    line_of(lambda: ScoreCache(file, 4, lambda tasks: []), "scores.jsonl, line 2", "delete the file")


@pytest.mark.parametrize("rest", ["", "{", json.dumps(LINE)[:-1], "x" * 200_000])
def test_a_line_that_a_kill_cut_off_is_removed(rest: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n{rest}", encoding="utf-8")
    assert len(ScoreCache(file, 4, lambda tasks: [])) == 1
    assert file.read_text(encoding="utf-8") == f"{json.dumps(LINE)}\n"


def test_json_of_more_values_than_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoformer.reading.BOUNDS", BOUNDS.model_copy(update={"json_values": 1000}))
    for content in (b"[" + b"1," * 1000 + b"1]", b"[" + b"[]," * 1000 + b"[]]", b"[[" + b"1," * 1000 + b"1]]"):
        (tmp_path / "my.json").write_bytes(content)
        line_of(lambda: read_json(tmp_path / "my.json"), "my.json", "more than 1000 values")
    (tmp_path / "my.json").write_bytes(json.dumps([[1] * 10] * 80).encode())
    assert len(read_json(tmp_path / "my.json")) == 80


@pytest.mark.parametrize(
    "value", [{"classes": [1] * 20_000}, {f"k{n}": 1 for n in range(20_000)}], ids=["values", "keys"]
)
def test_json_with_thousands_of_faults_is_one_line(value: object, tmp_path: Path) -> None:
    """pydantic would make an object of each, up to gigabytes, or end the process."""
    (tmp_path / "my.json").write_text(json.dumps(value))
    line_of(lambda: read_card(tmp_path / "my.json"), "my.json", "keys and values that do not belong there")
