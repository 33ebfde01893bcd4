"""A number stands beside the form of its noun that belongs to it."""

import ast
import re

import pytest
from latencies import table_of
from small import small_space
from test_architecture import ROOT, TREES

from autoformer.errors import AutoFormerError, quantity
from autoformer.latency import LatencyTable
from autoformer.space import SubnetSpec
from commands import compare, latency
from components.prepare_data import oddities

PLURAL = re.compile(r" (?!as\b|on its\b)(?:[a-z-]+ )?[a-z-]+s\b(?!')")


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "block", "1 block"), (0, "block", "0 blocks"), (1200, "block", "1,200 blocks"),
        (2, "class", "2 classes"), (2, "copy", "2 copies"), (2, "day", "2 days"), (3, "batch", "3 batches"),
        (1.0, "epoch", "1 epoch"), (0.5, "epoch", "0.5 epochs"), (1e6, "image", "1,000,000 images"),
    ],
)  # fmt: skip
def test_a_noun_follows_its_number(count: float, noun: str, text: str) -> None:
    assert quantity(count, noun) == text


def test_other_words_may_follow() -> None:
    assert [quantity(count, "image has", "images have") for count in (1, 2)] == ["1 image has", "2 images have"]


def test_a_table_of_one_block_has_one_block() -> None:
    space = small_space()
    one = {"embed_dim": (8,), "num_heads": (1,), "mlp_ratio": (1.0,), "depth": (1,)}
    table: LatencyTable = table_of(space.model_copy(update={"choices": space.choices.model_copy(update=one)}))
    assert "latency: 1 block; subnets of" in "\n".join(latency.summary(table))


def test_one_name_of_a_run_is_one_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["one"]) == 2
    assert "1 run given; give two" in capfd.readouterr().err


def test_an_entry_is_one_entry() -> None:
    with pytest.raises(AutoFormerError, match="num_heads has 1 entry for depth 2"):
        SubnetSpec(2, 8, (1,), (1.0, 1.0))


def test_one_class_has_few_images() -> None:
    rows = [
        {"checksum": str(number), "label": "a" * (1 + (number > 0)), "split": "", "source": ""} for number in range(40)
    ]
    notes = oddities.oddities(rows, [], {}, [])
    assert any(note.startswith("1 of 2 classes has fewer than 20 images: a 1;") for note in notes)


def test_no_length_stands_before_a_plural() -> None:
    """Such as f"{len(images)} images", which is wrong for one: `quantity` is for that."""
    found = []
    for file, tree in TREES.items():
        for text in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
            for value, after in zip(text.values, text.values[1:], strict=False):
                is_length = isinstance(value, ast.FormattedValue) and ast.unparse(value.value).startswith("len(")
                if is_length and isinstance(after, ast.Constant) and PLURAL.match(str(after.value)):
                    found.append(f"{file}:{value.lineno}: {after.value}")
    for template in (ROOT / "components").glob("*/templates/*.j2"):
        lengths = re.findall(r"\| length }}( [^{]*)", template.read_text(encoding="utf-8"))
        found += [f"{template.name}: {after}" for after in lengths if PLURAL.match(after)]
    assert not found
