"""Threads and worker processes by the cores that a process may use, under the CPU quotas of both kinds of cgroup."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoformer import cores as module
from autoformer.cores import cores, cpu_quota
from runtime.common.config import ROOT
from runtime.common.processes import set_threads
from runtime.steps.workers import worker_count

V2 = "30 25 0:26 {root} {place} rw,nosuid - cgroup2 cgroup2 rw"
V1 = "32 31 0:29 {root} {place} rw,relatime - cgroup cgroup rw,{controllers}"


def machine(tmp_path: Path, membership: str, mount: str, files: dict[str, str], root: str = "/") -> Path:
    """A folder of /proc and the mounted groups. `files`: path below the mount -> content."""
    process, place = tmp_path / "proc", tmp_path / "sys"
    process.mkdir()
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"{content}\n")
    (process / "cgroup").write_text(f"{membership}\n")
    mounted = mount.format(place=place, root=root, controllers="cpu,cpuacct")
    (process / "mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mounted}\n")
    return process


@pytest.mark.parametrize(
    ("membership", "files", "wanted"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),  # a container sees its own group as the root
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),  # of a group above
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "200000 100000"}, 0.5),
        ("0::/a", {"a/cpu.max": "max 100000"}, None),
        ("0::/../other", {"cpu.max": "max 100000"}, None),
        ("0::/a", {"a/cpu.weight": "100"}, None),
    ],
)
def test_a_quota_of_cgroup_2_is_that_of_the_group_or_a_smaller_one_above(
    membership: str, files: dict[str, str], wanted: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(machine(tmp_path, membership, V2, files)) == wanted


@pytest.mark.parametrize(
    ("membership", "root", "folder", "quota", "wanted"),
    [
        ("4:cpu,cpuacct:/", "/", "", "50000", 0.5),
        ("4:cpu,cpuacct:/docker/1f", "/docker/1f", "", "300000", 3.0),  # as Docker mounts it
        ("4:cpu,cpuacct:/kube/pod", "/", "kube/pod/", "200000", 2.0),
        ("4:cpu,cpuacct:/", "/", "", "-1", None),
        ("4:memory:/", "/", "", "50000", None),
    ],
)
def test_a_quota_of_cgroup_1_is_found_where_its_controller_is_mounted(
    membership: str, root: str, folder: str, quota: str, wanted: float | None, tmp_path: Path
) -> None:
    files = {f"{folder}cpu.cfs_quota_us": quota, f"{folder}cpu.cfs_period_us": "100000"}
    assert cpu_quota(machine(tmp_path, membership, V1, files, root)) == wanted


@pytest.mark.parametrize(
    ("quota", "affinity", "wanted"), [(None, 8, 8), (0.5, 8, 1), (1.5, 8, 2), (6.0, 8, 6), (64.0, 8, 8)]
)
def test_a_cpu_quota_decides_the_number_of_workers_and_threads(
    quota: float | None, affinity: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    monkeypatch.setattr(module, "_affinity", lambda: affinity)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for name in ("OMP_NUM_THREADS", "AUTOFORMER_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    assert cores() == wanted
    assert worker_count(torch.device("cpu")) == wanted // 2
    set_threads(None)
    assert threads == ([wanted] if wanted < affinity else [])
    set_threads(3)
    assert threads[-1] == 3


def test_a_real_group_with_half_a_core_gives_one_thread(tmp_path: Path) -> None:
    """Where this process may make a group of cgroup 1, as root outside of a container."""
    group = Path(f"/sys/fs/cgroup/cpu/autoformer-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid())); "
        code = f"{enter}from autoformer.cores import cores, cpu_quota; print(cpu_quota(), cores())"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "0.5 1\n"
    finally:
        group.rmdir()
