"""Distillation from a timm model (DeiT, arXiv 2012.12877, section 4), without a distillation token.

Dimensions: B images, C channels, S pixels on a side, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoformer.errors import AutoFormerError, nearest, quantity
from autoformer.files import hash_file
from autoformer.images.batches import by_channel
from autoformer.recipe import Distillation
from autoformer.weights import read_weights


class Teacher:
    """A frozen timm model. It converts the student's images, normalised by `mean` and `std`, to its own normalisation
    and size.

    Raises:
        AutoFormerError: no such model or file, a file with another sha256 or with code in it, or weights of another
            model or number of classes.
    """

    def __init__(
        self,
        settings: Distillation,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.model = load_teacher(settings, num_classes).to(device)
        config: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        self._size = config["input_size"][-1] if config.get("fixed_input_size") else None
        self._channels = int(config["input_size"][0])
        own = (settings.mean or config["mean"], settings.std or config["std"])
        if not all(len(values) in (1, self._channels) for values in own):
            raise AutoFormerError(
                f"distillation.mean and std: one value a channel, {self._channels} for '{settings.teacher}'"
            )
        self._mean, self._std = (by_channel(values, device) for values in (mean, std))
        self._teacher_mean, self._teacher_std = (by_channel(values, device) for values in own)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The student's images (B, C, S, S) -> the teacher's logits (B, K)."""
        pixels = images * self._std + self._mean
        if pixels.shape[1] != self._channels:
            pixels = pixels.expand(-1, self._channels, -1, -1)
        pixels = (pixels - self._teacher_mean) / self._teacher_std
        if self._size is not None and pixels.shape[-1] != self._size:
            pixels = F.interpolate(pixels, (self._size, self._size), mode="bicubic", antialias=True)
        logits: Tensor = self.model(pixels)
        return logits

    def loss(self, student: Tensor, base: Tensor, images: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """(1 - weight) * base + weight * distance to the teacher, a scalar.

        The distance in hard distillation is the cross entropy with the teacher's class (DeiT, equation 3), smoothed as
        in the official code; in soft distillation the Kullback-Leibler divergence at temperature T, times T squared
        (equation 2).

        Args:
            student: logits (B, K).
            base: the loss against the labels.
            images: the student's input.
            label_smoothing: smoothing of the teacher's class, in hard distillation.
        """
        teacher = self(images)
        if self.settings.kind == "hard":
            distance = F.cross_entropy(student, teacher.argmax(dim=1), label_smoothing=label_smoothing)
        else:
            t = self.settings.temperature
            log_student, log_teacher = (F.log_softmax(logits.float() / t, dim=1) for logits in (student, teacher))
            distance = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * t * t
        return (1 - self.settings.weight) * base + self.settings.weight * distance


def load_teacher(settings: Distillation, num_classes: int) -> nn.Module:
    """The teacher in evaluation mode, without gradients. Raises `AutoFormerError` like `Teacher`."""
    name, file = settings.teacher, Path(settings.checkpoint)
    if not timm.is_model(name) or "." in name:
        raise AutoFormerError(
            f"distillation.teacher = '{name}': no such model in timm; {nearest(name, timm.list_models())}"
        )
    weights = _read_weights(file, settings.sha256)
    model: nn.Module = timm.create_model(name, num_classes=num_classes)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise AutoFormerError(
            f"{file}: not the weights of '{name}' for {quantity(num_classes, 'class')} ({reason}); give the checkpoint "
            "of that model, trained on the same classes"
        ) from None
    return model.eval().requires_grad_(False)


def _read_weights(file: Path, sha256: str | None) -> dict[str, Tensor]:
    if not file.is_file():
        raise AutoFormerError(f"distillation.checkpoint = {file}: no such file")
    if sha256 is not None and hash_file(file) != sha256:
        raise AutoFormerError(f"{file}: changed since the run was resolved; start it again")
    return read_weights(file)
