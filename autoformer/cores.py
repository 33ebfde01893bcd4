"""CPU cores that this process may use: those of its affinity, or fewer if its control group has a CPU quota.

A container with a CPU limit (`docker run --cpus`, `limits.cpu` in Kubernetes) sees all cores of its machine. One thread
per core would use up the quota at once, and all of them would then wait.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cores() -> int:
    """Cores that this process may use; a part of a core counts as one."""
    quota = cpu_quota()
    return _affinity() if quota is None else max(1, min(_affinity(), math.ceil(quota)))


def is_limited() -> bool:
    """Whether a quota allows fewer cores than the affinity."""
    return cores() < _affinity()


def cpu_quota(process: Path = Path("/proc/self")) -> float | None:
    """The smallest quota of the control groups that this process is in, in cores; None without one.

    Args:
        process: its folder in /proc.
    """
    try:
        memberships = (process / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (process / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    groups: dict[str, str] = {}  # "" is version 2
    for line in memberships:
        _, controllers, group = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), group)
    quotas = [quota for line in mounts for folder in _folders(line, groups) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _folders(mount: str, groups: dict[str, str]) -> Iterator[Path]:
    """The folders of this process's group and of those above it, if the line of mountinfo mounts their controller."""
    before, _, after = mount.partition(" - ")
    kind, _, options = after.split(" ", 2)
    controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
    if controller is None or controller not in groups or (controller and controller not in options.split(",")):
        return
    root, place = before.split(" ")[3:5]
    # a container may see the group by its path on the machine, while its own group is the root of the mount
    group = groups[controller].removeprefix(root if root != "/" else "").strip("/")
    folder = Path(place) / group
    yield from (above for above in (folder, *folder.parents) if above.is_relative_to(place))


def _quota(folder: Path) -> float | None:
    """Cores, from version 2's `cpu.max` or version 1's `cpu.cfs_quota_us`."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # no such group here; "max", which is no limit
        return None


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
