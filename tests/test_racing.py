"""The race of candidates: estimates against a plain twin and the truth, and which candidates are stopped."""

import math
from random import Random

import numpy as np
import pytest

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.limits import Limits
from autoformer.racing import LossStrata, Race, Racing, Strata
from autoformer.search import Evolution, EvolutionSettings
from autoformer.space import SubnetSpec

ENDS = (0.05, 0.15, 0.4, 0.6, 0.85, 0.95)  # shares of the candidates that have an image right


def population(candidates: int, images: int, seed: int, spread: float = 0.1) -> np.ndarray:
    """Results (n, N) of candidates that differ in accuracy and agree on most images."""
    rng = np.random.default_rng(seed)
    margin = 2.0 + 2.2 * rng.normal(size=images) + spread * rng.normal(size=(candidates, 1))
    answers: np.ndarray = margin + 0.5 * rng.normal(size=(candidates, images)) > 0
    return answers


def stratum(share: float) -> int:
    """The same strata in words: none right, up to 5 %, ..., 95 % and more, all."""
    if share == 0 or share == 1:
        return 0 if share == 0 else 8
    return 1 + sum(share >= end for end in ENDS)


def run(race: Race, answers: np.ndarray) -> int:
    """Run a race to its end; return the number of scored images."""
    scored = 0
    for entrants, images in race.rounds():
        race.record({entrant: answers[entrant][images] for entrant in entrants})
        scored += len(entrants) * len(images)
    return scored


def test_an_estimate_is_that_of_the_textbook() -> None:
    """Stratified mean and standard error (Cochran 5.3 to 5.5), stratum by stratum in plain loops."""
    before = population(10, 300, seed=0)
    strata = Strata(before)
    images = strata.order()[:90]
    values = population(1, 300, seed=0)[0][images]
    total, variance = 0.0, 0.0
    for number in range(9):
        members = [i for i in range(300) if stratum(before[:, i].mean()) == number]
        left_out = [
            bool(before[j, i])
            for j in range(10)
            for i in range(300)
            if stratum(np.delete(before[:, i], j).mean()) == number
        ]
        expected = (sum(left_out) + 0.5) / (len(left_out) + 1)
        found = [float(value) for value, image in zip(values, images, strict=True) if image in members]
        mean = sum(found) / len(found) if found else expected
        squares = sum((value - mean) ** 2 for value in found) + 20 * expected * (1 - expected)
        if members:
            share = len(members) / 300
            total += share * mean
            known = len(found) / len(members)
            variance += share**2 * (1 - known) * squares / (len(found) + 20) / max(1, len(found))
    estimate = strata.estimate(values, images)
    assert estimate.score == pytest.approx(total, rel=1e-12)
    assert estimate.error == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_each_prefix_oversamples_images_on_which_candidates_differ() -> None:
    strata = Strata(population(12, 2000, seed=1))
    order = strata.order()
    assert sorted(order) == list(range(2000))
    wanted = strata.sizes * np.sqrt(strata.variance)
    taken = np.bincount(strata.of_image[order[:200]], minlength=9)
    assert np.abs(taken - 200 * wanted / wanted.sum()).max() <= 1.5  # no stratum is used up by then
    of_last = order[strata.of_image[order] == 8]
    assert list(of_last) == sorted(of_last)  # in the order of the split, which is stratified by class


def test_an_estimate_of_everything_is_the_score() -> None:
    strata = Strata(population(5, 400, seed=2))
    answers, everything = population(1, 400, seed=3)[0], strata.order()
    estimate = strata.estimate(answers[everything], everything)
    assert estimate.score == pytest.approx(answers.mean())
    assert estimate.error == pytest.approx(1 / 400)


def test_standard_errors_are_right_and_far_below_those_of_a_plain_sample() -> None:
    off, errors = [], []
    for seed in range(20):
        answers = population(40, 2000, seed)
        strata = Strata(answers[:10])
        images = strata.order()[:400]
        for candidate in answers[10:]:
            estimate = strata.estimate(candidate[images], images)
            off.append((estimate.score - candidate.mean()) / estimate.error)
            errors.append(estimate.error)
    assert np.std(off) == pytest.approx(1.0, abs=0.15)
    assert np.mean(np.array(off) < -2.326) < 0.02  # 1 %, and what 600 draws leave to chance
    share = population(40, 2000, 0).mean()
    assert np.mean(errors) < 0.5 * math.sqrt(share * (1 - share) / 400 * (1 - 400 / 2000))


def test_the_best_come_through_with_two_fifths_of_the_images() -> None:
    for seed in range(5):
        answers = population(50, 4000, seed, spread=0.15)
        race = Race(Racing(first_images=200), 50, 4000, 5, [], [])
        scored = run(race, answers)
        best = np.argsort(-answers.mean(axis=1), kind="stable")[:5]
        assert all(race.answered[entrant] == 4000 for entrant in best)
        assert scored < 50 * 4000 * 2 / 5
        for entrant, estimate in race.estimates.items():
            whole = race.answered[entrant] == 4000
            assert (estimate.error == 0) == whole
            assert estimate.score == pytest.approx(answers[entrant].mean(), abs=1e-12 + 4 * estimate.error)


def test_later_generations_race_against_the_best_of_earlier_ones() -> None:
    good, bad = population(10, 3000, seed=1), population(20, 3000, seed=1, spread=0.1) & (np.arange(3000) % 9 > 0)
    scores = [float(answers.mean()) for answers in good]
    race = Race(Racing(first_images=100), 20, 3000, 5, list(good), scores)
    assert run(race, bad) < 20 * 3000 / 4
    assert max(race.answered.values()) < 3000  # not one of them is worth the whole split


def test_a_tie_with_the_last_of_the_best_is_seldom_stopped() -> None:
    """Twins of the `keep`-th best, in other images: in each round 1 in 100 at most."""
    rng = np.random.default_rng(0)
    stopped = looks = 0
    for seed in range(60):
        before = population(12, 1500, seed, spread=0.0)
        mean = round(before.mean() * 1500)
        twins = population(5, 1500, seed, spread=0.0)
        for twin in twins:  # turn answers until all are right equally often
            while (excess := int(twin.sum()) - mean) != 0:
                twin[rng.choice(np.flatnonzero(twin == (excess > 0)))] ^= True
        scores = [mean / 1500] * 3
        race = Race(Racing(confidence=0.99, first_images=200), 5, 1500, 3, list(before), scores)
        run(race, twins)
        stopped += sum(answered < 1500 for answered in race.answered.values())
        looks += 5 * len(Racing(first_images=200).rounds(1500))
    assert stopped <= 0.02 * looks


# --- by loss ---


def losses_of(candidates: int, images: int, seed: int, spread: float = 0.02, first: int = 0) -> np.ndarray:
    """Losses (n, N): most images easy, candidates that agree on most of each, and `first` that come before them."""
    rng = np.random.default_rng(seed)
    margin = 2.0 + 2.2 * rng.normal(size=images)
    margin = margin + spread * rng.normal(size=(first + candidates, 1)) + 0.3 * rng.normal(
        size=(first + candidates, images)
    )  # fmt: skip
    losses: np.ndarray = np.log1p(np.exp(-margin))[first:]
    return losses


def test_an_estimate_of_the_loss_is_right_to_its_standard_error_and_exact_on_everything() -> None:
    off, errors, plain = [], [], []
    for seed in range(20):
        losses = losses_of(40, 2000, seed)
        strata = LossStrata(-losses[:10])
        images, everything = strata.order()[:400], strata.order()
        assert sorted(everything) == list(range(2000))
        for candidate in losses[10:]:
            estimate = strata.estimate(-candidate[images], images)
            off.append((estimate.score + candidate.mean()) / estimate.error)
            errors.append(estimate.error)
            plain.append(candidate.std() / 20 * math.sqrt(1 - 400 / 2000))
        assert strata.estimate(-candidate[everything], everything).score == pytest.approx(-candidate.mean())
    assert np.std(off) == pytest.approx(1.0, abs=0.15) and abs(np.mean(off)) < 0.15
    assert np.mean(errors) < 0.25 * np.mean(plain)


@pytest.mark.parametrize("keep", [1, 5])
def test_a_race_by_loss_keeps_the_best_with_less_than_two_thirds_of_the_images(keep: int) -> None:
    lost = scored = 0
    for seed in range(20):
        losses = losses_of(30, 3000, seed)
        race = Race(Racing(), 30, 3000, keep, [], [], "loss")
        scored += run(race, -losses)
        best = np.argsort(losses.mean(axis=1), kind="stable")[:keep]
        lost += sum(race.answered[entrant] < 3000 for entrant in best)
        for entrant, estimate in race.estimates.items():
            assert (estimate.error == 0) == (race.answered[entrant] == 3000)
            assert estimate.score == pytest.approx(-losses[entrant].mean(), abs=1e-12 + 5 * estimate.error)
    assert lost <= 0.05 * 20 * keep + 1 and scored < 20 * 30 * 3000 * 2 / 3


def test_the_accuracy_of_a_candidate_that_a_race_by_loss_stopped_is_estimated_without_bias() -> None:
    """Its images are those on which others differ: the plain share of right answers is far too low."""
    off, plain = [], []
    for seed in range(20):
        losses = losses_of(20, 3000, seed)
        right, strata = losses < math.log(2), LossStrata(-losses[:8])
        images, predicted = strata.order()[:300], right[:8].mean(axis=0)
        for candidate in right[8:]:
            off.append(strata.estimate_mean(candidate[images], predicted, images) - candidate.mean())
            plain.append(candidate[images].mean() - candidate.mean())
    assert abs(np.mean(off)) < 0.002 < 0.1 < abs(np.mean(plain))


def test_without_racing_all_are_scored_whole_at_once() -> None:
    race = Race(None, 3, 50, 1, [], [])
    assert [(entrants, len(images)) for entrants, images in _answered(race, 3, 50)] == [([0, 1, 2], 50)]
    assert all(estimate.error == 0 for estimate in race.estimates.values())


def _answered(race: Race, candidates: int, images: int) -> list[tuple[list[int], np.ndarray]]:
    answers, seen = population(candidates, images, 0), []
    for entrants, of_round in race.rounds():
        seen.append((entrants, of_round))
        race.record({entrant: answers[entrant][of_round] for entrant in entrants})
    return seen


@pytest.mark.parametrize("keep", [1, 2])
def test_a_race_for_few_seldom_loses_the_best(keep: int) -> None:
    """The strata need some complete candidates, however few are kept."""
    lost = scored = 0
    for seed in range(60):
        answers = population(20, 3000, seed, spread=0.02)
        race = Race(Racing(), 20, 3000, keep, [], [])
        scored += run(race, answers)
        lost += race.answered[int(answers.mean(axis=1).argmax())] < 3000
    assert lost <= 4 and scored < 0.7 * 60 * 20 * 3000


def test_no_image_is_scored_twice_and_as_many_are_scored_whole_first_as_are_kept() -> None:
    race = Race(Racing(first_images=30, growth=2), 9, 200, 7, [], [])
    rounds = _answered(race, 9, 200)
    assert rounds[0][0] == [0, 1, 2, 3, 4, 5, 6] and len(rounds[0][1]) == 200
    assert [len(images) for _, images in rounds[1:]] == [30, 30, 60, 80][: len(rounds) - 1]
    for entrant in range(9):
        asked = np.concatenate([images for entrants, images in rounds if entrant in entrants])
        assert len(set(asked)) == len(asked) == race.answered[entrant]


def test_a_race_without_rivals_scores_all_images() -> None:
    race = Race(Racing(first_images=10), 3, 100, 5, [], [])
    run(race, population(3, 100, 0))
    assert set(race.answered.values()) == {100}


def test_rounds_end_with_the_whole_split() -> None:
    assert Racing(first_images=500, growth=1.5).rounds(3000) == [500, 750, 1125, 1687, 2531, 3000]
    assert Racing(first_images=500).rounds(500) == [500]
    assert Racing(first_images=500).rounds(80) == [80]


def test_stopped_candidates_are_ranked_last_and_never_chosen() -> None:
    spec = SubnetSpec(1, 8, (1,), (1.0,))

    def scored(id: int, top1_percent: float, loss: float | None) -> ScoredCandidate:
        return ScoredCandidate(Candidate(id, spec, "initial", 0, (), 100, 1), top1_percent, loss, 500)

    table = [scored(0, 90.0, None), scored(1, 80.0, 0.7), scored(2, 80.0, 0.6), scored(3, 81.0, 0.9)]
    assert [entry.candidate.id for entry in sorted(table, key=lambda entry: entry.rank())] == [3, 2, 1, 0]
    evolution = Evolution(None, Limits(), EvolutionSettings(), Random(0))  # type: ignore[arg-type]
    evolution.tell(table)
    assert [entry.candidate.id for entry in evolution.best(4)] == [3, 2, 1]
    by_loss = Evolution(None, Limits(), EvolutionSettings(objective="loss"), Random(0))  # type: ignore[arg-type]
    by_loss.tell(table)
    assert [entry.candidate.id for entry in by_loss.best(4)] == [2, 1, 3]
