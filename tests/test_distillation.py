"""Distillation: the loss by hand, the teacher's input, and checkpoints that are refused."""

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from run_steps import config_of
from safetensors.torch import save_file

from autoformer.distillation import Teacher, load_teacher
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.named import load_space
from autoformer.recipe import Distillation, Recipe
from autoformer.sampling import uniform
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from runtime.common.config import load_config

CPU = torch.device("cpu")
NAME = "test_resnet"  # timm's smallest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(timm.create_model(NAME, num_classes=10).state_dict(), path)
    return path


def settings(checkpoint: Path, **changes: Any) -> Distillation:
    return Distillation(**{"teacher": NAME, "checkpoint": str(checkpoint), **changes})


def teacher(checkpoint: Path, channels: int = 3, **changes: Any) -> Teacher:
    return Teacher(settings(checkpoint, **changes), (0.2,) * channels, (0.3,) * channels, 10, CPU)


def test_the_teacher_sees_the_students_pixels_in_its_own_normalisation(checkpoint: Path) -> None:
    pixels = torch.rand(4, 3, 64, 64)
    model = timm.create_model(NAME, num_classes=10).eval()
    model.load_state_dict(load_teacher(settings(checkpoint), 10).state_dict())
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    wanted = model((pixels - mean) / std)
    student = (pixels - 0.2) / 0.3
    torch.testing.assert_close(teacher(checkpoint)(student), wanted, rtol=1e-4, atol=1e-5)
    own = teacher(checkpoint, mean=(0.0,) * 3, std=(1.0,) * 3)(student)
    torch.testing.assert_close(own, model(pixels), rtol=1e-4, atol=1e-5)


def test_grey_images_become_colour_for_a_teacher_of_colour(checkpoint: Path) -> None:
    grey = torch.rand(2, 1, 28, 28)
    colour = teacher(checkpoint)(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(teacher(checkpoint, channels=1)(grey), colour)


def test_hard_and_soft_losses_by_hand(checkpoint: Path) -> None:
    torch.manual_seed(1)
    images, student, base = torch.randn(6, 3, 64, 64), torch.randn(6, 10), torch.tensor(2.0)
    hard = teacher(checkpoint, weight=0.3)
    answers = hard(images)
    wanted = 0.7 * 2.0 + 0.3 * F.cross_entropy(student, answers.argmax(1))
    torch.testing.assert_close(hard.loss(student, base, images), wanted)
    smoothed = 0.9 * F.cross_entropy(student, answers.argmax(1)) - 0.1 * student.log_softmax(1).mean()
    torch.testing.assert_close(hard.loss(student, base, images, label_smoothing=0.1), 0.7 * 2.0 + 0.3 * smoothed)
    soft = teacher(checkpoint, kind="soft", weight=0.25, temperature=3.0)
    p, q = (answers / 3).softmax(1), (student / 3).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean() * 9
    torch.testing.assert_close(soft.loss(student, base, images), 0.75 * 2.0 + 0.25 * divergence)


def test_a_student_comes_to_agree_with_its_teacher(checkpoint: Path) -> None:
    """With weight 1 random labels have no effect, and the student follows the teacher."""
    space = load_space("fashion-mnist")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    recipe = Recipe(
        epochs=15, batch_size=16, learning_rate=3e-3, init_gain=0.7, distillation=settings(checkpoint, weight=1.0)
    )
    torch.manual_seed(0)
    model = Supernet(space)
    master = Teacher(settings(checkpoint, weight=1.0, kind="soft"), (0.5,), (0.3,), 10, CPU)
    split = DecodedSplit(pixels.numpy(), labels.numpy(), [])
    trainer = Trainer(
        model, uniform(space, 0), training_loader(split, recipe, 0, 28, (0.5,)), 10, (0.5,), (0.3,), recipe, 0,
        master,
    )  # fmt: skip
    before = {name: value.clone() for name, value in master.model.state_dict().items()}
    first = trainer.advance(4)
    trainer.advance(trainer.total_steps - 8)
    assert trainer.advance(4) < 0.5 * first
    assert all(torch.equal(value, before[name]) for name, value in master.model.state_dict().items())  # frozen


class Payload:
    """A pickle that would run a command when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_checkpoints_of_torch_are_read_and_code_in_them_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_teacher(settings(checkpoint), 10).state_dict()
    for content in (weights, {"state_dict": weights}, {"model": weights, "epoch": 3}):
        torch.save(content, tmp_path / "good.pth")
        assert torch.equal(load_teacher(settings(tmp_path / "good.pth"), 10).fc.weight, weights["fc.weight"])
    torch.save({"state_dict": Payload(tmp_path / "pwned")}, tmp_path / "bad.pth")
    with pytest.raises(AutoFormerError, match="could be code and is not run"):
        load_teacher(settings(tmp_path / "bad.pth"), 10)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: settings(path, teacher="resnet_18"), "no such model in timm; did you mean 'resnet18'"),
        (lambda path: settings(path.with_name("gone.pth")), "gone.pth: no such file"),
        (lambda path: settings(path, teacher="test_vit"), "not the weights of 'test_vit' for 10 classes"),
        (lambda path: settings(path, sha256="0" * 64), "changed since the run was resolved"),
    ],
)
def test_wrong_teachers(spoil: Any, says: str, checkpoint: Path) -> None:
    with pytest.raises(AutoFormerError, match=says) as caught:
        load_teacher(spoil(checkpoint), 10)
    assert "\n" not in str(caught.value)


def test_other_classes_and_damaged_files(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(AutoFormerError, match="for 7 classes"):
        load_teacher(settings(checkpoint), 7)
    for name, content in (
        ("cut.safetensors", checkpoint.read_bytes()[:1000]),
        ("cut.pth", b"PK\x03\x04"),
        ("x.pth", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AutoFormerError, match=f"{name}: "):
            load_teacher(settings(tmp_path / name), 10)


def test_the_weights_of_a_teacher_are_part_of_the_configuration(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(checkpoint.read_bytes())
    source = config_of("train_supernet", distillation={"teacher": NAME, "checkpoint": str(file)})
    first = load_config(source, steps=["train_supernet"])
    assert first.train_supernet and first.train_supernet.distillation
    assert first.train_supernet.distillation.sha256 == hash_file(file)
    file.write_bytes(b"other")
    assert load_config(source, steps=["train_supernet"]).hash() != first.hash()
    file.unlink()
    with pytest.raises(AutoFormerError, match=r"train_supernet.distillation.checkpoint = .*: no such file"):
        load_config(source, steps=["train_supernet"])
