"""Tools that people use on timm's models, on ours: tracers, exporters, transforms; images of any size and number.

What a tool makes gives the logits of the model as it stands.
"""

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small import perturb, small_space
from test_supernet import plain_attention
from timm.models import GraphExtractNet
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import autoformer.timm_models  # noqa: F401
from autoformer.attention import RelativePosition2D, attend_with_position, position_tables
from autoformer.plain_attention import attend_plainly
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer

BATCHES = (1, 2, 5)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jit and the exporters announce their own future
        yield


def small(**arguments: Any) -> AutoFormer:
    """A registered model of two blocks, with weights that matter."""
    torch.manual_seed(0)
    settings = {"img_size": 64, "num_heads": (3, 4), "mlp_ratio": (3.5, 4.0), "num_classes": 10} | arguments
    model = perturb(timm.create_model("autoformer_tiny", **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2 if parameter.ndim > 1 else 1)
    return model.eval()  # type: ignore[no-any-return]


def images(batch: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def scripted(model: AutoFormer) -> Any:
    return torch.jit.script(model)


def traced(model: AutoFormer) -> Any:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images(2)), stream)
    stream.seek(0)
    return torch.jit.load(stream)


def exported(model: AutoFormer) -> Any:
    return torch.export.export(model, (images(2),), dynamic_shapes={"x": {0: torch.export.Dim("b")}}).module()


def graph_of_nodes(model: AutoFormer) -> Any:
    extractor = create_feature_extractor(model, ["blocks.0", "head"])
    return lambda x: extractor(x)["head"]


TOOLS = {
    "jit.trace": traced,
    "jit.script": scripted,
    "torch.export": exported,
    "torch.fx": torch.fx.symbolic_trace,
    "torch.fx, then jit.script": lambda model: torch.jit.script(torch.fx.symbolic_trace(model)),
    "torch.fx, then jit.trace": lambda model: torch.jit.trace(torch.fx.symbolic_trace(model), images(2)),
    "torchvision create_feature_extractor": graph_of_nodes,
    "timm GraphExtractNet": lambda model: GraphExtractNet(model, ["head"]),
    "checkpointing": lambda model: (model.set_grad_checkpointing(), model)[1],
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("pool", ["avg", "token"])
def test_what_a_tool_makes_gives_the_logits_of_the_model(tool: Callable[[AutoFormer], Any], pool: str) -> None:
    model = small(global_pool=pool)
    with torch.no_grad():
        expected = [model(images(batch)) for batch in BATCHES]
        made = tool(model)
        for batch, logits in zip(BATCHES, expected, strict=True):
            torch.testing.assert_close(made(images(batch)), logits, rtol=1e-5, atol=1e-5)
    assert torch.cat(expected).std() > 0.1


@pytest.mark.parametrize("dynamo", [False, True])
def test_both_onnx_exporters_give_the_logits_of_the_model(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, file = small().float(), str(tmp_path / "model.onnx")
    if dynamo:
        shapes = {"x": {0: torch.export.Dim("b")}}
        torch.onnx.export(model, (images(2).float(),), file, dynamo=True, dynamic_shapes=shapes, external_data=False)
    else:
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
        torch.onnx.export(
            model, (images(2).float(),), file, dynamo=False, dynamic_axes={"x": {0: "b"}, "y": {0: "b"}}, **names
        )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        (logits,) = session.run(None, {"x": images(batch).float().numpy()})
        torch.testing.assert_close(
            torch.from_numpy(logits), model(images(batch).float()).detach(), rtol=1e-4, atol=1e-4
        )


def test_nodes_of_a_graph_are_the_blocks() -> None:
    model = small()
    _, nodes = get_graph_node_names(model)
    assert {node.split(".")[1] for node in nodes if node.startswith("blocks.")} == {"0", "1"}
    seen: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    model(images(2))
    torch.testing.assert_close(create_feature_extractor(model, ["blocks.0"])(images(2))["blocks.0"], seen[0])


def test_gradients_of_a_graph_are_those_of_the_model() -> None:
    model = small().train()
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    for one in (model, graph):
        one(images(2)).square().sum().backward()
    others = dict(graph.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, others[name].grad)


@pytest.mark.parametrize("how", ["to_empty", "assign", "timm", "inside"])
def test_a_model_from_the_meta_device_has_the_constants_that_no_file_holds(how: str) -> None:
    """Its memory may hold anything, zeros too, which would be taken for positions without an error."""
    whole = small()
    with torch.device("meta"):
        model = timm.create_model(
            "autoformer_tiny", img_size=64, num_heads=(3, 4), mlp_ratio=(3.5, 4.0), num_classes=10
        )
        if how == "inside":
            model.load_state_dict(whole.state_dict(), assign=True)
    if how == "assign":
        model.load_state_dict(whole.state_dict(), assign=True)
    elif how != "inside":
        model.double().to_empty(device="cpu")
        for module in model.modules():
            for buffer in module.buffers(recurse=False):
                buffer.zero_()
        if how == "to_empty":
            model.load_state_dict(whole.state_dict())
        else:
            for parameter, other in zip(model.parameters(), whole.parameters(), strict=True):
                parameter.data.copy_(other)
            reinit_non_persistent_buffers(model)
    assert torch.equal(model.eval()(images(2)), whole(images(2)))


def test_gradients_of_single_images_by_torch_func() -> None:
    model, x, labels = small(), images(3), torch.tensor([1, 2, 3])
    parameters = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    for index in range(3):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[index : index + 1]), labels[index : index + 1]).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(gradients[name][index], parameter.grad, rtol=1e-3, atol=1e-5)
    assert jacrev(lambda bias: functional_call(model, {"head.bias": bias}, (x,)))(model.head.bias).shape == (3, 10, 10)


@pytest.mark.parametrize("relative", [14, None])
def test_an_empty_batch_gives_no_logits(relative: int | None) -> None:
    model = small(max_relative_position=relative)
    assert model(images(2)[:0]).shape == (0, 10)
    model.train()(images(2)[:0]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert Supernet(small_space())(torch.zeros(0, 3, 8, 8), small_space().smallest).shape == (0, 5)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (1, 1), (1, 6)])
@pytest.mark.parametrize("limit", [1, 2, 9])
def test_the_plain_form_is_the_official_one_for_every_grid(rows: int, columns: int, limit: int) -> None:
    """Oblong: by its definition, pair by pair. Square: also by the fast form."""
    torch.manual_seed(0)
    tokens, grid = rows * columns + 1, (rows, columns)
    qkv = torch.randn(2, tokens, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    on_keys, on_values = (perturb(RelativePosition2D(limit, 6), seed) for seed in (1, 2))
    places = [(0, 0), *((place // columns, place % columns) for place in range(rows * columns))]

    def pairs(tables: RelativePosition2D) -> Tensor:
        entry = torch.zeros(2, tokens, tokens, dtype=torch.long)
        for i in range(1, tokens):
            for j in range(1, tokens):
                for axis in (0, 1):
                    offset = places[j][axis] - places[i][axis]
                    entry[axis, i, j] = max(-limit, min(limit, offset)) + limit + 1
        return tables.table_v[entry[0]] + tables.table_h[entry[1]]

    q, k, v = qkv.unbind(3)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + torch.einsum("bnhd,nmd->bhnm", q, pairs(on_keys))
    weights = (scores / 6**0.5).softmax(-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weights, v) + torch.einsum("bhnm,nmd->bnhd", weights, pairs(on_values))
    out = attend_plainly(qkv, on_keys(), on_values(), grid, None, False)
    torch.testing.assert_close(out, expected)
    if rows == columns:
        torch.testing.assert_close(plain_attention(q, k, v, on_keys, on_values), expected)
        fast = attend_with_position(
            qkv, on_keys(), on_values(), position_tables(rows, 6, on_keys.max_relative_position), grid
        )
        torch.testing.assert_close(fast, expected)


@pytest.mark.parametrize("grid", [(4, 4), (2, 8)])
def test_masks_work_as_in_scaled_dot_product_attention(grid: tuple[int, int]) -> None:
    """Masked tokens do not matter; a bias of minus infinity is a mask; causal is a triangle."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 17, 2, 3, 6, dtype=torch.float64)
    tables = [perturb(RelativePosition2D(2, 6), seed)() for seed in (1, 2)]
    position = position_tables(4, 6, 2)
    seen = torch.ones(17, dtype=torch.bool).index_fill(0, torch.tensor([0, 3, 16]), False)
    out = attend_with_position(qkv, *tables, position, grid, attn_mask=seen[None].expand(17, 17))
    changed = qkv.clone()
    changed[:, ~seen, :, 1:] = 7.0  # keys and values
    again = attend_with_position(changed, *tables, position, grid, attn_mask=seen[None].expand(17, 17))
    torch.testing.assert_close(out, again)
    assert (out - attend_with_position(qkv, *tables, position, grid)).abs().max() > 0.01
    triangle = torch.ones(17, 17, dtype=torch.bool).tril()
    causal = attend_with_position(qkv, *tables, position, grid, is_causal=True)
    torch.testing.assert_close(attend_with_position(qkv, *tables, position, grid, attn_mask=triangle), causal)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (32, 128), (48, 96)])
def test_images_of_any_size_equal_a_model_set_to_that_size(size: tuple[int, int]) -> None:
    dynamic = small(dynamic_img_size=True)
    fixed = small()
    fixed.load_state_dict(dynamic.state_dict())
    fixed.set_input_size(size)
    x = images(2, *size)
    torch.testing.assert_close(dynamic(x), fixed(x))
    pairs = [model.forward_intermediates(x) for model in (dynamic, fixed)]
    torch.testing.assert_close(pairs[0], pairs[1])
    assert pairs[0][1][0].shape == (2, 192, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(scripted(dynamic)(x), fixed(x), rtol=1e-5, atol=1e-5)
    made = small(img_size=size)
    made.load_state_dict(fixed.state_dict())
    assert torch.equal(made(x), fixed(x))


def test_images_of_two_sizes_in_one_step_with_checkpointing() -> None:
    """Recomputed for the backward pass, each image keeps its own grid, even of equally many patches."""
    model, twin = (small(dynamic_img_size=True).train() for _ in range(2))
    model.set_grad_checkpointing()
    for one in (model, twin):
        (one(images(1, 32, 128)).square().sum() + one(images(1, 128, 32)).square().sum()).backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_images_of_parts_of_patches_are_padded() -> None:
    model = small(dynamic_img_size=True, dynamic_img_pad=True)
    whole = nn.functional.pad(images(2, 60, 90), (0, 6, 0, 4))
    assert torch.equal(model(images(2, 60, 90)), model(whole))


def test_features_of_any_size() -> None:
    model = timm.create_model("autoformer_tiny", features_only=True, dynamic_img_size=True, out_indices=(0, 2))
    assert [tuple(level.shape) for level in model(images(1, 32, 80).float())] == [(1, 192, 2, 5)] * 2


def test_the_methods_are_those_of_the_vision_transformer_of_timm() -> None:
    ours, theirs = (
        small(),
        timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10).double().eval(),
    )
    names = {name for name in dir(theirs) if not name.startswith("_") and callable(getattr(theirs, name))}
    assert {name for name in names if not hasattr(ours, name)} == set()
    assert ours.group_matcher() == theirs.group_matcher()
    layers = [model.get_intermediate_layers(images(2), n=[0, 1], reshape=True, norm=True) for model in (ours, theirs)]
    assert [layer.shape for layer in layers[0]] == [layer.shape for layer in layers[1]]
    extracted = perturb(Supernet(small_space())).extract(SubnetSpec(3, 12, (2, 1, 3), (1.3, 2.0, 1.0))).float().eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.jit.trace(extracted, x)(x), extracted(x), rtol=1e-5, atol=1e-5)
