"""How much memory a process may still take: /proc/meminfo (proc_meminfo(5)) and the limits of its control groups (cgroups(7)).

    headroom.available(pid)         bytes, 0 if the process is gone
"""

from __future__ import annotations

ROOT = "/sys/fs/cgroup"


def available(pid: int) -> int:
    """Bytes that process `pid` may take before the machine or one of its control groups has no more.

    What the kernel would give back for it (pages of files) counts.
    """
    room = _of_machine()
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            room = min(room, _of_groups(ROOT, path, "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            room = min(room, _of_groups(f"{ROOT}/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    return room


def _of_machine() -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def _of_groups(mount: str, path: str, limit: str, usage: str) -> int:
    """The least that is left in a control group and those it is part of, as far as these can be seen from here."""
    room = 1 << 63
    while path.startswith("/"):
        most, used = _number(f"{mount}{path}/{limit}"), _number(f"{mount}{path}/{usage}")
        if most >= 0 and used >= 0:
            # Pages of files are part of the usage, and given back first.
            room = min(room, max(0, most - used) + _file_pages(f"{mount}{path}/memory.stat"))
        if path == "/":
            break
        path = path.rpartition("/")[0] or "/"
    return room


def _number(file: str) -> int:
    """-1: there is none, or it is "max"."""
    try:
        with open(file) as opened:
            return int(opened.read())
    except (OSError, ValueError):
        return -1


def _file_pages(file: str) -> int:
    try:
        with open(file) as opened:
            return sum(int(line.split()[1]) for line in opened if line.startswith("inactive_file "))
    except OSError:
        return 0
