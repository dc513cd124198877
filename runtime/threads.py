"""How many threads a session may use: physical cores within affinity and container limits."""

import math
import os
from pathlib import Path

from leakyforge.errors import InputError

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CPU_ROOT = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Physical cores that this process may use, at least 1.

    The least of: the distinct physical cores in the process's CPU affinity (sched_getaffinity(2);
    two hyperthreads of one core count once) and the container's CPU quota rounded down (cgroup v2
    `cpu.max`, cgroup v1 `cpu.cfs_quota_us`): a spinning thread above the quota stalls the others.
    """
    cores = physical_cores(os.sched_getaffinity(0))
    return max(1, math.floor(min(cores, cgroup_cpus())))


def check_threads(count: int) -> None:
    """Refuse a number of threads that this process has no CPUs for.

    Raises:
        InputError: fewer than 1, or more than the CPUs of the process's affinity.
    """
    most = len(os.sched_getaffinity(0))
    if not 1 <= count <= most:
        raise InputError(f"threads={count}, but this process may use 1 to {most} CPUs")


def physical_cores(cpus: set[int], root: Path = _CPU_ROOT) -> int:
    """Distinct physical cores among logical CPUs; every CPU counts where sysfs is absent."""
    siblings = set()
    for cpu in cpus:
        topology = root / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        siblings.add(topology.read_text().strip() if topology.is_file() else str(cpu))
    return len(siblings)


def cgroup_cpus(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> float:
    """CPU quota of this process's cgroup and of all above it, in CPUs; infinite without one."""
    quota = math.inf
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "unified" if (root / "unified").is_dir() else root
        elif "cpu" in controllers.split(","):
            mount = root / controllers if (root / controllers).is_dir() else root / "cpu"
        else:
            continue
        # Inside a container the path may be the host's: the mount's root is then the group itself.
        group = mount / path.lstrip("/")
        while True:
            quota = min(quota, _group_quota(group))
            if group == mount:
                break
            group = group.parent
    return quota


def _group_quota(group: Path) -> float:
    """Quota written in one cgroup folder, in CPUs."""
    v2 = group / "cpu.max"
    v1 = group / "cpu.cfs_quota_us"
    if v2.is_file():
        limit, period = v2.read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    if v1.is_file():
        limit_us = int(v1.read_text())
        return (
            math.inf if limit_us <= 0 else limit_us / int((group / "cpu.cfs_period_us").read_text())
        )
    return math.inf
