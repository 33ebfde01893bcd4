"""Metrics of a classifier, against tables computed by hand."""

import math

import numpy as np
import pytest
import torch

from autoformer.errors import AutoFormerError
from autoformer.evaluation import (
    confusion_matrix,
    expected_calibration_error,
    paired_difference,
    predict_logits,
    score,
    wilson_interval,
)
from autoformer.images.batches import normalise


def test_score_of_four_images() -> None:
    # Probabilities that are exact: image 0 right at 1/2, 1 wrong at 1/2 (second place), 2 and 3 right at 1/4.
    first = [math.log(4), 0.0, 0.0, -1e4, -1e4, 0.0, 0.0]  # 4, 1, 1, 0, 0, 1, 1 of 8
    second = [0.0, math.log(4), *first[2:]]
    third = [math.log(2), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # 2, 1, 1, 1, 1, 1, 1 of 8
    logits = torch.tensor([first, second, third, third[::-1]])
    result = score(logits, torch.tensor([0, 0, 0, 6]))

    assert (result.images, result.correct) == (4, 3)
    assert result.top1_percent == 75.0
    assert result.top5_percent == 100.0
    assert result.loss == pytest.approx((math.log(2) + math.log(8) + 2 * math.log(4)) / 4, abs=1e-6)
    # Bin of 1/2: accuracy 1/2, no gap. Bin of 1/4: accuracy 1, gap 3/4, half of the images.
    assert result.ece == pytest.approx(0.375, abs=1e-6)


def test_top5_counts_the_fifth_place_and_not_the_sixth() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).expand(2, -1)
    assert score(logits, torch.tensor([4, 5])).top5_percent == 50.0


def test_top5_of_fewer_than_five_classes_is_everything() -> None:
    assert score(torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([1])).top5_percent == 100.0


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(AutoFormerError, match="diverged"):
        score(torch.tensor([[1.0, math.nan]]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        ([0.95, 0.95, 0.95, 0.95], [1, 1, 1, 0], 0.2),
        ([0.95, 0.55], [1, 0], 0.5 * 0.05 + 0.5 * 0.55),
        ([0.91, 0.99], [0, 1], 0.45),  # one bin of ten: accuracy 0.5, confidence 0.95
        ([1.0], [1], 0.0),
        ([0.0], [1], 1.0),
    ],
)
def test_ece_with_ten_bins(confidence: list[float], correct: list[int], expected: float) -> None:
    assert expected_calibration_error(confidence, correct, bins=10) == pytest.approx(expected)


def test_ece_equals_a_plain_loop_over_15_bins() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=500)
    correct = rng.uniform(size=500) < confidence**2
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe 1998, table I, method 3 (score without continuity correction), to the printed digits
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson_interval(3, 2)


def test_paired_difference() -> None:
    first = [1] * 6 + [0] * 4
    second = [1] * 3 + [0] * 3 + [1] + [0] * 3
    result = paired_difference(first, second)
    assert (result.gained, result.lost, result.percent) == (3, 1, 20.0)
    half = 1.959964 * math.sqrt(4 - 4 / 10) / 10 * 100
    assert result.interval == pytest.approx((20 - half, 20 + half), abs=1e-4)


def test_confusion_has_actual_classes_in_rows() -> None:
    matrix = confusion_matrix([0, 0, 0, 2, 2], [0, 1, 1, 2, 0], 3)
    assert matrix.tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 1]]


def test_predict_logits_equals_one_call_and_makes_no_gradients() -> None:
    pixels = torch.randint(0, 256, (11, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 3)).double()
    mean, std = (0.3, 0.5), (0.2, 0.4)
    forward = lambda images: model(images.double())  # noqa: E731
    logits = predict_logits(forward, pixels, mean, std, batch_size=4)
    whole = model(normalise(pixels, mean, std).double()).float()
    assert logits.shape == (11, 3)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, whole)
    torch.testing.assert_close(predict_logits(forward, pixels.numpy(), mean, std, batch_size=100), whole)


def test_predicting_no_images_is_an_error() -> None:
    with pytest.raises(AutoFormerError, match="empty"):
        predict_logits(torch.nn.Identity(), np.zeros((0, 1, 4, 4), np.uint8), (0.5,), (0.5,), batch_size=4)
