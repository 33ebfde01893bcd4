"""The configuration: presets, overrides, and the one-line errors of mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from autoformer.errors import AutoFormerError
from components.resolve_config.step import resolve
from pipeline.repro import checked, overridden
from runtime.common.config import ROOT, STEPS, load_config
from runtime.common.overrides import split
from runtime.common.sections import (
    EvaluateSubnet,
    PrepareData,
    RegisterModel,
    RetrainSubnet,
    SearchSubnet,
    TrainSupernet,
)

PRESETS = sorted(path.stem for path in (ROOT / "configs" / "presets").glob("*.yaml"))


# Values that the cases below build on, so that the demo can be tuned without them.
PINNED = [
    "search_subnet={population: 20, parents: 6, mutations: 10, crossovers: 10, limits: {max_params_m: 0.5}}",
    "train_supernet={epochs: 6, batch_size: 128, learning_rate: 0.001, log_steps: 50}",
    "space=fashion-mnist",
]


def error_of(source: str = "demo", *overrides: str) -> str:
    with pytest.raises(AutoFormerError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load(preset: str) -> None:
    config = load_config(preset)
    assert config.name == preset
    assert all(getattr(config, step) is not None for step in STEPS)


def test_a_preset_is_found_by_name_by_file_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    demo = load_config("demo")
    assert load_config(str(file)) == demo == load_config(demo.model_dump_json())


def test_a_step_gets_the_shared_keys_and_its_own_section() -> None:
    config = load_config("demo")
    assert set(config.for_step("search_subnet")) == {
        "name", "seed", "threads", "device", "dataset", "space", "search_subnet",
    }  # fmt: skip
    alone = load_config(config.step_json("search_subnet"), steps=["search_subnet"])
    assert (alone.search_subnet, alone.space, alone.train_supernet) == (config.search_subnet, config.space, None)
    assert alone.step_json("search_subnet") == config.step_json("search_subnet")


def test_a_section_is_found_by_its_type() -> None:
    config = load_config("demo")
    kinds = PrepareData, TrainSupernet, SearchSubnet, RetrainSubnet, EvaluateSubnet, RegisterModel
    assert [config.section(kind) for kind in kinds] == [getattr(config, step) for step in STEPS]
    alone = load_config(config.step_json("search_subnet"), steps=["search_subnet"])
    with pytest.raises(AutoFormerError, match=r"^the section 'train_supernet' is missing$"):
        alone.section(TrainSupernet)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sed=1", ["unknown key 'sed'", "did you mean 'seed'?"]),
        ("search_subnet.populatoin=1", ["unknown key 'search_subnet.populatoin'", "did you mean 'population'?"]),
        ("search_subnet.limits.max_param_m=1", ["search_subnet.limits.max_param_m", "'max_params_m'?"]),
        ("train_supernet.augmentation.flop=true", ["train_supernet.augmentation.flop", "'flip'?"]),
        ("serch_subnet.population=1", ["unknown key 'serch_subnet'", "'search_subnet'?"]),
        ("space.chocies.depth=[1]", ["unknown key 'space.chocies'", "'choices'?"]),
        ("search_subnet.latency.tabel=a.json", ["unknown key 'search_subnet.latency.tabel'", "'table'?"]),  # required
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(override: str, parts: list[str]) -> None:
    message = error_of("demo", override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed=two", ["seed = 'two'", "integer"]),
        ("seed=", ["seed = None"]),
        ("seed=-1", ["seed = -1", "greater than or equal to 0"]),
        ("retrain_subnet.mode=tune", ["retrain_subnet.mode = 'tune'", "scratch"]),
        ("train_supernet.epochs=0", ["train_supernet.epochs = 0", "greater than 0"]),
        ("search_subnet.parents=21", [": search_subnet: parents 21 are more than population 20"]),
        ("search_subnet.crossovers=11", ["mutations 10 + crossovers 11 are more than population 20"]),
        ("search_subnet.limits.min_params_m=0.6", ["min_params_m 0.6 is above max_params_m 0.5"]),
        ("train_supernet.checkpoint_steps=120", ["checkpoint_steps 120 is not a multiple of log_steps 50"]),
        ("train_supernet.warmup_epochs=6", ["warmup_epochs 6 leave nothing of epochs 6"]),
        ("register_model.min_top1_percent=101", ["register_model.min_top1_percent = 101", "100"]),
        ("space.patch_size=5", ["patch_size 5 does not divide image_size 28"]),
        ("space=fashion-minst", ["fashion-minst", "did you mean 'fashion-mnist'?"]),
        ("space=nowhere/x.yaml", ["nowhere/x.yaml: no such file"]),
        ("prepare_data=null", ["the section 'prepare_data' is missing"]),
    ],
)
def test_a_wrong_value_is_named(override: str, parts: list[str]) -> None:
    message = error_of("demo", *PINNED, override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("key", ["name", "dataset", "space.name"])
@pytest.mark.parametrize("name", ["two\nlines", "red \x1b[31m", "a\ttab", "\u202eback", "\x00"])
def test_a_name_that_a_terminal_would_obey_is_refused(key: str, name: str) -> None:
    message = error_of("demo", f"{key}={json.dumps(name)}")
    assert key in message and message.endswith("a name holds no line break and no other control character")
    assert message.isprintable()


@pytest.mark.parametrize("name", ["../x", "..", ".", "a/b", "/etc", "a/../../b", "x" * 256, "ä" * 128])
def test_the_name_of_a_data_set_leads_nowhere_else(name: str) -> None:
    assert f"dataset = '{name[:60]}" in error_of("demo", f"dataset={json.dumps(name)}")


def test_other_names_are_free() -> None:
    for name in ("Ünïcode 😀", "a.b", "..a", "x" * 200):
        config = load_config(
            "demo", [f"name={json.dumps(name, ensure_ascii=False)}", f"dataset={json.dumps(name, ensure_ascii=False)}"]
        )
        assert (config.name, config.dataset) == (name, name)


@pytest.mark.parametrize("kind", ["preset", "space"])
@pytest.mark.parametrize("name", ["../spaces/photos-64", "../presets/demo", "/etc/passwd", "..", "demo\n"])
def test_the_name_of_a_file_of_configs_is_no_path(kind: str, name: str) -> None:
    overrides = [f"space={json.dumps(name)}"] if kind == "space" else []
    message = error_of(name if kind == "preset" else "demo", *overrides)
    assert f"in configs/{kind}s; " in message and message.endswith("; a path ends in .yaml")


@pytest.mark.parametrize(
    "override",
    [
        "seed=no", "threads=on", "name=yes", "train_supernet.epochs=true", "train_supernet.ema_decay=off",
        "train_supernet.warmup_epochs=no", "train_supernet.drop_path=off", "search_subnet.limits.max_params_m=yes",
        "search_subnet.budgets=[on]", "space.choices.depth=[yes]", "space.supernet.depth=on",
        "train_supernet.augmentation.mixup=off", "train_supernet.augmentation.crop_scale=[no, yes]",
    ],
)  # fmt: skip
def test_yes_and_no_of_yaml_are_no_numbers(override: str) -> None:
    message = error_of("demo", override)
    assert f"{override.partition('=')[0]} = " in message and "expected no true or false" in message, message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train_supernet=3", "train_supernet = 3: expected a mapping of keys to values"),
        ("search_subnet.limits=[1]", "search_subnet.limits = [1]: expected a mapping of keys to values"),
        ("space=3", "space = 3: expected a mapping of keys to values"),
        ("space.choices.depth=3", "space.choices.depth = 3: expected a list"),
        ("train_supernet.augmentation.crop_scale=1", "crop_scale = 1: expected a list"),
        ("train_supernet.adopt=a.pth", "train_supernet.adopt = 'a.pth': expected a mapping of keys to values"),
    ],
)
def test_a_value_in_place_of_a_section_or_a_list_is_named_in_the_words_of_yaml(override: str, words: str) -> None:
    message = error_of("demo", override)
    assert words in message and "dictionary" not in message and "tuple" not in message


@pytest.mark.parametrize("name", ["", " ", "a ", " a", "a\nb", *(f"a{sign}b" for sign in "/:.%\"'?"), "..", "x" * 251])
def test_a_model_name_that_the_registry_refuses_is_refused_before_anything_runs(name: str) -> None:
    message = error_of("demo", f"register_model.model_name={json.dumps(name)}")
    assert "register_model.model_name = " in message and "\n" not in message


@pytest.mark.parametrize(
    "alias", ["", " ", "a b", "latest", "Latest", "v1", "V2", "v12", "a.b", "a/b", "a\n", "a" * 256]
)
def test_an_alias_that_the_registry_refuses_is_refused_before_anything_runs(alias: str) -> None:
    message = error_of("demo", f"register_model.alias={json.dumps(alias)}")
    assert "register_model.alias = " in message and "\n" not in message


def test_mode_best_needs_a_search_split_that_nothing_was_trained_on() -> None:
    message = error_of("demo", "retrain_subnet.mode=best", "retrain_subnet.split=train_full")
    assert "mode best compares on the search split" in message and "set split=train" in message


def test_a_message_that_begins_with_a_name_keeps_its_spelling() -> None:
    assert ": MLflow reserves latest and v1" in error_of("demo", "register_model.alias=latest")
    assert ": input should be greater than" in error_of("demo", "train_supernet.epochs=0")


def _accepts(check: Callable[..., object], **values: object) -> bool:
    try:
        check(**values)
    except ValueError:
        return False
    return True


def test_names_and_aliases_that_the_configuration_accepts_are_accepted_by_mlflow() -> None:
    from mlflow.store.artifact.utils.models import _parse_model_uri
    from mlflow.utils import validation

    signs = [chr(number) for number in range(1, 0x250)]
    for text in [
        *signs,
        *(f"a{sign}b" for sign in signs),
        "фото",
        "照片",
        "v1",
        "v1b",
        "latest",
        "Latest-1",
        "..",
        "-",
    ]:
        if _accepts(RegisterModel, model_name=text, min_top1_percent=0.0):
            validation._validate_model_name(text)
            validation._validate_logged_model_name(text)
            assert _parse_model_uri(f"models:/{text}/3").name == text
        if _accepts(RegisterModel, model_name="a", alias=text, min_top1_percent=0.0):
            validation._validate_model_alias_name(text)
            validation._validate_model_alias_name_reserved(text)
    for name in ("фото", "照片", "my model", "flowers_2-b"):
        assert RegisterModel(model_name=name, min_top1_percent=0).model_name == name
    for alias in ("champion", "v1b", "Latest-1", "ä", "_"):
        assert RegisterModel(model_name="a", alias=alias, min_top1_percent=0).alias == alias


@pytest.mark.parametrize("override", ["seed", "=3", ".seed=3", "search_subnet.=3", "", "seed=[1"])
def test_a_malformed_override_is_repeated(override: str) -> None:
    assert f"--set {override}" in error_of("demo", override)


@pytest.mark.parametrize("override", ["seed.more=3", "search_subnet.population.more=3"])
def test_an_override_below_a_value_is_refused(override: str) -> None:
    assert "is a value, not a section" in error_of("demo", override)


def test_overrides_reach_nested_keys_and_are_applied_in_order() -> None:
    config = load_config(
        "demo",
        [
            *PINNED,
            "seed=1",
            "search_subnet.limits.max_macs_g=0.01",
            "train_supernet.augmentation={flip: false}",
            "seed=2",
        ],
    )
    assert config.seed == 2
    assert config.search_subnet is not None and config.train_supernet is not None
    assert config.search_subnet.limits.max_macs_g == 0.01
    assert config.search_subnet.limits.max_params_m == 0.5  # its neighbour stays
    assert config.train_supernet.augmentation.flip is False


def test_overrides_reach_into_a_space_that_is_given_by_name() -> None:
    config = load_config("demo", ["space.choices.depth=[3, 4]", "space.name=shallow"])
    assert config.space.choices.depth == (3, 4)
    assert (config.space.name, config.space.image_size) == ("shallow", 28)


def test_unreadable_sources(tmp_path: Path) -> None:
    assert "no preset 'dmo' in configs/presets; did you mean 'demo'?" in error_of("dmo")
    assert "nowhere.yaml: no such file" in error_of("nowhere.yaml")
    assert "--config: not readable as JSON" in error_of('{"seed": 1')
    broken, listed, empty = (tmp_path / f"{name}.yaml" for name in ("broken", "listed", "empty"))
    broken.write_text("seed: [1\nname: x")
    listed.write_text("- seed\n- name\n")
    empty.write_text("")
    assert f"{broken}: not readable as YAML" in error_of(str(broken))
    assert f"{listed}: expected sections, found list" in error_of(str(listed))
    assert f"{empty}: expected sections, found NoneType" in error_of(str(empty))


def test_missing_keys_and_sections(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    del data["retrain_subnet"]
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(data))
    assert f"{file}: the section 'retrain_subnet' is missing" in error_of(str(file))
    assert load_config(str(file), steps=["search_subnet"]).retrain_subnet is None
    file.write_text(yaml.safe_dump({key: value for key, value in data.items() if key != "seed"}))
    assert "'seed' is missing" in error_of(str(file))


def test_a_configuration_is_frozen() -> None:
    config = load_config("demo")
    assert config.search_subnet is not None
    for owner, key in ((config, "seed"), (config.search_subnet, "population"), (config.search_subnet.limits, "x")):
        with pytest.raises(ValidationError):
            setattr(owner, key, 3)


def test_the_hash_is_of_every_value() -> None:
    overrides = [
        "name=other", "seed=1", "threads=3", "device=cpu", "dataset=other", "space.max_relative_position=2",
        "prepare_data.search_images=10", "train_supernet.augmentation.flip=true", "search_subnet.limits={}",
        "retrain_subnet.mode=scratch", "evaluate_subnet.mistakes=1", "register_model.alias=other",
    ]  # fmt: skip
    hashes = {load_config("demo", [override]).hash() for override in overrides}  # none is the demo's own value
    assert len(hashes | {load_config("demo").hash()}) == len(overrides) + 1
    assert load_config("demo", ["seed=0"]).hash() == load_config("demo").hash()


def test_the_run_form_becomes_a_configuration() -> None:
    assert resolve("demo") == load_config("demo")
    config = resolve("demo", split("name='my run' search_subnet.weights=raw"), seed=4, max_params_m=0.25)
    assert config == load_config(
        "demo", ["name=my run", "search_subnet.weights=raw", "seed=4", "search_subnet.limits.max_params_m=0.25"]
    )
    assert resolve("demo", ["seed=5"], seed=4).seed == 5  # overrides are applied last
    with pytest.raises(AutoFormerError, match="quotation"):
        resolve("demo", split("name='my run"))


def test_edited_params_equal_overrides(tmp_path: Path) -> None:
    """The published presets share a section by a YAML alias; an override changes only one of its two places."""
    overrides = ["train_supernet.augmentation.flip=false", "search_subnet.limits.max_params_m=5.9", "seed=4"]
    source = ROOT / "configs" / "presets" / "imagenet-tiny.yaml"
    assert "*official" in source.read_text(encoding="utf-8")
    edited = tmp_path / "edited.yaml"
    edited.write_text(overridden(source.read_text(encoding="utf-8"), overrides), encoding="utf-8")
    config = load_config(str(edited))
    assert config == load_config("imagenet-tiny", overrides)
    assert config.retrain_subnet is not None and config.retrain_subnet.augmentation.flip
    assert "# 10 of each class, held out of training" in edited.read_text(encoding="utf-8")


ANCHOR = ("train_supernet:\n", "train_supernet:\n  augmentation: &shared {flip: false}\n")
ALIAS = ("retrain_subnet:\n", "retrain_subnet:\n  augmentation: *shared\n")


@pytest.mark.parametrize(
    ("edits", "override"),
    [
        ([ANCHOR, ALIAS], "train_supernet.augmentation.flip=true"),
        ([ANCHOR, ALIAS], "retrain_subnet.augmentation.flip=true"),
        *(([], f"name='{word}'") for word in ("on", "no", "1e3", "0x1", "null", "12:30:00", "a: b", "#x")),
        ([], "dataset='yes'"),
    ],
)
def test_an_edited_params_file_reads_as_the_configuration_that_was_validated(
    edits: list[tuple[str, str]], override: str, tmp_path: Path
) -> None:
    text = (ROOT / "configs" / "presets" / "smoke.yaml").read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    source = tmp_path / "source.yaml"
    source.write_text(text, encoding="utf-8")
    wanted = load_config(str(source), [override])
    edited = tmp_path / "edited.yaml"
    edited.write_text(checked(text, wanted, [override]), encoding="utf-8")
    assert load_config(str(edited)) == wanted != load_config(str(source))


def test_a_merge_key_is_refused_in_one_line(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "presets" / "smoke.yaml").read_text(encoding="utf-8")
    source = tmp_path / "merge.yaml"
    source.write_text(text.replace("retrain_subnet:\n", "retrain_subnet:\n  <<: {drop_path: 0.1}\n"), encoding="utf-8")
    assert "merge.yaml: not readable as YAML" in error_of(str(source))
