"""The gate, the registry, and a registered model that is really served."""

# ruff: noqa: F401, F811 - fixtures are imported, and then asked for by name

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow_server import free_port, stop, wait_for
from PIL import Image
from tracking_fixtures import CLASSES, MEAN, STD, empty_store, save_random_subnet, store, use_store

from autoformer.cards import Preprocessing, SupernetCard
from autoformer.complexity import count_macs, count_params
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import hash_file, write_json
from autoformer.named import load_space
from autoformer.reading import read_json
from autoformer.space import SearchSpace
from commands.predict import main as predict
from components.register_model.gate import Measured, decide
from components.register_model.latency import Latency
from components.register_model.step import main
from runtime import tracking

NAME = "fashion-mnist"
CANDIDATE = Measured("new", "split", 88.0)
AT_73 = Measured("new", "a", 88.0, None, "files", "73")


@pytest.mark.parametrize(
    ("candidate", "minimum", "champion", "outcome", "says"),
    [
        (CANDIDATE, 80.0, None, "registered", "no champion yet"),
        (CANDIDATE, 88.0, None, "registered", "reaches min_top1_percent 88"),
        (CANDIDATE, 88.01, None, "refused", "88.00 % is below min_top1_percent 88.01"),
        (CANDIDATE, 80.0, Measured("old", "split", 87.99), "registered", "the champion has 87.99 %"),
        (CANDIDATE, 80.0, Measured("old", "split", 88.0), "registered", "the champion has 88.00 %"),
        (CANDIDATE, 80.0, Measured("old", "split", 88.01), "refused", "below the champion's 88.01 %"),
        (CANDIDATE, 80.0, Measured("old", "other", 99.0), "registered", "another test split"),
        (CANDIDATE, 90.0, Measured("old", "other", 70.0), "refused", "below min_top1_percent"),
        (CANDIDATE, 80.0, Measured("old", None, None), "registered", "does not record how it was tested"),
        (CANDIDATE, 80.0, Measured("new", "split", 88.0), "unchanged", "the very same weights"),
        (CANDIDATE, 90.0, Measured("new", "split", 88.0), "refused", "below min_top1_percent"),
        (Measured("new", "a", 99.0, "cats"), 80.0, Measured("old", "b", 50.0, "cars"), "refused", "other classes"),
        (Measured("new", "a", 99.0, "cats"), 80.0, Measured("old", None, None, "cars"), "refused", "other classes"),
        (Measured("new", "a", 99.0, "cats"), 80.0, Measured("old", "b", 50.0, "cats"), "registered", "another test"),
        (Measured("new", "split", float("nan")), 80.0, None, "refused", "below min_top1_percent"),
        (AT_73, 80.0, Measured("old", "b", 89.0, None, "files", "256"), "refused",
         "88.00 % is below the champion's 89.00 % on the same images, packed at 256 instead of 73 pixels"),
        (AT_73, 80.0, Measured("old", "b", 87.0, None, "files", None), "registered",
         "the champion has 87.00 % on the same images, packed at unknown instead of 73 pixels"),
        (AT_73, 80.0, Measured("old", "b", 89.0, None, "files", "73"), "refused", "same images, packed otherwise"),
        (AT_73, 80.0, Measured("old", "b", 99.0, None, "others", "73"), "registered", "another test split"),
        (AT_73, 80.0, Measured("old", "b", 99.0), "registered", "whether of the same images is not recorded"),
    ],
)  # fmt: skip
def test_the_gate(candidate: Measured, minimum: float, champion: Measured | None, outcome: str, says: str) -> None:
    decision = decide(candidate, minimum, champion)
    assert decision.outcome == outcome
    assert says in decision.reason


def test_a_version_that_a_person_registered_may_have_no_tags() -> None:
    assert Measured.from_tags({}) == Measured(None, None, None)
    assert Measured.from_tags({"test_top1_percent": "n/a"}).top1_percent is None
    tags = {"test_top1_percent": "88.25", "test_split": "s", "weights": "w"}
    assert Measured.from_tags(tags) == Measured("w", "s", 88.25)
    assert Measured.from_tags(AT_73.tags) == AT_73


def write_supernet(folder: Path, space: SearchSpace) -> None:
    """What the step reads of a supernet: the card, not the weights."""
    preprocessing = Preprocessing(mean=MEAN, std=STD, classes=CLASSES)
    provenance = {"config": {"train_supernet": {"epochs": 11, "clip_grad": None, "log_steps": 50}}}
    card = SupernetCard(space=space, preprocessing=preprocessing, provenance=provenance)
    write_json(folder / "supernet.json", card.model_dump(mode="json"))


class Made:
    """What the earlier steps made, for one model: the smallest of the space, fashion-mnist by default."""

    def __init__(self, root: Path, seed: int, top1_percent: float, space: SearchSpace | None = None) -> None:
        self.root = root
        space = space or load_space("fashion-mnist")
        spec = space.smallest
        self.model = save_random_subnet(root / "retrain" / "model", seed, space)
        write_json(root / "retrain" / "metrics.json", {"retrained_top1_percent": 89.5})
        write_supernet(root / "supernet", space)
        chosen = {"name": "chosen", "space": space.name, "source": "a test", "subnet": spec.to_dict()}
        (root / "search").mkdir()
        (root / "search" / "chosen.yaml").write_text(yaml.safe_dump(chosen))
        write_json(root / "search" / "metrics.json", {"chosen_top1_percent": 80.0})
        card = {
            "name": "fashion-mnist", "classes": CLASSES, "image_size": 28, "channels": 1, "encoding": "raw",
            "mean": MEAN, "std": STD, "counts": {"test": 4}, "licence": "MIT", "source": "a test", "archives": {},
            "split_hashes": {"test": "5" * 64}, "test_originals": "0" * 64,
        }  # fmt: skip
        write_json(root / "card.json", card)
        write_json(
            root / "evaluation" / "provenance.json",
            {"test_split": "5" * 64, "models": {"retrained": hash_file(self.model / "model.safetensors")}},
        )
        metrics = {
            "test_top1_percent": top1_percent,
            "test_top1_low_percent": top1_percent - 1,
            "test_top1_high_percent": top1_percent + 1,
            "test_top5_percent": 99.0, "test_loss": 0.4321, "test_ece": 0.0214, "test_images": 4,
            "params": count_params(space, spec),
            "macs": count_macs(space, spec),
        }  # fmt: skip
        write_json(root / "evaluation" / "metrics.json", metrics)
        write_json(
            root / "evaluation" / "confusion.json", {"classes": CLASSES, "matrix": np.eye(10, dtype=int).tolist()}
        )
        write_json(root / "search" / "metrics.json", {"chosen_top1_percent": 90.0, "candidates_scored": 32})

    def register(self, *settings: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Run the step; its exit code, what it decided, its record."""
        arguments = ["--config", "smoke", "--card", str(self.root / "card.json")]
        arguments += ["--out", str(self.root / "registration.json"), "--record", str(self.root / "run.json")]
        arguments += ["--model-card", str(self.root / "model_card.md")]
        for made in ("supernet", "search", "retrain", "evaluation"):
            arguments += [f"--{made}", str(self.root / made)]
        for setting in (f"model_name={NAME}", "min_top1_percent=80", *settings):
            arguments += ["--set", f"register_model.{setting}"]
        code = main(arguments)
        if code:
            return code, {}, {}
        return code, read_json(self.root / "registration.json"), read_json(self.root / "run.json")


@pytest.fixture(scope="session")
def registered(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which one model is registered, beside the folders `made` that it comes from. Copy it."""
    root = tmp_path_factory.mktemp("registered")
    shutil.copyfile(empty_store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_store(f"sqlite:///{root / 'mlflow.db'}", root / "work", monkeypatch)
        code, decided, _ = Made(root / "made", seed=0, top1_percent=88.0).register()
    assert (code, decided["decision"], decided["version"]) == (0, "registered", "1")
    return root


@pytest.fixture
def champion(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that store, which the environment names; the artifacts stay where they are."""
    shutil.copyfile(registered / "mlflow.db", tmp_path / "mlflow.db")
    use_store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "work", monkeypatch)
    return registered


def versions() -> list[str]:
    client = tracking.initialise(tracking.tracking_uri())
    return sorted(str(found.version) for found in client.search_model_versions(f"name = '{NAME}'"))


def holder() -> tracking.ModelVersion:
    found = tracking.aliased_version(NAME, "champion")
    assert found is not None
    return found


@pytest.mark.slow
def test_a_registered_version_says_what_it_is(champion: Path) -> None:
    space = load_space("fashion-mnist")
    decided, record = read_json(champion / "made" / "registration.json"), read_json(champion / "made" / "run.json")
    assert decided["reason"] == "test accuracy 88.00 % reaches min_top1_percent 80; there is no champion yet"
    assert (decided["model_name"], decided["alias"]) == (NAME, "champion")
    assert "mlflow_run_id" in record and "mlflow_run_id" not in decided
    found = holder()
    assert found.version == "1"
    model = champion / "made" / "retrain" / "model"
    assert found.tags["weights"] == hash_file(model / "model.safetensors") == decided["weights"]
    assert found.tags["test_split"] == "5" * 64 and found.tags["test_top1_percent"] == "88.0"
    assert found.tags["params"] == str(count_params(space, space.smallest))
    assert found.tags["macs"] == str(count_macs(space, space.smallest))
    assert json.loads(found.tags["spec"]) == space.smallest.to_dict()
    assert found.tags["pipeline_run_id"] == record["mlflow_parent_run_id"] and found.tags["git_commit"]
    client = tracking.initialise(tracking.tracking_uri())
    described = client.get_model_version(NAME, "1")
    assert "88.00 % (95 % interval 87.00 to 89.00 %)" in described.description
    assert described.run_id == record["mlflow_run_id"]
    folder = tracking.model_folder(NAME, "champion")
    assert hash_file(folder / "model.safetensors") == found.tags["weights"]
    assert (folder.parent / "program.pt2").exists()


@pytest.mark.slow
def test_the_lines_of_the_card_load_the_model(champion: Path, tmp_path: Path) -> None:
    """As a user elsewhere has them: the card of the registered version, an image, and the registry's address."""
    from autoformer.checkpoint import load_subnet
    from autoformer.predict import predict as answer

    text = (tracking.model_folder(NAME, "champion").parent / "model_card.md").read_text()
    assert text == (champion / "made" / "model_card.md").read_text()
    (lines,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(lines.splitlines()) == 5
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "elsewhere" / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=True
    )
    name, probability = answer(*load_subnet(champion / "made" / "retrain" / "model"), Image.fromarray(PIXELS))[0]
    said = done.stdout.strip().rpartition(" ")
    assert said[0] == name and float(said[2]) == pytest.approx(probability, rel=1e-5)


def test_the_card_is_the_versions_description_and_tells_the_measured_latency(champion: Path) -> None:
    text, record = (champion / "made" / "model_card.md").read_text(), read_json(champion / "made" / "run.json")
    described = tracking.initialise(tracking.tracking_uri()).get_model_version(NAME, "1").description
    assert text.endswith(described) and described.startswith(f"# {NAME}\n")
    latency = record["cpu_latency"]
    assert 0 < latency["median_ms"] <= latency["p90_ms"] and latency["passes"] >= 20
    assert f"median {latency['median_ms']:.2f} ms, 90th percentile {latency['p90_ms']:.2f} ms" in text
    assert f"{quantity(latency['threads'], 'thread')}, {latency['cpu']}" in text
    assert "latency" not in (champion / "made" / "registration.json").read_text()
    for path in (champion, Path.cwd(), Path.home(), Path(sys.prefix)):
        assert str(path) not in text
    assert not re.search(r"(?:^|[\s`'\"(])(?:/[\w.-]+){2,}|file://", text), "a path of this machine"


def test_a_card_without_a_registration_says_so(champion: Path, tmp_path: Path) -> None:
    made = Made(tmp_path / "worse", seed=1, top1_percent=87.9)
    assert made.register()[0] == 0
    text = (made.root / "model_card.md").read_text()
    assert "refused: test accuracy 87.90 % is below the champion's 88.00 %" in text
    assert "| CPU latency | not measured: this run registered nothing |" in text
    assert "The latency was measured" not in text
    assert f"`{NAME}@champion` is another model, or none" in text and "load_model" not in text


def test_the_same_weights_make_no_second_version(champion: Path) -> None:
    again = copied(champion)
    code, decided, _ = again.register()
    assert (code, decided["decision"], decided["version"], versions()) == (0, "unchanged", "1", ["1"])


def test_a_version_that_lost_its_alias_to_a_kill_gets_it_back(champion: Path) -> None:
    tracking.initialise(tracking.tracking_uri()).delete_registered_model_alias(NAME, "champion")
    code, decided, _ = copied(champion).register()
    assert (code, decided["decision"], decided["version"], versions()) == (0, "registered", "1", ["1"])
    assert holder().version == "1"


@pytest.mark.parametrize("alias", ["v1", "V2", "a b"])
def test_an_alias_that_the_registry_refuses_leaves_no_version(alias: str, champion: Path) -> None:
    first = tracking.initialise(tracking.tracking_uri()).get_model_version(NAME, "1")
    with pytest.raises(AutoFormerError):
        tracking.register(NAME, alias, str(first.source), str(first.run_id), {}, "a test")
    assert versions() == ["1"] and holder().version == "1"


def test_a_worse_model_is_not_registered(champion: Path, tmp_path: Path) -> None:
    code, decided, _ = Made(tmp_path / "worse", seed=1, top1_percent=87.9).register()
    assert (code, decided["decision"], decided["version"]) == (0, "refused", "1")
    assert decided["reason"] == "test accuracy 87.90 % is below the champion's 88.00 %"
    assert versions() == ["1"] and holder().version == "1"


@pytest.mark.parametrize(
    ("originals", "outcome", "says"),
    [("0", "refused", "88.00 % on the same images, packed at 28 instead of 20 pixels"), ("1", "registered", "another")],
)
def test_a_worse_model_of_another_packing_is_refused_where_the_test_images_are_the_champions(
    originals: str, outcome: str, says: str, champion: Path, tmp_path: Path
) -> None:
    made = Made(tmp_path / "worse", seed=1, top1_percent=87.9)
    card = {"split_hashes": {"test": "6" * 64}, "test_originals": originals * 64, "image_size": 20}
    write_json(made.root / "card.json", read_json(made.root / "card.json") | card)
    tested = read_json(made.root / "evaluation" / "provenance.json") | {"test_split": "6" * 64}
    write_json(made.root / "evaluation" / "provenance.json", tested)
    _, decided, _ = made.register()
    assert decided["decision"] == outcome and says in decided["reason"]
    assert holder().version == ("1" if outcome == "refused" else "2")


def _registers_meanwhile(top1_percent: float) -> None:
    """As another run of the same data: a version of other weights takes the alias."""
    held = holder()
    client = tracking.initialise(tracking.tracking_uri())
    first = client.get_model_version(NAME, held.version)
    tags = held.tags | {"test_top1_percent": str(top1_percent), "weights": "another run's"}
    tracking.register(NAME, "champion", str(first.source), str(first.run_id), tags, "", held.version)


def test_of_two_registrations_at_once_the_worse_never_becomes_champion(
    champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better than the champion when the step begins, worse than the one that another run registers meanwhile."""

    def measure(model: Path, threads: int | None) -> Latency:
        _registers_meanwhile(95.0)
        return Latency(1.0, 1.0, 20, 1, "a CPU")

    monkeypatch.setattr("components.register_model.step.measure", measure)
    made = Made(tmp_path / "late", seed=1, top1_percent=90.0)
    code, decided, _ = made.register()
    assert (code, decided["decision"], decided["version"]) == (0, "refused", "2")
    assert "90.00 % is below the champion's 95.00 %" in decided["reason"]
    assert versions() == ["1", "2"] and holder().tags["test_top1_percent"] == "95.0"
    assert "refused: test accuracy 90.00 % is below" in (made.root / "model_card.md").read_text()


def test_a_champion_that_changes_while_the_version_is_made_is_not_replaced_blindly(champion: Path) -> None:
    """As from another machine, which no lock of this one stops."""
    first = tracking.initialise(tracking.tracking_uri()).get_model_version(NAME, "1")
    _registers_meanwhile(95.0)
    for seen in ("1", None):
        assert tracking.register(NAME, "champion", str(first.source), str(first.run_id), {}, "", seen) is None
        assert versions() == ["1", "2"] and holder().version == "2"


def test_one_process_of_a_machine_registers_at_a_time(store: str) -> None:
    from runtime.tracking.store import locked

    with tracking.registration_lock():
        with pytest.raises(AutoFormerError, match="another process has held this lock"):
            with locked(tracking.tracking_uri(), "registration", wait_seconds=0):
                pass
        assert tracking.aliased_version(NAME, "champion") is None  # the store itself stays usable


def test_a_champion_of_other_classes_is_not_replaced(champion: Path, tmp_path: Path) -> None:
    made = Made(tmp_path / "other", seed=1, top1_percent=99.0)
    card, tested = read_json(made.root / "card.json"), read_json(made.root / "evaluation" / "provenance.json")
    classes = [f"class {number}" for number in range(10)]
    write_json(made.root / "card.json", card | {"classes": classes, "split_hashes": {"test": "6" * 64}})
    write_json(made.root / "evaluation" / "provenance.json", tested | {"test_split": "6" * 64})
    code, decided, _ = made.register()
    assert (code, decided["decision"], decided["version"]) == (0, "refused", "1")
    assert decided["reason"].endswith("give this model another register_model.model_name")
    assert versions() == ["1"]


def test_below_the_threshold_nothing_is_registered(store: str, tmp_path: Path) -> None:
    code, decided, _ = Made(tmp_path / "poor", seed=1, top1_percent=79.9).register()
    assert (code, decided["decision"], decided["version"]) == (0, "refused", None)
    assert tracking.aliased_version(NAME, "champion") is None


@pytest.mark.slow
def test_an_equal_model_takes_the_alias(champion: Path, tmp_path: Path) -> None:
    code, decided, _ = Made(tmp_path / "equal", seed=1, top1_percent=88.0).register()
    assert (code, decided["decision"], decided["version"]) == (0, "registered", "2")
    assert versions() == ["1", "2"] and holder().version == "2"


def _other_weights(made: Made) -> None:
    save_random_subnet(made.model, seed=9)


def _other_split(made: Made) -> None:
    card = read_json(made.root / "card.json")
    write_json(made.root / "card.json", card | {"split_hashes": {"test": "6" * 64}})


def _other_subnet(made: Made) -> None:
    path = made.root / "search" / "chosen.yaml"
    chosen = yaml.safe_load(path.read_text())
    chosen["subnet"] = load_space("fashion-mnist").largest.to_dict()
    path.write_text(yaml.safe_dump(chosen))


def _other_supernet(made: Made) -> None:
    card = read_json(made.model / "model.json")
    write_json(made.model / "model.json", card | {"provenance": {"inputs": {"supernet": "0" * 64}}})


def _no_accuracy(made: Made) -> None:
    write_json(made.root / "evaluation" / "metrics.json", {"params": 1})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_weights, "about other weights"), (_other_split, "about another test split"),
        (_other_subnet, "holds another subnet"), (_other_supernet, "of another supernet"),
        (_no_accuracy, "'test_top1_percent' is missing"),
    ],
)  # fmt: skip
def test_folders_that_do_not_belong_together_are_refused(
    spoil: Callable[[Made], None],
    message: str,
    store: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = Made(tmp_path / "made", seed=1, top1_percent=90.0)
    spoil(made)
    assert made.register()[0] == 2
    assert message in capsys.readouterr().err
    assert not (made.root / "registration.json").exists()


def test_the_predict_command_uses_the_champion(
    champion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "bag.png")
    assert predict([str(tmp_path / "bag.png")]) == 0
    by_name = capsys.readouterr().out
    named = re.findall(r"`make predict IMAGE=image.png MODEL=(\S+)`", (champion / "made" / "model_card.md").read_text())
    assert named == [NAME] and predict(["--model", *named, str(tmp_path / "bag.png")]) == 0
    assert capsys.readouterr().out == by_name
    assert predict(["--model", str(champion / "made" / "retrain" / "model"), str(tmp_path / "bag.png")]) == 0
    assert capsys.readouterr().out == by_name


PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)


@pytest.mark.slow
def test_mlflow_serves_the_champion(champion: Path, tmp_path: Path) -> None:
    from autoformer.checkpoint import load_subnet
    from autoformer.predict import predict as answer

    model, card = load_subnet(champion / "made" / "retrain" / "model")
    wanted = answer(model, card, Image.fromarray(PIXELS))
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    image = base64.b64encode(stream.getvalue()).decode()
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by name
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-m", f"models:/{NAME}@champion"],
            stdout=log, stderr=log, cwd=tmp_path, env=os.environ | {"PATH": path}, start_new_session=True,
        )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(stop, process)
        wait_for(port, "ping")
        for row in ({"image": image}, {"pixels": PIXELS.tolist()}):
            status, found = post(port, {"dataframe_records": [row], "params": {"top": 10}})
            assert status == 200, found
            (served,) = found["predictions"]
            assert served["classes"] == [name for name, _ in wanted]
            assert served["probabilities"] == pytest.approx([value for _, value in wanted], rel=1e-5)
            assert (served["class"], served["probability"]) == (served["classes"][0], served["probabilities"][0])
        several = {"dataframe_split": {"columns": ["image"], "data": [[image]] * 3}}
        assert [len(row["classes"]) for row in post(port, several)[1]["predictions"]] == [5, 5, 5]
        refused = {b"text": "not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not an image"}
        encoded = {base64.b64encode(content).decode(): message for content, message in refused.items()}
        for wrong, message in {"not base64!": "not base64", **encoded}.items():
            status, found = post(port, {"dataframe_records": [{"image": wrong}]})
            assert status == 400 and message in found["message"]
        status, found = post(port, {"dataframe_records": [{"image": image}], "params": {"top": 0}})
        assert status == 400 and "at least 1 class" in found["message"]


def post(port: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def copied(champion: Path) -> Made:
    """The folders that the champion comes from, to run the step on once more."""
    made = Made.__new__(Made)
    made.root, made.model = champion / "made", champion / "made" / "retrain" / "model"
    return made
