"""The six steps with all that they read, in one folder with one MLflow store; and what must hold after a fault."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import processes
import psutil
import pytest
from processes import Event, ended, register_quickly, start
from run_steps import SPACE, arguments, config_of, contents, run, run_all
from test_register_model import NAME, Made
from tiny import TinyData
from tracking_fixtures import make_empty_store, use_store
from user_images import class_folders
from write_boundaries import at_boundary, boundaries

from autoformer import export
from autoformer.checkpoint import load_subnet
from autoformer.files import is_leftover
from autoformer.space import SearchSpace
from commands.own_images import propose_run
from components.register_model import latency
from runtime import tracking
from runtime.common.code import step_code
from runtime.common.config import STEPS, load_config
from runtime.tracking.experiments import EXPERIMENT

processes.PRELOADED += [  # all that the steps import later: they are forked hundreds of times
    "write_boundaries", "components.prepare_data.step", "components.evaluate_subnet.measure",
    "components.evaluate_subnet.report", "components.evaluate_subnet.step", "components.register_model.step",
    "autoformer.export", "autoformer.predict", "mlflow.pyfunc", "mlflow.models.display_utils",
    "mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.tracing.processor.otel", "mlflow.tracing.processor.base_mlflow",
    "mlflow.tracing.processor.otel_metrics_mixin", "sqlalchemy.dialects.sqlite", "alembic.command",
]  # fmt: skip
Row = Callable[[str, str, int], None]  # adds a row to the table: the part, the fault, the number of times
Moment = Literal["not killed", "before", "after its run"]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
ORPHAN_SECONDS = 15.0  # for a loader's worker to notice that its parent is gone
# Two checkpoints of each training, and a search of two generations
SHORT: dict[str, dict[str, Any]] = {
    "train_supernet": {"epochs": 2}, "retrain_subnet": {"epochs": 2, "scratch_reference": False}, "search_subnet": {},
}  # fmt: skip


class Models(NamedTuple):
    """What registrations start from: a store with a champion of 88 %, models of two other accuracies, their program."""

    store: Path
    better: Made
    worse: Made
    program: Path


class House:
    """A folder `root` for the outputs; `made` and `models` are what steps read."""

    def __init__(self, data: TinyData, root: Path, empty_store: Path) -> None:
        self.data, self.root = data, root
        shutil.copyfile(empty_store, root / "mlflow.db")
        run_all(data, root / "made")
        proposal = propose_run(class_folders(root / "photos", 20, 20), None, [], root / "packs")
        self._photos = {
            "--config": load_config("photos", proposal.overrides).step_json("prepare_data"),
            "--data": str(proposal.data),
        }
        assert run("evaluate_subnet", self.given("evaluate_subnet", "made", out="evaluation")) == 0
        self._empty_store = empty_store
        self._expected: dict[str, dict[str, bytes]] = {}

    @cached_property
    def models(self) -> Models:
        folder = self.root / "models"
        first, better, worse = (
            Made(folder / str(seed), seed, top1_percent, SearchSpace.model_validate(SPACE))
            for seed, top1_percent in enumerate((88.0, 90.0, 85.0))
        )
        shutil.copyfile(self._empty_store, folder / "mlflow.db")
        with self.store(folder / "mlflow.db"):
            assert first.register()[0] == 0
        export.export_program(load_subnet(better.model).model, folder / "program.pt2")
        return Models(folder / "mlflow.db", better, worse, folder / "program.pt2")

    @contextmanager
    def store(self, file: Path) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            use_store(f"sqlite:///{file}", self.root / "work", patch)
            yield

    @contextmanager
    def own_store(self, name: str) -> Iterator[None]:
        """A copy of the store with the champion, for one registration."""
        file = self.root / f"{name}.db"
        shutil.copyfile(self.models.store, file)
        with self.store(file), self.experiment(name), pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "export_program", export.export_program)
            patch.setattr(latency, "MOST_PASSES", latency.MOST_PASSES)
            register_quickly(str(self.models.program))
            yield

    def given(self, step: str, name: str, out: str = "out", seed: int = 0) -> dict[str, str]:
        """The step's arguments; all that it writes is below `root/name`."""
        folder = self.root / name
        if step == "prepare_data":
            splits = {f"--{split}-split": str(folder / f"{split}.parquet") for split in ("train", "search", "test")}
            splits["--train-full-split"] = str(folder / "train_full.parquet")
            return self._photos | splits | {f"--{key}": str(folder / f"{key}.json") for key in ("card", "record")}
        if step == "evaluate_subnet":
            config = json.loads(config_of("train_supernet", seed)) | {"evaluate_subnet": {"batch_size": 50}}
            del config["train_supernet"]
            paths = {"data": self.data.data, "card": self.data.card_path, "test-split": self.data.test}
            paths |= {made: self.root / "made" / made for made in ("supernet", "search", "retrain")}
            values = {f"--{key}": str(path) for key, path in paths.items()} | {"--config": json.dumps(config)}
            return values | {"--out": str(folder / out), "--record": str(folder / "run.json")}
        config = config_of(step, seed, **SHORT[step])
        return arguments(step, self.data, self.root / "made", folder / out, config)

    @contextmanager
    def experiment(self, name: str) -> Iterator[None]:
        """An MLflow experiment of its own: a repeated step would resume the run of its equal."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_EXPERIMENT_NAME", name)
            yield

    def registration(self, name: str, made: Made) -> dict[str, str]:
        files = {"out": "registration.json", "record": "run.json", "model-card": "model_card.md"}
        values = {f"--{key}": str(self.root / name / file) for key, file in files.items()}
        values |= {f"--{folder}": str(made.root / folder) for folder in ("supernet", "search", "retrain", "evaluation")}
        settings = f"register_model.model_name={NAME} register_model.min_top1_percent=80"
        return values | {"--card": str(made.root / "card.json"), "--config": "smoke", "--set": settings}

    def expected(self, step: str, seed: int = 0) -> dict[str, bytes]:
        """What an undisturbed run writes."""
        key = f"{step}-{seed}-undisturbed"
        if key not in self._expected:
            given = self.given(step, key, seed=seed)
            with self.experiment(key):
                assert run(step, given) == 0
            self._expected[key] = results(given)
        return self._expected[key]

    def holds(self, step: str, given: dict[str, str], seed: int = 0) -> None:
        """The same command gives the same bytes and leaves nothing unfinished; the step has one run, finished."""
        step_code.cache_clear()  # as in a new process
        assert run(step, given) == 0
        left = leftovers(self.root, given)
        assert left == [], left
        found, expected = results(given), self.expected(step, seed)
        assert found == expected, [name for name in found.keys() | expected if found.get(name) != expected.get(name)]
        assert step_runs(step) == ["FINISHED"]

    def survives_a_kill(self, step: str, number: int, log: Path, database: bool = False) -> Moment:
        """Kill the step at a boundary, and see that its command holds."""
        name = f"{step}-{number}"
        given = self.given(step, name)
        try:
            with self.experiment(name):
                if not kill_at(number, step, given, self.root, log, database=database):
                    return "not killed"
                moment: Moment = "after its run" if step_runs(step) == ["FINISHED"] else "before"
                self.holds(step, given)
                return moment
        finally:
            shutil.rmtree(self.root / name)
            shutil.rmtree(self.root / "work" / step, ignore_errors=True)


@pytest.fixture(scope="module")
def house(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        use_store(f"sqlite:///{root / 'mlflow.db'}", root / "work", patch)
        patch.chdir(root)  # MLflow puts artifacts there
        yield House(tiny_data, root, make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store"))


def results(given: dict[str, str]) -> dict[str, bytes]:
    """All that a step has written but its record."""
    record = Path(given["--record"])
    return {name: content for name, content in contents(record.parent).items() if name != record.name}


def leftovers(root: Path, given: dict[str, str]) -> list[str]:
    """Unfinished files and locks beside a step's results, and work in progress of any step."""
    folder = Path(given["--record"]).parent
    named = [str(path) for path in folder.rglob(".*") if is_leftover(path.name) or path.suffix == ".lock"]
    return named + [str(path) for step in STEPS for path in (root / "work" / step).glob("*")]


def step_runs(step: str) -> list[str]:
    """The statuses of a step's MLflow runs in the experiment and the store that the environment names."""
    client = tracking.initialise(tracking.tracking_uri())
    experiment = client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
    found = client.search_runs([experiment.experiment_id], f"tags.stage = '{step}'") if experiment else []
    return [each.info.status for each in found]


def champion() -> tuple[list[str], str, float]:
    """The versions, and the version and accuracy of the champion."""
    client = tracking.initialise(tracking.tracking_uri())
    holder = tracking.aliased_version(NAME, "champion")
    assert holder is not None
    versions = sorted(str(found.version) for found in client.search_model_versions(f"name = '{NAME}'"))
    return versions, str(holder.version), float(holder.tags["test_top1_percent"])


def count_boundaries(
    step: str, given: dict[str, str], root: Path, log: Path, *events: Event, database: bool = False
) -> list[str]:
    """The boundaries of an undisturbed run."""
    counted = log.with_suffix(".boundaries")
    code = ended(start(step, given, log, *events, (at_boundary, 0, str(root), str(counted), False, database)))
    assert code == 0, log.read_text()
    return boundaries(counted)


def kill_at(
    number: int, step: str, given: dict[str, str], root: Path, log: Path, *events: Event, database: bool = False
) -> bool:
    """Whether it was killed: threads make some boundaries more or fewer, so that it may have ended before."""
    event: Event = (at_boundary, number, str(root), str(log.with_suffix(".boundaries")), number % 2 == 1, database)
    code = ended(start(step, given, log, *events, event))
    assert code in (0, -signal.SIGKILL), log.read_text()
    return code != 0


def signalled(number: int, seconds: float, step: str, given: dict[str, str], log: Path) -> int:
    """Signal a step after so many seconds; its exit code. No process of it is left."""
    process = start(step, given, log)
    time.sleep(seconds)
    assert process.pid
    family = psutil.Process(process.pid).children(recursive=True) if psutil.pid_exists(process.pid) else []
    if process.is_alive():
        os.kill(process.pid, number)
    code = ended(process)
    _, alive = psutil.wait_procs(family, timeout=ORPHAN_SECONDS)
    assert alive == [], f"{step} left {alive}"
    return code
