"""Finished machines, kept outside the tree: a second run builds nothing.

They are under $TORPOR_MACHINES_CACHE, else $XDG_CACHE_HOME/torpor/machines, else ~/.cache/torpor/machines. A machine is known by
a hash of what its row in the table says of its kernel and root, and of the files of this directory that make these; its packages'
versions are those of the day on which it was made, and `made-from` beside it names them. What a machine's kernel and root were
built into (sources.py) is kept in the same way, with the builds' log.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.machines import initramfs, packages, sources
from tests.machines.machines import Machine
from tests.settings import ROOT

HERE = Path(__file__).resolve().parent
MAKERS = ("packages.py", "initramfs.py", "images.py", "init.py")
Parts = tuple[bytes, initramfs.Tree, list[Path]]
"""A kernel, a root, and the files that they were made from."""


@dataclass(frozen=True)
class Image:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path


def cache() -> Path:
    """The directory that holds everything that can be used again."""
    named = os.environ.get("TORPOR_MACHINES_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torpor" / "machines"
    return Path(named).resolve() if named else usual  # apt takes a relative path as relative to one of its own


def built(machine: Machine) -> tuple[Path, Path]:
    """The kernel and the root of a machine that Debian has no packages for: a copy beside the project, else one built here."""
    copy = sources.files(machine, ROOT.parent / "shared" / "machines")
    if all(file.exists() for file in copy):
        return copy
    made_from = (machine.suite, machine.kernel, machine.compilers, sources.configuration(machine))
    key = hashlib.sha256(repr(made_from).encode() + (HERE / "sources.py").read_bytes()).hexdigest()[:16]
    # A lock of its own: who only fetches packages need not wait until this is over.
    directory = _once(f"built-{machine.name}", key, "lock-built", lambda directory: sources.build(machine, cache(), directory))
    return sources.files(machine, directory)


def image(machine: Machine) -> Image:
    """The kernel and the root of `machine`, made if they are not there. Raises FetchFailure, CannotBuild, BuildFailure, OSError."""
    made_from = (machine.suite, machine.kernel, machine.packages, machine.modules)
    key = hashlib.sha256(repr(made_from).encode())
    parts = partial(_from_packages, machine)  # a build is over before the lock is taken for which all others wait
    if machine.built:
        files = built(machine)
        key.update("".join(f"{file.stat().st_size} {file.stat().st_mtime_ns} " for file in files).encode())
        parts = partial(_from_files, *files)
    for name in MAKERS:
        key.update((HERE / name).read_bytes())
    directory = _once(machine.name, key.hexdigest()[:16], "lock", lambda directory: _make(parts, directory))
    return Image(directory / "kernel", directory / "initramfs")


def _once(name: str, key: str, lock: str, make: Callable[[Path], None]) -> Path:
    """The directory NAME-KEY of the cache, which `make` fills if it is not there; what `name` was before is deleted."""
    directory = cache() / f"{name}-{key}"
    if directory.exists():
        return directory
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two runs at once one makes it, the other waits
        if not directory.exists():
            for old in cache().glob(f"{name}-{'?' * 16}*"):
                shutil.rmtree(old)
            part = directory.with_name(f"{directory.name}.part")
            part.mkdir()
            make(part)
            part.rename(directory)
    return directory


def _make(parts: Callable[[], Parts], directory: Path) -> None:
    kernel, tree, made_from = parts()
    tree |= initramfs.compiled(tree)
    tree["init"] = initramfs.Node(stat.S_IFREG | 0o755, (HERE / "init.py").read_bytes())
    for name, number in (("console", (5, 1)), ("urandom", (1, 9))):  # what Python needs before it has mounted /dev
        tree[f"dev/{name}"] = initramfs.Node(stat.S_IFCHR | 0o600, device=number)
    (directory / "kernel").write_bytes(kernel)
    with (directory / "initramfs").open("wb") as file:
        initramfs.write_cpio(tree, file)
    (directory / "made-from").write_text("\n".join(file.name for file in made_from) + "\n")


def _from_packages(machine: Machine) -> Parts:
    apt = packages.Apt(machine.name, machine.suite, cache() / "apt" / f"{machine.suite}-{machine.name}", cache() / "packages")
    kernel_package = apt.fetch_kernel(machine.kernel)
    fetched = apt.fetch(machine.packages)
    kernel, modules = initramfs.kernel(kernel_package, machine.modules)
    tree = initramfs.root(fetched)
    for number, (name, data) in enumerate(modules):  # the numbers are the order in which they can be loaded
        tree[f"modules/{number:02}-{name}.ko"] = initramfs.Node(stat.S_IFREG | 0o644, data)
    return kernel, tree, [kernel_package, *fetched]


def _from_files(kernel: Path, root: Path) -> Parts:
    with tarfile.open(root) as archive:
        tree = dict(initramfs.members(archive))
    return lzma.decompress(kernel.read_bytes()), tree, [kernel, root]
