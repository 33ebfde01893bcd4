"""What the tests of interrupted steps share: a sandbox with all that the steps read, and the undisturbed results."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from run_steps import arguments, config_of, contents, run, run_all
from tiny import TinyData

# 60 and twice 30 optimiser steps: a row every 5, a checkpoint every 10
CONFIGS = {"train_supernet": config_of("train_supernet"), "retrain_subnet": config_of("retrain_subnet"),
           "search_subnet": config_of("search_subnet")}  # fmt: skip


class Sandbox:
    """A folder with the results that steps read, and the work in progress of those that are interrupted."""

    def __init__(self, data: TinyData, root: Path) -> None:
        self.data, self.root = data, root

    def given(self, step: str, name: str, config: str | None = None) -> dict[str, str]:
        return arguments(step, self.data, self.root / "made", self.root / name, config or CONFIGS[step])

    def work(self, step: str, file: str) -> list[Path]:
        return list((self.root / "work" / step).glob(f"*/{file}"))

    @cache  # noqa: B019 - as long as the tests of a file
    def undisturbed(self, step: str, config: str | None = None) -> dict[str, bytes]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUTOFORMER_WORK", str(self.root / "other-work"))
            patch.setenv("AUTOFORMER_TRACKING", "off")
            out = self.root / f"{step}-undisturbed-{abs(hash(config))}"
            given = arguments(step, self.data, self.root / "made", out, config or CONFIGS[step])
            assert run(step, given) == 0
        return contents(out)

    def record(self, given: dict[str, str]) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(Path(given["--record"]).read_text())
        return values


@pytest.fixture(scope="module")
def sandbox(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    root = tmp_path_factory.mktemp("interrupted")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_WORK", str(root / "work"))
        patch.setenv("AUTOFORMER_TRACKING", "off")
        run_all(tiny_data, root / "made")
        yield Sandbox(tiny_data, root)
    torch.set_num_threads(threads)
