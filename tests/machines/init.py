#!/usr/bin/python3 -Xpycache_prefix=/pycache
"""The first process of a machine (tests/machines): mounts what it needs, runs the cases and restarts, at which QEMU ends.

It is copied into the root as /init, so it imports nothing of the project. In /pycache Python finds its library compiled, if the one
that made the root was of its version (initramfs.py), and leaves what it compiles itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import traceback
from pathlib import Path

RB_AUTOBOOT = 0x01234567  # linux/reboot.h
MS_RDONLY = 1
NINE_P = "trans=virtio,version=9p2000.L,msize=512000,access=any"

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def cpu_model() -> str:
    """As /proc/cpuinfo calls it; the architectures have lines of their own for that, or none."""
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in lines.items()}
    for key in ("model name", "cpu", "processor 0"):
        if key in known:
            return known[key]
    return platform.machine()


def main() -> None:
    os.umask(0o022)
    mount("proc", "/proc", "proc")
    mount("dev", "/dev", "devtmpfs")
    mount("sys", "/sys", "sysfs")
    mount("pts", "/dev/pts", "devpts")
    for directory in ("/dev/shm", "/run", "/tmp"):
        mount("tmp", directory, "tmpfs")
    for directory in ("/root", "/var/tmp"):
        os.makedirs(directory, exist_ok=True)
    os.environ.clear()
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8", TERM="dumb")
    if os.path.exists("/bin/busybox"):
        subprocess.run(["/bin/busybox", "--install", "-s", "/usr/bin"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for module in sorted(Path("/modules").glob("*.ko")):
        subprocess.run(["insmod", module], check=True)
    mount("project", "/project", "9p", MS_RDONLY, f"{NINE_P},cache=loose")
    mount("work", "/work", "9p", 0, NINE_P)
    booted = {"kernel": platform.release(), "machine": platform.machine(), "cpu": cpu_model()}
    Path("/work/booted.part").write_text(json.dumps(booted))
    os.rename("/work/booted.part", "/work/booted")
    job = json.loads(Path("/work/job").read_text())
    os.environ.update(
        TORPOR_TEST_SEED=str(job["seed"]), PYTHONPATH="/project/src:/project", PYTHONPYCACHEPREFIX="/pycache", TMPDIR="/tmp"
    )
    done = subprocess.run([sys.executable, "-m", "tests.machines.guest"], cwd="/project")
    print(f"the cases have ended with {done.returncode}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os.sync()
    libc.reboot(RB_AUTOBOOT)
