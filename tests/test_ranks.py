"""Several ranks train what one does: gradients, weights, unused blocks, and steps that are stopped and resumed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from interrupted import Sandbox, sandbox
from processes import ForkServerProcess, at_step, ended, poison, signal_self, start, wait_until
from run_steps import SPACE as FORTY
from run_steps import config_of, contents, run
from together import call_together, run_ranks, start_ranks
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetPass, SubnetSampler, sandwich, uniform
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from runtime.common import exit_codes
from runtime.common.config import load_config
from runtime.common.processes import REPORT_FOLDER
from runtime.common.records import Failure
from runtime.steps import rank_launch as edge
from runtime.steps.training_setup import _trial

__all__ = ["sandbox"]
SPACE = SearchSpace.model_validate(FORTY)
STEP = "train_supernet"
PLAIN: dict[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 0.1}
EVERYTHING: dict[str, Any] = PLAIN | {
    "label_smoothing": 0.1, "drop_path": 0.3, "clip_grad": 1.0, "ema_decay": 0.9,
    "augmentation": {
        "crop_padding": 2, "flip": True, "erase_probability": 0.5, "mixup": 0.8, "cutmix": 1.0, "repeats": 2,
    },
}  # fmt: skip
STEPS = 6
SHALLOW = uniform(SPACE.model_copy(update={"choices": SPACE.choices.model_copy(update={"depth": (1,)})}), 0)


class Watched(torch.optim.SGD):
    """Stores the gradients of its last step. AdamW would amplify the rounding of key biases."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        super().step()


def make_trainer(
    world: World, settings: dict[str, Any], parts: int, sampler: SubnetSampler, sgd: bool = True
) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (96, 1, 28, 28), dtype=torch.uint8, generator=generator)
    split = DecodedSplit(pixels.numpy(), torch.randint(0, 10, (96,), generator=generator).numpy(), [])
    recipe = Recipe.model_validate(settings)
    torch.manual_seed(1 + world.rank)  # rank 0's weights are those that count
    model = Supernet(SPACE, recipe.drop_path)
    images = training_loader(split, recipe, 0, 28, (0.3,), parts, world=world)
    trainer = Trainer(model, sampler, images, 10, (0.3,), (0.3,), recipe, 0)
    if sgd:
        trainer.optimizer = Watched(model.parameters(), lr=0.05, momentum=0.9)  # type: ignore[assignment]
        trainer.scheduler.step_update = lambda step: None
    return trainer


def trained(world: World, settings: dict[str, Any], parts: int, sampler: SubnetSampler) -> dict[str, Any]:
    """Gradients of the first step, weights after some more, the average of these, and the mean loss."""
    trainer = make_trainer(world, settings, parts, sampler)
    first = trainer.advance(1)
    gradients = trainer.optimizer.gradients  # type: ignore[attr-defined]
    loss = (first + trainer.advance(STEPS - 1) * (STEPS - 1)) / STEPS
    weights = [weight.detach() for weight in trainer.model.parameters()]
    averages = [weight.detach() for weight in trainer.averaged.parameters()]
    return {"loss": loss, "gradients": gradients, "weights": weights, "averages": averages}


CASES: dict[str, tuple[dict[str, Any], SubnetSampler]] = {
    "plain": (PLAIN, uniform(SPACE, 0)),
    "everything": (EVERYTHING, uniform(SPACE, 0)),
    "sandwich": (EVERYTHING, sandwich(SPACE, 0)),
    "deep, then shallow": (PLAIN, lambda step: (SubnetPass(SPACE.largest), SubnetPass(SPACE.smallest))),
}


def train_together(world: World, folder: Path) -> None:
    """In each rank: every case, and unused blocks."""
    result = {name: trained(world, settings, 2, sampler) for name, (settings, sampler) in CASES.items()}
    result["muon"] = trained_by_muon(world)
    result["unused"] = unused_blocks(world)
    result["trial"] = trial_of_one_rank(world)
    torch.save(result, folder / f"{world.rank}.pt")


def trained_by_muon(world: World) -> dict[str, torch.Tensor]:
    settings = PLAIN | {"optimizer": "muon", "learning_rate": 1e-3, "clip_grad": 1.0}
    trainer = make_trainer(world, settings, 2, uniform(SPACE, 0), sgd=False)
    trainer.advance(3)
    return trainer.model.state_dict()


def unused_blocks(world: World) -> bool:
    """AdamW: a block that no rank uses keeps its weights and moments, and has no gradient to clip."""
    deep_once: SubnetSampler = lambda step: (SubnetPass(SPACE.largest),) if step == 0 else SHALLOW(step)  # noqa: E731
    trainer = make_trainer(world, PLAIN | {"clip_grad": 1.0}, 2, deep_once, sgd=False)
    trainer.advance(1)
    block = list(trainer.model.get_submodule("blocks.1").parameters())
    before = [parameter.detach().clone() for parameter in block]
    trainer.advance(3)
    state = trainer.optimizer.state
    return all(torch.equal(p, old) and state[p]["step"] == 1 for p, old in zip(block, before, strict=True))


def trial_of_one_rank(world: World) -> list[int]:
    """Rank 0 is out of memory in a backward pass, and tries smaller ones by itself; collectives still match."""
    trainer = make_trainer(world, PLAIN, 2, uniform(SPACE, 0))
    assert trainer.ddp is not None
    trainer.ddp(torch.zeros(2, 1, 28, 28), SPACE.largest)
    training = SimpleNamespace(
        device=trainer.device, space=SPACE, section=trainer.recipe, model=trainer.model,
        largest=lambda images: trainer.model(images, SPACE.largest),
    )  # fmt: skip
    if world.is_rank_zero:
        _trial(training, None)(2)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    return world.all_gather(world.rank)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("together")
    call_together(train_together, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def same(ours: list[Any], theirs: list[Any], tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_two_ranks_are_one_with_twice_the_batch(together: list[dict[str, Any]]) -> None:
    """Nothing random but the subnets: one pass over the whole batch gives the same."""
    one, two = trained(SINGLE_PROCESS, PLAIN, 1, CASES["plain"][1]), together[0]["plain"]
    same(two["gradients"], one["gradients"], 1e-5)
    same(two["weights"], one["weights"], 1e-5)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)


@pytest.mark.parametrize("case", ["everything", "sandwich"])
def test_two_ranks_are_one_with_two_accumulation_steps(together: list[dict[str, Any]], case: str) -> None:
    one, two = trained(SINGLE_PROCESS, CASES[case][0], 2, CASES[case][1]), together[0][case]
    for what in ("gradients", "weights", "averages"):
        same(two[what], one[what], 1e-5)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    other = trained(SINGLE_PROCESS, CASES[case][0], 1, CASES[case][1])  # one micro-batch: other augmentation
    assert abs(other["loss"] - one["loss"]) > 1e-4


def test_all_ranks_hold_the_same_weights_to_the_bit(together: list[dict[str, Any]]) -> None:
    for case in CASES:
        for what in ("weights", "averages"):
            assert all(map(torch.equal, together[0][case][what], together[1][case][what]))


def test_two_ranks_are_one_by_muon_too(together: list[dict[str, Any]]) -> None:
    one, (first, second) = trained_by_muon(SINGLE_PROCESS), (rank["muon"] for rank in together)
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        if not name.endswith("qkv.bias"):  # a key's bias has no gradient but rounding
            torch.testing.assert_close(first[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_blocks_that_only_an_earlier_pass_uses_are_summed_too(together: list[dict[str, Any]]) -> None:
    """The last pass of a step, in which gradients are summed, does not use the deep block."""
    settings, sampler = CASES["deep, then shallow"]
    one = trained(SINGLE_PROCESS, settings, 2, sampler)
    assert all(gradient is not None for gradient in one["gradients"])
    for rank in together:
        same(rank["deep, then shallow"]["gradients"], one["gradients"], 1e-5)


def test_blocks_that_no_rank_uses_stay_as_they_are(together: list[dict[str, Any]]) -> None:
    assert [rank["unused"] for rank in together] == [True, True]


def test_a_trial_of_one_rank_starts_no_collective(together: list[dict[str, Any]]) -> None:
    assert [rank["trial"] for rank in together] == [[0, 1], [0, 1]]


def test_micro_batches_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="3 micro-batches of a step cannot be shared by 2 ranks"):
        make_trainer(World(0, 2), PLAIN | {"batch_size": 24}, 3, uniform(SPACE, 0))


# --- steps ---

KILL, TERM = (partial(signal_self, number) for number in (signal.SIGKILL, signal.SIGTERM))


def test_ranks_that_were_killed_stopped_and_thrown_back_end_in_the_same_weights(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """A weight is infinite before step 24. Rank 1 is killed after step 22; then it alone gets a signal after 33."""
    log, spoilt = tmp_path / "log", {rank: [(poison, 23)] for rank in range(2)}
    whole = sandbox.given(STEP, "whole")
    assert run_ranks(STEP, whole, log, spoilt) == [0, 0]
    assert (tmp_path / "log1").read_text() == ""
    assert sandbox.record(whole)["ranks"] == 2
    assert '"back_to_step": 20' in (Path(whole["--out"]) / "rollbacks.json").read_text()

    given = sandbox.given(STEP, "disturbed")
    began = time.monotonic()
    codes = run_ranks(STEP, given, log, {0: spoilt[0], 1: [*spoilt[1], (at_step, 22, KILL)]})
    assert codes == [exit_codes.LOST, -signal.SIGKILL]
    assert time.monotonic() - began < 60
    assert (tmp_path / "log0").read_text().endswith("rank 0 of 2 has lost its connection to the others\n")
    assert not sandbox.work(STEP, "checkpoint-interrupted.pt")

    assert run_ranks(STEP, given, log, {0: spoilt[0], 1: [*spoilt[1], (at_step, 33, TERM)]}) == [143, 143]
    stopped = torch.load(sandbox.work(STEP, "checkpoint-interrupted.pt")[0], weights_only=True)
    step = stopped["trainer"]["step"]
    assert 33 <= step <= 35 and len(stopped["losses"]) == step - 30
    assert f"stopped by SIGTERM at step {step} of 60" in (tmp_path / "log0").read_text()

    assert run_ranks(STEP, given, log, spoilt) == [0, 0]
    assert sandbox.record(given)["resumed_from_step"] == step
    assert contents(Path(given["--out"])) == contents(Path(whole["--out"]))
    assert sandbox.work(STEP, "*") == []


def test_retraining_in_ranks_is_resumed(sandbox: Sandbox, tmp_path: Path) -> None:
    """Two trainings, between which rank 0 alone scores; a signal comes in the second."""
    step, log = "retrain_subnet", tmp_path / "log"
    whole, given = sandbox.given(step, "whole"), sandbox.given(step, "stopped")
    assert run_ranks(step, whole, log) == [0, 0]
    assert run_ranks(step, given, log, {0: [(at_step, 17, TERM, 1)]}) == [143, 143]
    assert run_ranks(step, given, log) == [0, 0]
    assert contents(Path(given["--out"])) == contents(Path(whole["--out"]))


def children(launcher: ForkServerProcess) -> list[psutil.Process]:
    assert launcher.pid is not None
    return psutil.Process(launcher.pid).children()


@pytest.mark.slow
def test_a_launched_step_survives_a_killed_rank_and_passes_signals_on(sandbox: Sandbox, tmp_path: Path) -> None:
    """Real ranks: restarted after SIGKILL, stopped by SIGTERM, resumed."""
    config = config_of(STEP, epochs=12, seed=4)
    whole, given = sandbox.given(STEP, "whole-4", config), sandbox.given(STEP, "launched", config)
    assert run_ranks(STEP, whole, tmp_path / "log") == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PROCESSES", "2"), ("MAX_RESTARTS", "1"), ("WORKERS", "0")):
            patch.setenv(f"AUTOFORMER_{name}", value)
        launcher = start(STEP, given, tmp_path / "launched")
    try:
        wait_until(lambda: sandbox.work(STEP, "checkpoint.pt"))
        (checkpoint,) = sandbox.work(STEP, "checkpoint.pt")
        (rank,) = [child for child in children(launcher) if child.environ().get("RANK") == "1"]
        rank.kill()
        gone = children(launcher)
        psutil.wait_procs(gone)
        before = checkpoint.stat().st_mtime_ns
        wait_until(lambda: checkpoint.stat().st_mtime_ns != before)
        ranks = children(launcher)
        launcher.terminate()
        assert ended(launcher) == 143
    finally:
        launcher.kill()  # its ranks end, too
    lines = (tmp_path / "launched").read_text().splitlines()
    first, *_, last = [line for line in lines if "images, " not in line]
    assert first == (
        f"{STEP}: rank 1 of 2 was killed by SIGKILL, as where memory runs out; the same command goes on from the last "
        "checkpoint; starting again, 1 of 1"
    )
    assert last.startswith(f"{STEP}: stopped by SIGTERM at step ") and last.endswith(
        "the same command goes on from there"
    )
    assert not any(child.is_running() for child in ranks)
    assert run_ranks(STEP, given, tmp_path / "log") == [0, 0]
    assert contents(Path(given["--out"])) == contents(Path(whole["--out"]))


@pytest.mark.slow
def test_ranks_that_torchrun_restarts_find_each_other(tmp_path: Path) -> None:
    """Its store outlives a restart, and holds the addresses of dead processes."""
    (tmp_path / "gathered.py").write_text(
        """
import os, pathlib, signal
from runtime.common.config import load_config
from runtime.steps.rendezvous import process_group

with process_group(load_config("smoke", ["device=cpu"])) as world:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    assert world.all_gather(world.rank) == [0, 1]
    if first and world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    counts = world.all_gather(os.environ["TORCHELASTIC_RESTART_COUNT"])
    pathlib.Path("gathered", str(world.rank)).write_text(" ".join(counts))
"""
    )
    (tmp_path / "gathered").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = os.environ | {"PYTHONPATH": str(edge.__file__).removesuffix("runtime/steps/rank_launch.py")}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*torchrun, "gathered.py"], cwd=tmp_path, env=environment, check=True, timeout=240)
    assert [(tmp_path / "gathered" / str(rank)).read_text() for rank in (0, 1)] == ["1 1", "1 1"]


def test_a_batch_that_ranks_cannot_share_is_refused_before_any_process_starts(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sandbox.given(STEP, "odd", config_of(STEP, accumulation=2))
    for count, line in (
        ("3", f"{STEP}.batch_size = 50: not a multiple of 6, for 2 forward passes of each of 3 processes; "
              "choose another, or set AUTOFORMER_PROCESSES"),
        ("two", "AUTOFORMER_PROCESSES = two: expected a whole number, 0 or more"),
    ):  # fmt: skip
        monkeypatch.setenv("AUTOFORMER_PROCESSES", count)
        assert run(STEP, given) == 2
        assert capsys.readouterr().err == f"{STEP}: {line}\n"


def test_ranks_report_bad_input_to_the_process_above_them(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REPORT_FOLDER, str(tmp_path))
    given = sandbox.given(STEP, "bad") | {"--card": str(tmp_path / "none.json")}
    assert [ended(process) for process in start_ranks(STEP, given, tmp_path / "log")] == [2, 2]
    reports = edge.read_reports(tmp_path)
    assert [report.code for report in reports] == [2, 2]
    assert (tmp_path / "log0").read_text() == (tmp_path / "log1").read_text() == ""
    failed = edge._failure({0: failure(0, 2), 1: failure(1, 143)}, reports, 2)
    assert str(failed) == f"{tmp_path}/none.json: no such file or folder; it is made by prepare_data"
    assert failed.exit_code == 2


def failure(rank: int, code: int) -> ProcessFailure:
    return ProcessFailure(rank, 1, code, "")


def test_the_first_cause_is_reported_and_not_its_consequences() -> None:
    stopped = Failure(step=STEP, message="stopped by SIGTERM at step 5 of 9", code=143)
    lost = Failure(step=STEP, message="rank 0 of 3 has lost its connection to the others", code=exit_codes.LOST)
    away = Failure(step=STEP, message="s3://a/b: S3 is away", code=exit_codes.UNAVAILABLE)
    for codes, reports, line, code in (
        ([exit_codes.LOST, exit_codes.UNAVAILABLE, -15], [lost, away], "s3://a/b: S3 is away", exit_codes.UNAVAILABLE),
        ([exit_codes.LOST, -9, -15], [lost], "rank 1 of 3 was killed by SIGKILL, as", 137),
        ([143, -11, exit_codes.LOST], [stopped], "rank 1 of 3 was killed by SIGSEGV; ", 139),
        ([143, 143, 1], [stopped], "rank 2 of 3 failed; its traceback stands above", 1),
        ([143, exit_codes.LOST, exit_codes.LOST], [stopped, lost], "stopped by SIGTERM at step 5 of 9", 143),
        ([exit_codes.LOST] * 3, [lost] * 3, "the 3 ranks have lost their connections", exit_codes.LOST),
    ):
        failed = edge._failure({rank: failure(rank, code) for rank, code in enumerate(codes)}, reports, 3)
        assert str(failed).startswith(line) and failed.exit_code == code


def test_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes(device: str) -> int:
        return edge.processes(load_config("smoke", [f"device={device}"], [STEP]))

    assert (processes("cpu"), processes("auto")) == (1, 1)
    monkeypatch.setattr("runtime.common.processes.DRIVERS", ("/",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [processes(device) for device in ("cpu", "auto", "cuda", "cuda:1")] == [1, 4, 4, 1]
    monkeypatch.setenv("AUTOFORMER_PROCESSES", "2")
    assert [processes(device) for device in ("cpu", "auto", "cuda")] == [2, 2, 2]
    with pytest.raises(ValueError, match="AUTOFORMER_PROCESSES = 2: device = cuda:1 is one device"):
        processes("cuda:1")
    monkeypatch.setenv("AUTOFORMER_PROCESSES", "5")
    with pytest.raises(ValueError, match="AUTOFORMER_PROCESSES = 5: this machine has 4 GPUs, one for each process"):
        processes("auto")
