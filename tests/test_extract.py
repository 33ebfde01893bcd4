"""The extracted model: equal to the supernet's subnet, independent of it, and the same again from disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from latencies import table_of, write_latencies
from small import perturb, small_space, specs, variants
from torch import Tensor, nn

from autoformer.cards import Preprocessing, SubnetCard, SupernetCard
from autoformer.checkpoint import load_subnet, load_supernet, save_subnet, save_supernet
from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError
from autoformer.export import export_program
from autoformer.latency import read_latency_table
from autoformer.named import load_space
from autoformer.named import load_subnet as named_subnet
from autoformer.official import load_any_supernet
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import BiasRule, Supernet
from autoformer.vit import AutoFormer, timm_arguments

SPEC = SubnetSpec(2, 12, (2, 1), (1.3, 2.0))
RULES: tuple[BiasRule, ...] = ("aligned", "official")


def images(space: SearchSpace, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, space.in_channels, space.image_size, space.image_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("space", variants().values(), ids=variants())
def test_extracted_model_equals_the_subnet(space: SearchSpace, rule: BiasRule) -> None:
    supernet = perturb(Supernet(space, bias_rule=rule)).eval()
    x = images(space)

    @given(spec=specs(space))
    @settings(max_examples=10, deadline=None)
    def check(spec: SubnetSpec) -> None:
        with torch.no_grad():
            assert relative_error(supernet.extract(spec)(x), supernet(x, spec)) < 1e-12

    check()


@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_those_of_the_slice(rule: BiasRule) -> None:
    space = small_space()
    supernet = perturb(Supernet(space, bias_rule=rule))
    model = supernet.extract(SPEC)
    supernet(images(space), SPEC).square().sum().backward()
    model(images(space)).square().sum().backward()
    whole = dict(supernet.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = whole[name].grad
        assert parameter.grad is not None and gradient is not None
        expected = gradient[tuple(slice(n) for n in parameter.shape)]
        if name.endswith("qkv.bias") and rule == "official":  # the model's own order is that of its weight
            heads = expected.numel() // (3 * space.head_dim)
            expected = expected.view(3, heads, space.head_dim).transpose(0, 1).reshape(-1)
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10)


def test_model_has_no_storage_of_the_supernet_and_no_more_weights_than_its_slice() -> None:
    space = small_space()
    supernet = perturb(Supernet(space)).eval()
    model = supernet.extract(SPEC)
    shared = {tensor.untyped_storage().data_ptr() for tensor in [*supernet.parameters(), *supernet.buffers()]}
    held = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        assert tensor.untyped_storage().data_ptr() not in shared
        held += tensor.untyped_storage().nbytes()
    features = sum(buffer.untyped_storage().nbytes() for buffer in model.buffers())
    assert held - features == 8 * count_params(space, SPEC)
    before = supernet(images(space), SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(supernet(images(space), SPEC), before)


def test_extracted_model_has_no_dynamic_code() -> None:
    model = Supernet(small_space()).extract(SPEC)
    kinds = {type(module).__module__.partition(".")[0] for module in model.modules()}
    own = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith("autoformer")}
    assert kinds == {"autoformer", "timm", "torch"}
    assert own == {"AutoFormer", "Attention", "Block", "PositionBuffers", "RelativePosition2D"}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert type(module) is nn.Linear
        if isinstance(module, nn.LayerNorm):
            assert type(module) is nn.LayerNorm


def test_mode_and_type_are_those_of_the_supernet() -> None:
    supernet = Supernet(small_space()).double()
    assert supernet.train().extract(SPEC).training
    assert not supernet.eval().extract(SPEC).training
    assert supernet.extract(SPEC).head.weight.dtype == torch.float64


def test_subnet_that_does_not_fit_is_refused() -> None:
    with pytest.raises(AutoFormerError, match="embed_dim = 24 is larger than the supernet of 'small'"):
        Supernet(small_space()).extract(SubnetSpec(1, 24, (1,), (1.0,)))


def test_published_tiny_is_extracted_though_outside_its_space() -> None:
    space, spec = load_space("autoformer-tiny"), named_subnet("autoformer-tiny").subnet
    supernet = Supernet(space).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(supernet.extract(spec)(image), supernet(image, spec)) < 1e-5


# --- on disk ---

PREPROCESSING = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, classes=tuple("abcde"))


def card(space: SearchSpace) -> SubnetCard:
    return SubnetCard(space=space, preprocessing=PREPROCESSING, provenance={"seed": 3}, subnet=SPEC)


def save_model(folder: Path, model: AutoFormer | None = None) -> None:
    save_subnet(folder, model or perturb(Supernet(small_space())).float().extract(SPEC), card(small_space()))


def save_both(folder: Path) -> None:
    supernet, average = (perturb(Supernet(small_space()), seed).float() for seed in (0, 1))
    whole = SupernetCard(space=small_space(), preprocessing=PREPROCESSING, provenance={})
    save_supernet(folder, supernet.state_dict(), average.state_dict(), whole)


@pytest.mark.parametrize("save", [save_model, save_both])
def test_equal_models_are_equal_bytes(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / "one")
    save(tmp_path / "another" / "name")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) in (2, 3)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "another" / "name" / file).read_bytes()


def test_subnet_from_disk(tmp_path: Path) -> None:
    model = perturb(Supernet(small_space())).float().extract(SPEC).eval()
    save_model(tmp_path / "model", model)
    loaded = load_subnet(tmp_path / "model")
    x = images(small_space()).float()
    assert loaded.card == card(small_space())
    assert not loaded.model.training
    assert torch.equal(loaded.model(x), model(x))


def test_supernet_from_disk(tmp_path: Path) -> None:
    save_both(tmp_path / "supernet")
    x = images(small_space()).float()
    for seed, weights in enumerate(("raw", "ema")):
        loaded = load_supernet(tmp_path / "supernet", weights)  # type: ignore[arg-type]
        expected = perturb(Supernet(small_space()), seed).float().eval()
        assert torch.equal(loaded.model(x, SPEC), expected(x, SPEC))


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "model" / "stray").touch()
    save_model(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(AutoFormerError, match=r"model\.json: no such file"):
        load_subnet(folder)
    save_model(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AutoFormerError, match=r"model\.safetensors: not a readable checkpoint") as error:
        load_subnet(folder)
    assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(AutoFormerError, match=r"model\.safetensors: no such file"):
        load_subnet(folder)
    other = SubnetSpec(1, 8, (1,), (1.0,))
    save_subnet(folder, Supernet(small_space()).extract(other), card(small_space()))
    with pytest.raises(AutoFormerError, match=r"model\.safetensors: not the weights that the file beside it describes"):
        load_subnet(folder)


def test_supernet_without_an_average(tmp_path: Path) -> None:
    whole = SupernetCard(space=small_space(), preprocessing=PREPROCESSING, provenance={})
    save_supernet(tmp_path / "supernet", Supernet(small_space()).state_dict(), None, whole)
    with pytest.raises(AutoFormerError, match="trained without ema_decay"):
        load_supernet(tmp_path / "supernet", "ema")


def test_a_path_may_be_text_for_every_reader_and_writer(tmp_path: Path) -> None:
    folder, space = str(tmp_path / "model"), small_space()
    model = perturb(Supernet(space)).float().extract(SPEC).eval()
    save_subnet(folder, model, card(space))
    x = images(space).float()
    assert torch.equal(load_subnet(folder).model(x), model(x))
    whole, folder = Supernet(space).eval(), str(tmp_path / "supernet")
    save_supernet(
        folder, whole.state_dict(), None, SupernetCard(space=space, preprocessing=PREPROCESSING, provenance={})
    )
    for loaded in (load_supernet(folder).model, load_any_supernet(f"{folder}/weights.safetensors", space)):
        assert torch.equal(loaded.eval()(x, SPEC), whole(x, SPEC))
    table = write_latencies(tmp_path / "table.json", space)
    assert read_latency_table(str(table)) == table_of(space)


@pytest.mark.parametrize("name", ["mean", "one_channel", "stem"])
def test_a_model_is_exported_at_the_size_that_it_has(name: str, tmp_path: Path) -> None:
    """Also one of no search space, and one whose size was changed."""
    space, file = variants()[name], str(tmp_path / "model.pt2")
    resized = Supernet(space).extract(space.smallest).eval()
    resized.set_input_size(2 * space.image_size)
    for model in (AutoFormer(**timm_arguments(space, space.smallest)).eval(), resized):
        export_program(model, file)
        x = torch.randn(2, space.in_channels, *model.patch_embed.img_size)
        torch.testing.assert_close(torch.export.load(file).module()(x), model(x))
