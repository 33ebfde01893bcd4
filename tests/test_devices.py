"""Device, precision, and batch sizes that fit into memory."""

import subprocess
import sys

import pytest
import torch

from autoformer.devices import fewest_micro_batches, find_device, find_precision, halve_on_oom, is_out_of_memory
from autoformer.errors import AutoFormerError
from runtime.common.config import ROOT

NO_GPU = not torch.cuda.is_available()


@pytest.mark.skipif(not NO_GPU, reason="for machines without a GPU")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert find_device("auto") == torch.device("cpu")
    assert find_precision("auto", torch.device("cpu")) == "float32"
    assert find_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    for name in ("cuda", "cuda:3"):
        with pytest.raises(AutoFormerError, match=f"device = {name}: this machine has cpu; set device to"):
            find_device(name)


def memory_of(limit: int, asked: list[int]) -> object:
    def trial(images: int) -> None:
        asked.append(images)
        if images > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    return trial


@pytest.mark.parametrize(
    ("images", "limit", "even", "minimum", "count", "tried"),
    [
        (64, 100, False, 1, 1, [64]),
        (64, 32, False, 1, 2, [64, 32]),
        (64, 20, False, 1, 4, [64, 32, 16]),
        (60, 22, False, 1, 3, [60, 30, 20]),
        (60, 11, True, 1, 6, [60, 30, 20, 12, 10]),  # never 15
        (64, 100, False, 2, 2, [32]),
        (7, 3, False, 1, 7, [7, 1]),
        (6, 0, False, 1, None, [6, 3, 2, 1]),
        (6, 1, True, 1, None, [6, 2]),
    ],
)
def test_as_few_micro_batches_as_memory_allows(
    images: int, limit: int, even: bool, minimum: int, count: int | None, tried: list[int]
) -> None:
    seen: list[int] = []
    found = fewest_micro_batches(memory_of(limit, seen), images, even, minimum)  # type: ignore[arg-type]
    assert (found, seen) == (count, tried)


@pytest.mark.parametrize(("limit", "asked"), [(9, [7]), (4, [7, 4, 3]), (2, [7, 4, 2, 2, 3, 2, 1])])
def test_a_batch_is_halved_until_it_fits(limit: int, asked: list[int]) -> None:
    seen: list[int] = []
    trial = memory_of(limit, seen)

    def work(pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        trial(len(pixels))  # type: ignore[operator]
        return pixels.sum(dim=1), labels + 1

    pixels, labels = torch.arange(14.0).view(7, 2), torch.arange(7)
    sums, more = halve_on_oom(work, pixels, labels)
    assert torch.equal(sums, pixels.sum(dim=1)) and torch.equal(more, labels + 1) and seen == asked


def test_a_single_image_that_does_not_fit_is_an_error() -> None:
    seen: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        halve_on_oom(lambda batch: (memory_of(0, seen)(len(batch)),), torch.zeros(4))  # type: ignore[operator]
    assert seen == [4, 2, 1]
    with pytest.raises(RuntimeError, match="size mismatch"):
        halve_on_oom(_mismatch, torch.zeros(4))


def _mismatch(batch: torch.Tensor) -> tuple[torch.Tensor]:
    raise RuntimeError(f"size mismatch: {len(batch)}")


def test_other_errors_are_no_out_of_memory_errors() -> None:
    def trial(images: int) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        fewest_micro_batches(trial, 4)
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("out of memory"))


PROBE = """
import resource, torch
from autoformer.devices import fewest_micro_batches
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
print(fewest_micro_batches(lambda images: torch.zeros(images, 10 * 2**18), 64))  # 10 MiB an image
"""


def test_real_out_of_memory_is_recognised_on_the_cpu() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"  # 64 images take 640 MiB, 32 take 320
