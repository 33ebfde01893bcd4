"""The model card has the figures of the files, and the limits of the model."""

from typing import Any

import pytest
import yaml
from latencies import table_of

from autoformer.cards import Preprocessing, SubnetCard
from autoformer.images.card import DatasetCard
from autoformer.named import load_space
from autoformer.space import Choices, SubnetSpec
from components.register_model import card as model_card
from components.register_model.card import DESCRIPTION_LIMIT, Facts, description, weakest_classes
from components.register_model.gate import Decision
from components.register_model.latency import Latency
from runtime.common.records import Confusion, Rollback
from runtime.common.sections import RegisterModel

CHOICES = Choices(embed_dim=(64, 96), depth=(1, 2), num_heads=(3, 4), mlp_ratio=(1.0, 2.5))
CLASSES = ("cat", "dog | wolf", "owl")
METRICS = {
    "test_top1_percent": 81.25, "test_top1_low_percent": 78.5, "test_top1_high_percent": 83.75,
    "test_top5_percent": 99.5, "test_loss": 0.54321, "test_ece": 0.02345, "test_images": 1600,
    "inherited_test_top1_percent": 80.5, "scratch_test_top1_percent": 79.25, "params": 349_674, "macs": 6_193_776,
}  # fmt: skip
CONFUSION = Confusion(classes=CLASSES, matrix=((590, 8, 2), (250, 340, 10), (20, 10, 370)))
TRAINING: dict[str, Any] = {
    "epochs": 3.0, "batch_size": 128, "learning_rate": 0.001, "clip_grad": None,
    "augmentation": {"crop_padding": 2, "flip": True, "mixup": 0.0, "rand_augment": None},
    "log_steps": 50, "checkpoint_steps": 500,
}  # fmt: skip


def facts(**changes: Any) -> Facts:
    space = load_space("fashion-mnist")
    data = DatasetCard(
        name="animals", classes=CLASSES, image_size=28, channels=1, encoding="raw", mean=(0.25,), std=(0.5,),
        counts={"train": 48_000, "search": 4_000, "test": 1_600}, licence="CC BY 4.0", source="by a friend",
        archives={}, split_hashes={"train": "a" * 64, "search": "b" * 64, "test": "c" * 64},
    )  # fmt: skip
    model = SubnetCard(
        space=space,
        subnet=SubnetSpec(2, 96, (3, 4), (1.0, 2.5)),
        preprocessing=Preprocessing(mean=data.mean, std=data.std, classes=CLASSES),
        provenance={
            "seed": 5, "code": "feed", "weights": "finetune",
            "config": {"retrain_subnet": {"mode": "finetune", **TRAINING}},
        },
    )  # fmt: skip
    whole = Facts(
        section=RegisterModel(model_name="animals", min_top1_percent=80),
        data=data,
        model=model,
        weights="d" * 64,
        metrics=METRICS,
        confusion=CONFUSION,
        searched={"candidates_scored": 1234},
        retrained={"retrained_top1_percent": 82.125},
        supernet_config={"train_supernet": {**TRAINING, "epochs": 11.0}},
        rollbacks={"train_supernet": [], "retrain_subnet": []},
    )
    return whole._replace(**changes)


DECISION = Decision("registered", "good enough")
LATENCY = Latency(1.234, 2.345, 300, 2, "a processor, 2 cores")


def render(facts: Facts) -> str:
    return model_card.render(facts, DECISION, LATENCY)


def section(card: str, title: str) -> str:
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, without heads of three empty cells and rules."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for row in cells if not set("".join(row)) <= set("-:| ")]


def test_a_latency_is_shown_with_its_device_where_the_search_had_a_table() -> None:
    made = facts()
    assert "predicted latency" not in render(made)
    table = table_of(made.model.space.model_copy(update={"choices": CHOICES}))
    head = render(made._replace(table=table)).partition("\n## ")[0]
    shown = {row[0]: row[1] for row in rows(head)}
    assert shown["predicted latency"] == (
        "8.68 ms: a processor, 2 cores, 1 thread, batch 1, float32; median error 10.0 % on 3 measured subnets"
    )


def test_the_figures_are_those_of_the_files() -> None:
    card = render(facts())
    shown = dict(row[:2] for row in rows(card.partition("\n## ")[0]))
    assert shown["registry"] == "`animals@champion`, registered: good enough"
    assert shown["test accuracy"] == "81.25 % (95 % interval 78.50 to 83.75 %)"
    assert (shown["parameters"], shown["MACs"]) == (
        "349,674",
        "6,193,776 multiply-adds for one image, without relative position",
    )
    assert shown["weights"] == f"sha256 `{'d' * 64}`"
    assert shown["CPU latency"].startswith("median 1.23 ms, 90th percentile 2.35 ms for one image")
    assert shown["CPU latency"].endswith("300 passes at registration, 2 threads, a processor, 2 cores")
    assert "- The latency was measured on one machine" in section(card, "Limits")
    accuracy = {row[0]: row[1] for row in rows(section(card, "Accuracy"))}
    assert accuracy["test accuracy, top-5"] == "99.50 %" and accuracy["test loss"] == "0.5432"
    assert accuracy["calibration error (ECE)"] == "0.0234"
    assert accuracy["same subnet with inherited weights"] == "80.50 %"
    assert accuracy["same subnet trained from random weights for as many images"] == "79.25 %"
    assert accuracy["search split"] == "82.12 %"
    assert "On the 1,600 images of the test split" in card
    architecture = {row[0]: row[1] for row in rows(section(card, "Architecture"))}
    assert (architecture["depth, in blocks"], architecture["width, in channels"]) == ("2", "96")
    assert architecture["heads of each block"] == "3 4, of 32 channels"
    assert architecture["MLP ratio of each block"] == "1 2.5"


def test_a_search_split_that_was_trained_on_scores_inherited_weights_alone() -> None:
    card = render(facts(retrained={"inherited_top1_percent": 80.125, "search_split_trained_on": True}))
    accuracy = {row[0]: row[1:] for row in rows(section(card, "Accuracy"))}
    assert accuracy["search split, inherited weights"][0] == "80.12 %" and "search split" not in accuracy
    note = accuracy["search split, inherited weights"][1]
    assert "trained on them too. Accuracy on the search split ranks subnets; it is no estimate" in note


def test_accuracy_on_the_search_split_is_never_without_what_it_is_worth() -> None:
    """On the data on which it was measured, with the measure."""
    for name, is_measured in (("animals", False), ("Fashion-MNIST", True)):
        data = facts().data.model_copy(update={"name": name})
        for retrained in (
            {"retrained_top1_percent": 82.0},
            {"inherited_top1_percent": 80.0, "search_split_trained_on": True},
        ):
            card = render(facts(data=data, retrained=retrained))
            (row,) = [row for row in rows(section(card, "Accuracy")) if row[0].startswith("search split")]
            assert "it is no estimate of test accuracy" in row[2]
            assert ("1.1 to 1.7 points above" in row[2]) == is_measured


@pytest.mark.parametrize(("is_random", "by"), [(0.0, "evolution"), (1.0, "random search")])
def test_the_search_that_found_the_subnet_is_named(is_random: float, by: str) -> None:
    searched = {"candidates_scored": 1234, "chosen_is_random": is_random}
    assert f"Chosen by {by} out of 1,234 scored candidates." in render(facts(searched=searched))
    by = by.replace("evolution", "NSGA-II")
    card = render(facts(searched=searched | {"front_candidates": 9}))
    assert f"Chosen by {by} out of 1,234 scored candidates." in card


def test_the_data_its_hash_and_its_licence() -> None:
    card = render(facts())
    assert rows(section(card, "Data"))[1:] == [
        ["train", "48,000", f"`{'a' * 64}`"], ["search", "4,000", f"`{'b' * 64}`"], ["test", "1,600", f"`{'c' * 64}`"],
    ]  # fmt: skip
    assert "animals: by a friend" in card and "Classes: cat, dog | wolf, owl." in card
    assert "The code and the architecture: MIT. The training images: CC BY 4.0." in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["datasets"]) == ("other", ["animals"])


def test_the_weakest_classes() -> None:
    """By hand: 590 of 600, 340 of 600, 370 of 400 right."""
    assert weakest_classes(CONFUSION, 2) == [("dog | wolf", 340, 600, "cat"), ("owl", 370, 400, "cat")]
    assert rows(section(render(facts()), "Accuracy"))[-3:] == [
        ["dog \\| wolf", "340 of 600 (56.7 %)", "cat"],  # the bar is escaped: one cell of a table
        ["owl", "370 of 400 (92.5 %)", "cat"],
        ["cat", "590 of 600 (98.3 %)", "dog \\| wolf"],
    ]
    none_wrong = Confusion(classes=("a", "b", "c"), matrix=((2, 0, 0), (0, 0, 0), (0, 0, 1)))
    assert weakest_classes(none_wrong) == [("a", 2, 2, ""), ("c", 1, 1, "")]  # b has no test image


def test_the_recipe_of_a_reference_from_scratch_that_was_kept_is_the_supernets_for_all_epochs() -> None:
    base = facts()
    provenance = base.model.provenance | {"weights": "scratch", "config": {"retrain_subnet": {"mode": "best"}}}
    model = base.model.model_copy(update={"provenance": provenance})
    text = section(render(facts(model=model, retrained={**base.retrained, "scratch_epochs": 9.0})), "Recipe")
    recipe = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert recipe["retrain_subnet"] == recipe["train_supernet"] | {"mode": "scratch", "epochs": 9}


@pytest.mark.parametrize("mode", ["scratch", "finetune", "inherited"])
def test_the_recipe_is_what_decided_the_weights(mode: str) -> None:
    base = facts()
    provenance = base.model.provenance
    model = base.model.model_copy(
        update={
            "provenance": {**provenance, "weights": mode, "config": {"retrain_subnet": {"mode": mode, **TRAINING}}},
        }
    )
    text = section(render(facts(model=model)), "Recipe")
    recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    plain = {key: TRAINING[key] for key in ("epochs", "batch_size", "learning_rate")}
    plain["augmentation"] = {"crop_padding": 2, "flip": True}  # what is switched on
    wanted: dict[str, Any] = {"train_supernet": plain | {"epochs": 11.0}}
    if mode != "inherited":
        wanted["retrain_subnet"] = {"mode": mode} | plain
    assert recipe == wanted
    assert "1,234 scored candidates" in text and "Seed 5" in text and "`feed`" in text


def test_a_rollback_is_part_of_the_recipe() -> None:
    subnet = SubnetSpec(2, 96, (3, 4), (1.0, 2.5))
    reason = "the loss of step 70 is nan"
    row = Rollback(step=70, reason=reason, subnet=subnet, back_to_step=50, learning_rate_scale=0.25)
    assert "went back" not in render(facts())
    shown = " ".join(section(render(facts(rollbacks={"train_supernet": [row]})), "Recipe").split())
    assert "train_supernet went back from step 70 to 50, because the loss of step 70 is nan" in shown
    assert "From there on, its learning rates were 0.25 times the recipe's." in shown


def test_a_teacher_is_named_without_its_folder() -> None:
    training = TRAINING | {"distillation": {"teacher": "deit_tiny", "checkpoint": "/home/me/t.safetensors"}}
    card = render(facts(supernet_config={"train_supernet": training}))
    assert "checkpoint: t.safetensors" in card and "/home" not in card


def test_the_limits_are_stated() -> None:
    text = section(render(facts()), "Limits")
    assert "Not for decisions about a person's health" in text
    assert "one of its 3 classes for every image" in text and "grey, 28 x 28 pixels" in text
    assert "1,600 test images" in text and "the smallest class has 400 of them" in text


def test_a_description_fits_mlflows_databases() -> None:
    short = render(facts())
    assert description(short) == short.partition("\n---\n\n")[2]
    names = tuple(f"class of a name that is long, number {number}" for number in range(1000))
    base = facts()
    long = render(facts(data=base.data.model_copy(update={"classes": names}), section=base.section))
    assert "and 950 more, which `model.json` lists" in long
    shown = description(long)
    assert len(shown) <= DESCRIPTION_LIMIT < len(long)
    assert shown.endswith("\nThe whole card is `model_card.md` among the version's artifacts.\n")
    assert "## Limits" in shown and shown.startswith("# animals\n")
