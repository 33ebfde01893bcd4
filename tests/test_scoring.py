"""Scores of subnets: those of a plain loop, for any batch size and memory."""

from typing import Any

import numpy as np
import pytest
import torch
from small import perturb, small_space
from torch import Tensor

from autoformer.errors import AutoFormerError
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.racing import ScoringTask
from autoformer.scoring import SubnetScorer
from autoformer.supernet import Supernet

SPACE = small_space()
COUNT = 50
SPECS = (SPACE.smallest, SPACE.middle, SPACE.largest)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    model: Supernet = perturb(Supernet(SPACE)).float().eval()
    return model


@pytest.fixture(scope="module")
def images() -> DecodedSplit:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 3, 8, 8), dtype=np.uint8)
    return DecodedSplit(pixels, rng.integers(0, 5, COUNT), [""] * COUNT)


CARD = DatasetCard(
    name="noise", classes=("a", "b", "c", "d", "e"), image_size=8, channels=3, encoding="raw", mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4), counts={}, licence="", source="", archives={}, split_hashes={},
)  # fmt: skip


def tasks(rng: np.random.Generator) -> list[ScoringTask]:
    return [ScoringTask(spec, rng.permutation(COUNT)[: 7 + 11 * number]) for number, spec in enumerate(SPECS)]


@torch.no_grad()
def plainly(supernet: Supernet, images: DecodedSplit, task: ScoringTask) -> tuple[list[bool], float]:
    """Image by image."""
    mean, std = torch.tensor(CARD.mean).view(3, 1, 1), torch.tensor(CARD.std).view(3, 1, 1)
    right, loss = [], 0.0
    for index in task.images:
        picture = (torch.from_numpy(images.pixels[index]).float() / 255 - mean) / std
        probabilities = supernet(picture[None], task.spec)[0].softmax(0)
        right.append(int(probabilities.argmax()) == images.labels[index])
        loss -= float(probabilities[images.labels[index]].log())
    return right, loss


@pytest.mark.parametrize("batch_size", [1, 8, 500])
def test_results_are_those_of_a_plain_loop(supernet: Supernet, images: DecodedSplit, batch_size: int) -> None:
    wanted = tasks(np.random.default_rng(1))
    found = list(SubnetScorer(supernet, images, CARD, batch_size)(wanted))
    for task, answers in zip(wanted, found, strict=True):
        right, loss = plainly(supernet, images, task)
        assert list(answers.correct) == right
        assert float(answers.losses.sum()) == pytest.approx(loss, rel=1e-4)


def test_a_batch_that_does_not_fit_is_halved(
    supernet: Supernet, images: DecodedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tasks(np.random.default_rng(2))
    expected = list(SubnetScorer(supernet, images, CARD, 500)(wanted))
    forward, sizes = Supernet.forward, []

    def small_memory(self: Supernet, batch: Tensor, spec: Any) -> Tensor:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, batch, spec)

    monkeypatch.setattr(Supernet, "forward", small_memory)
    found = list(SubnetScorer(supernet, images, CARD, 500)(wanted))
    for one, other in zip(found, expected, strict=True):
        assert list(one.correct) == list(other.correct)
        assert float(one.losses.sum()) == pytest.approx(float(other.losses.sum()), rel=1e-5)
    assert max(sizes) == 29 and min(sizes) < 4


def test_bfloat16_is_nearly_the_same(supernet: Supernet, images: DecodedSplit) -> None:
    wanted = [ScoringTask(spec, np.arange(COUNT)) for spec in SPECS]
    exact, rounded = (list(SubnetScorer(supernet, images, CARD, 16, p)(wanted)) for p in ("float32", "bfloat16"))
    for one, other in zip(exact, rounded, strict=True):
        assert (one.correct != other.correct).mean() < 0.1
        assert float(one.losses.sum()) != float(other.losses.sum())
        assert float(one.losses.sum()) == pytest.approx(float(other.losses.sum()), rel=0.05)


def test_logits_that_are_not_finite_are_one_line(images: DecodedSplit) -> None:
    broken: Supernet = perturb(Supernet(SPACE)).float().eval()
    with torch.no_grad():
        broken.head.bias[0] = float("inf")
    with pytest.raises(AutoFormerError, match="is not finite in float32: its weights have diverged"):
        list(SubnetScorer(broken, images, CARD, 16)([ScoringTask(SPACE.largest, np.arange(COUNT))]))
