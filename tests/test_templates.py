"""Templates belong to a step's code: in its cache key, and in every package that the step is installed from."""

import shutil
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from runtime.common import code

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "budgets", "candidates", "chapter", "cost", "latency", "macros", "report", "searches", "subnet", "training",
    "weights",
)  # fmt: skip
FILES = [
    *(("evaluate_subnet", f"{part}.html.j2") for part in PARTS),
    ("evaluate_subnet", "report.css"),
    ("evaluate_subnet", "report.js"),
    ("register_model", "model_card.md.j2"),
]


@pytest.mark.parametrize(("step", "name"), FILES)
def test_an_edited_template_changes_the_key_of_its_step_alone(
    step: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("evaluate_subnet", "register_model"):
        shutil.copytree(ROOT / "components" / folder, tmp_path / "components" / folder)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    keys = []
    for _ in range(2):
        keys.append({each: code.step_code.__wrapped__(each) for each in ("evaluate_subnet", "register_model")})
        with (tmp_path / "components" / step / "templates" / name).open("a") as file:
            file.write("edited")
    assert {each for each in keys[0] if keys[0][each] != keys[1][each]} == {step}


def test_the_wheel_has_every_template(tmp_path: Path) -> None:
    built = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    names = set(zipfile.ZipFile(built).namelist())
    assert {f"components/{step}/templates/{name}" for step, name in FILES} <= names


def test_no_template_is_forgotten_here() -> None:
    found = {(file.parts[-3], file.name) for file in (ROOT / "components").glob("*/templates/*")}
    assert found == set(FILES)
