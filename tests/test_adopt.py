"""A pipeline that starts from a supernet that exists: the official layout and ours, found, verified and searched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from official_layout import write_checkpoint
from run_steps import SPACE, arguments, config_of, contents, run
from s3_server import S3Server
from tiny import TinyData

import pipeline.local
import pipeline.repro
from autoformer.checkpoint import load_subnet, load_supernet
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.named import load_space
from autoformer.official import load_official, read_checkpoint
from autoformer.reading import read_json
from autoformer.space import SearchSpace
from commands import check_weights
from runtime.common.config import ROOT, load_config
from runtime.storage.uploads import upload

FORTY = SearchSpace.model_validate(SPACE)


def adopting(checkpoint: Any, **changes: Any) -> str:
    return load_config(config_of("train_supernet", adopt={"checkpoint": str(checkpoint)}, **changes), (), ()).step_json(
        "train_supernet"
    )


def adopt(data: TinyData, folder: Path, config: str) -> int:
    return run("train_supernet", arguments("train_supernet", data, folder, folder / "supernet", config))


def test_an_official_supernet_is_searched_without_training(tiny_data: TinyData, tmp_path: Path) -> None:
    """The subnet found has the logits that the official code's slices give."""
    checkpoint = write_checkpoint(tmp_path / "supernet-forty.pth", FORTY, deviation=0.3)
    assert adopt(tiny_data, tmp_path, adopting(checkpoint)) == 0
    loaded = load_supernet(tmp_path / "supernet", "ema")
    assert loaded.card.bias_rule == "official"
    assert loaded.card.provenance["config"]["train_supernet"]["adopt"]["sha256"] == hash_file(checkpoint)

    given = arguments("search_subnet", tiny_data, tmp_path, tmp_path / "search", config_of("search_subnet"))
    assert run("search_subnet", given) == 0
    retrain = arguments(
        "retrain_subnet", tiny_data, tmp_path, tmp_path / "retrain",
        config_of("retrain_subnet", mode="inherited", scratch_reference=False),
    )  # fmt: skip
    assert run("retrain_subnet", retrain) == 0
    chosen = load_subnet(tmp_path / "retrain" / "model")
    official = load_official(read_checkpoint(checkpoint), FORTY).eval()
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(chosen.model(images), official(images, chosen.card.subnet))


def test_a_supernet_of_this_project_is_adopted_with_its_scores(tiny_data: TinyData, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    config = config_of("train_supernet", epochs=1)
    assert run("train_supernet", arguments("train_supernet", tiny_data, tmp_path, trained, config)) == 0
    assert adopt(tiny_data, tmp_path, adopting(trained / "ema.safetensors")) == 0
    ours, theirs = (read_json(folder / "metrics.json") for folder in (tmp_path / "supernet", trained))
    assert ours == {key: value for key, value in theirs.items() if key != "train_loss"}


def test_a_checkpoint_that_does_not_fit_is_one_line(
    tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SearchSpace.model_validate(SPACE | {"supernet": SPACE["supernet"] | {"num_heads": 3}})  # type: ignore[operator]
    checkpoint = write_checkpoint(tmp_path / "other.pth", other)
    assert adopt(tiny_data, tmp_path, adopting(checkpoint)) == 2
    assert "'forty' needs" in (error := capsys.readouterr().err) and error.count("\n") == 1
    (tmp_path / "other.pth").write_bytes(b"no tensors")
    assert adopt(tiny_data, tmp_path, adopting(checkpoint)) == 2
    assert "not a readable checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "supernet").exists()


def test_a_checkpoint_that_changes_after_it_was_resolved_is_refused(
    tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "supernet.pth", FORTY)
    config = adopting(checkpoint)
    write_checkpoint(checkpoint, FORTY, deviation=0.1)
    assert adopt(tiny_data, tmp_path, config) == 2
    assert "changed since the run was resolved" in capsys.readouterr().err


def test_a_missing_checkpoint_and_one_in_s3_without_hash_are_named() -> None:
    with pytest.raises(AutoFormerError, match=r"train_supernet.adopt.checkpoint = /nowhere.pth: no such file"):
        adopting("/nowhere.pth")
    with pytest.raises(AutoFormerError, match=r"set train_supernet.adopt.sha256"):
        adopting("s3://bucket/supernet.pth")


def test_a_checkpoint_in_s3_is_downloaded_and_verified(
    tiny_data: TinyData, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "supernet.pth", FORTY)
    upload(checkpoint, s3.uri("supernet.pth"))
    named = {"checkpoint": s3.uri("supernet.pth"), "sha256": hash_file(checkpoint)}
    assert adopt(tiny_data, tmp_path, config_of("train_supernet", adopt=named)) == 0
    wrong = config_of("train_supernet", adopt=named | {"sha256": "0" * 64})
    assert run("train_supernet", arguments("train_supernet", tiny_data, tmp_path, tmp_path / "other", wrong)) != 0
    assert "checksum" in capsys.readouterr().err
    assert json.loads((tmp_path / "supernet" / "metrics.json").read_text()).keys() == {
        f"{name}_top1_percent" for name in ("smallest", "middle", "largest")
    }


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the repository is locked or written."""
    root = tmp_path / "root"
    for name in ("data/fashion-mnist", "runs", ".dvc/tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    for module in (pipeline.local, pipeline.repro):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(pipeline.repro, "PARAMS", root / "params.yaml")
    return root


@pytest.mark.parametrize("door", ["local", "adopt", "repro", "dry run"])
def test_a_supernet_of_another_space_is_refused_before_any_step(
    door: str, checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "forty.pth", FORTY)
    named = ["--preset", "smoke", "--set", f"train_supernet.adopt.checkpoint={checkpoint}"]
    before = contents(checkout)
    if door == "repro":
        assert pipeline.repro.main(named) == 2
    else:
        given = {"adopt": ["--preset", "smoke", "--adopt", str(checkpoint)], "dry run": [*named, "--dry-run"]}
        assert pipeline.local.main(given.get(door, named)) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"settings: {checkpoint}: ") and error.count("\n") == 1
    assert "'fashion-mnist'" in error and "is it a checkpoint of" in error
    assert contents(checkout) == before


@pytest.mark.parametrize("step", ["train_supernet", "retrain_subnet"])
def test_a_teacher_of_other_classes_is_refused_before_any_step(
    step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher.pth"
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), teacher)
    named = json.dumps({"teacher": "resnet10t", "checkpoint": str(teacher)})
    config = load_config("smoke", [f"{step}.distillation={named}"])
    assert check_weights.main(["--config", config.model_dump_json()]) == 2
    assert "not the weights of 'resnet10t' for 10 classes" in capsys.readouterr().err


def test_weights_that_fit_and_weights_that_are_elsewhere_pass(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "supernet.pth", load_space("fashion-mnist"))
    adopted = f"train_supernet.adopt.checkpoint={checkpoint}"
    assert check_weights.check_in_another_process(load_config("smoke", [adopted])) == 0
    away = load_config("smoke", [adopted])
    checkpoint.unlink()
    monkeypatch.setattr(check_weights.subprocess, "run", None)  # no process is needed
    assert check_weights.check_in_another_process(away) == 0
    assert check_weights.check_in_another_process(load_config("smoke")) == 0
    assert capfd.readouterr().err == ""
