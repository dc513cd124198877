"""How many cores are usable: fake trees of sysfs and cgroups, and real affinity."""

import math
import os

import pytest

from leakyforge.runtime import threads

CPUS = sorted(os.sched_getaffinity(0))


def tree(root, contents):
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def siblings(cpus):
    return {f"cpu{cpu}/topology/thread_siblings_list": text for cpu, text in cpus.items()}


@pytest.mark.parametrize(
    ("cpus", "cores"),
    [({0}, 1), ({0, 4}, 1), ({0, 1}, 2), ({0, 1, 2, 3}, 4), (set(range(8)), 4), ({3, 7, 2}, 2)],
)
def test_hyperthreads_count_once(tmp_path, cpus, cores):
    root = tree(tmp_path, siblings({cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}))
    assert threads.physical_cores(cpus, root) == cores


def test_every_cpu_counts_without_topology(tmp_path):
    assert threads.physical_cores({0, 1, 5}, tmp_path) == 3


# files of the cgroup tree, /proc/self/cgroup, CPUs
CGROUPS = {
    "no cgroups": ({}, None, math.inf),
    "v2 without a limit": ({"a/cpu.max": "max 100000"}, "0::/a", math.inf),
    "v2": ({"a/cpu.max": "250000 100000"}, "0::/a", 2.5),
    "v2 below one": ({"a/cpu.max": "50000 100000"}, "0::/a", 0.5),
    "v2 in a container, where the mount is the group": ({"cpu.max": "300000 100000"}, "0::/", 3),
    "v2 with a path from outside": ({"cpu.max": "300000 100000"}, "0::/docker/abc", 3),
    "v2 below the container's root": ({"cpu.max": "300000 100000"}, "0::/../..", 3),
    "v2 nested, outer is less": (
        {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "4 1"},
        "0::/a/b/c",
        1.5,
    ),
    "v2 nested, inner is less": (
        {"a/cpu.max": "400000 100000", "a/b/cpu.max": "100000 50000"},
        "0::/a/b",
        2,
    ),
    "v2 of another group": ({"other/cpu.max": "100000 100000"}, "0::/a", math.inf),
    "v1": (
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        "9:memory:/a\n4:cpu,cpuacct:/a\n1:name=systemd:/a",
        1.5,
    ),
    "v1 under the short name": (
        {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "50000"},
        "4:cpu,cpuacct:/a",
        3,
    ),
    "v1 without a limit": (
        {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
        "4:cpu:/a",
        math.inf,
    ),
    "v1, outer is less": (
        {
            "cpu/a/cpu.cfs_quota_us": "100000",
            "cpu/a/cpu.cfs_period_us": "100000",
            "cpu/a/b/cpu.cfs_quota_us": "900000",
            "cpu/a/b/cpu.cfs_period_us": "100000",
        },
        "4:cpu:/a/b",
        1,
    ),
    "v1 and v2 beside each other": (
        {
            "unified/a/cpu.max": "max 100000",
            "cpu/a/cpu.cfs_quota_us": "200000",
            "cpu/a/cpu.cfs_period_us": "100000",
        },
        "4:cpu:/a\n0::/a",
        2,
    ),
    "v1 cpuset is no quota": ({"cpuset/a/cpu.cfs_quota_us": "1"}, "4:cpuset:/a", math.inf),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_quota(tmp_path, name):
    contents, membership, expected = CGROUPS[name]
    root = tree(tmp_path / "fs", contents)
    file = tmp_path / "membership"
    if membership is not None:
        file.write_text(membership + "\n")
    assert threads.cgroup_cpus(root, file) == expected


@pytest.mark.parametrize(
    ("cores", "quota", "usable"),
    [(8, math.inf, 8), (8, 2.9, 2), (2, 8, 2), (4, 0.3, 1), (1, math.inf, 1)],
)
def test_least_of_cores_and_quota(monkeypatch, cores, quota, usable):
    monkeypatch.setattr(threads, "physical_cores", lambda _cpus: cores)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: quota)
    result = threads.usable_cores()
    assert result == usable
    assert isinstance(result, int)


@pytest.mark.parametrize("count", range(1, min(len(CPUS), 4) + 1))
def test_affinity(run_python, count):
    script = """
import os, sys
from leakyforge.runtime.threads import physical_cores, usable_cores
os.sched_setaffinity(0, set(map(int, sys.argv[1:])))
print(usable_cores(), physical_cores(os.sched_getaffinity(0)))
"""
    usable, physical = map(int, run_python(script, *CPUS[:count]).split())
    assert 1 <= usable <= physical <= count
    assert physical == threads.physical_cores(set(CPUS[:count]))
