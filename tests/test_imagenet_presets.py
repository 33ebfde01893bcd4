"""The presets of ImageNet fit what they are about: published subnets, published hardware, each other."""

import re

import pytest

from autoformer.named import CONFIGS, load_subnet
from runtime.common.config import Config, load_config
from runtime.common.sections import RetrainSubnet, SearchSubnet, TrainSupernet
from runtime.steps.rank_launch import check_batch_split

PUBLISHED = {
    "imagenet-tiny": "autoformer-tiny",
    "imagenet-small": "autoformer-small",
    "imagenet-base": "autoformer-base",
    "mmrazor-base": "mmrazor-base",
}


@pytest.fixture(params=PUBLISHED)
def preset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def config(preset: str) -> Config:
    return load_config(preset)


def test_the_published_subnet_can_be_found(preset: str) -> None:
    published, found = load_subnet(PUBLISHED[preset]), config(preset)
    found.space.check_fits(published.subnet)
    limits = found.section(SearchSubnet).limits
    assert limits.allow(limits.count(found.space, published.subnet))
    assert not limits.allow(limits.count(found.space, found.space.largest))


@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16])
def test_a_step_can_be_shared_by_the_usual_numbers_of_gpus(preset: str, gpus: int) -> None:
    for step in ("train_supernet", "retrain_subnet"):
        check_batch_split(step, config(preset), gpus)


def test_each_opens_with_where_it_is_from_and_says_that_it_was_not_run(preset: str) -> None:
    opening = (CONFIGS / "presets" / f"{preset}.yaml").read_text().partition("\nname:")[0]
    assert all(f"# {word} " in opening for word in ("Source", "Command", "Hardware", "Expected", "Time"))
    assert "NOT RUN ON A GPU YET" in opening and "None measured here".lower() in opening.lower()


def test_one_recipe_for_the_three_official_sizes() -> None:
    tiny, *others = (config(preset) for preset in PUBLISHED if preset != "mmrazor-base")
    for other in others:
        assert other.train_supernet == tiny.train_supernet and other.retrain_subnet == tiny.retrain_subnet
        assert other.prepare_data == tiny.prepare_data


def test_fine_tuning_has_settings_of_its_own_which_every_mode_accepts(preset: str) -> None:
    for mode in ("best", "finetune", "inherited"):
        found = load_config(preset, [f"retrain_subnet.mode={mode}"])
        supernet, tuned = found.section(TrainSupernet), found.section(RetrainSubnet)
        assert tuned.epochs == 40 and tuned.warmup_epochs < 5
        assert supernet.min_learning_rate < tuned.learning_rate <= supernet.learning_rate / 10


def test_the_official_training_from_scratch_is_a_comment_that_can_be_used(preset: str) -> None:
    text = (CONFIGS / "presets" / f"{preset}.yaml").read_text()
    settings = re.search(r'SET="(retrain_subnet\.mode=scratch[^"]*)"', text)
    assert settings and "NOT RUN. From scratch" in text
    found = load_config(preset, settings[1].replace("#", "").split())
    scratch = found.section(RetrainSubnet)
    assert (scratch.mode, scratch.epochs, scratch.split, scratch.warmup_epochs) == ("scratch", 300, "train_full", 5)
    assert scratch.learning_rate == found.section(TrainSupernet).learning_rate


def test_training_and_retraining_see_images_in_the_same_way(preset: str) -> None:
    found = config(preset)
    assert found.train_supernet is not None and found.retrain_subnet is not None
    assert found.train_supernet.augmentation == found.retrain_subnet.augmentation
    assert found.prepare_data is not None and found.prepare_data.search_images == 10 * found.space.num_classes
