"""Roots and kernels out of Debian packages, as what a boot loader takes: a cpio archive and a kernel image.

Nothing is unpacked onto a disk, so neither root nor a device is needed to make one (Documentation/driver-api/early-userspace/
buffer-format.rst in the kernel's source has the format).
"""

from __future__ import annotations

import importlib.util
import lzma
import marshal
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MERGED = ("bin", "sbin", "lib", "lib32", "lib64")
"""In Debian these are links into /usr, whatever a package calls them."""
LEFT_OUT = re.compile(
    r"usr/share/|usr/lib/[^/]+/(gconv|perl|perl-base|engines-3|ossl-modules)/|"
    r"usr/lib/python3[.\d]*/(config-|ensurepip|idlelib|lib2to3|pydoc_data|test|tkinter|turtledemo)"
)
UNCHECKED = (1).to_bytes(4, "little")  # the flags of a compiled file, PEP 552


@dataclass
class Node:
    """A file of the root: `data` is its content, or where a symbolic link points to. `mtime` in seconds."""

    mode: int
    data: bytes = b""
    mtime: int = 0
    device: tuple[int, int] = (0, 0)
    """Major and minor number."""


Tree = dict[str, Node]


def contents(package: Path) -> Iterator[tuple[str, Node]]:
    """Every file and symbolic link in a package; a hard link comes as a file of its own."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            yield from members(archive)
    if process.returncode:
        raise RuntimeError(f"{package}: dpkg-deb failed with {process.returncode}")


def members(archive: tarfile.TarFile) -> Iterator[tuple[str, Node]]:
    """The same of an open tar archive."""
    seen: Tree = {}
    for member in archive:
        name = member.name.removeprefix("./")
        if member.issym():
            yield name, Node(stat.S_IFLNK | 0o777, member.linkname.encode(), int(member.mtime))
        elif member.islnk():
            yield name, seen[member.linkname.removeprefix("./")]
        elif member.isfile():
            file = archive.extractfile(member)
            assert file is not None
            seen[name] = Node(stat.S_IFREG | member.mode, file.read(), int(member.mtime))
            yield name, seen[name]


def root(packages: Sequence[Path]) -> Tree:
    """The files of all `packages`, under their merged names, but for those that no test needs."""
    tree: Tree = {}
    for package in packages:
        for name, node in contents(package):
            first = name.split("/", 1)[0]
            merged = f"usr/{name}" if first in MERGED else name
            if not LEFT_OUT.match(merged):
                tree[merged] = node
    for name in MERGED:
        if any(each.startswith(f"usr/{name}/") for each in tree):
            tree[name] = Node(stat.S_IFLNK | 0o777, f"usr/{name}".encode())
    return tree


def compiled(tree: Tree) -> Tree:
    """Python's library in `tree` as this Python compiles it, to be found under /pycache; nothing if that is of another version.

    Where QEMU translates, a guest would compile for some seconds at every boot. The files are not compared with the sources again:
    these stay as they are (importlib, "unchecked hash-based").
    """
    library = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/"
    found = {}
    for name, node in tree.items():
        if name.startswith(library) and name.endswith(".py") and stat.S_ISREG(node.mode):
            code = compile(node.data, f"/{name}", "exec", dont_inherit=True)
            head = importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(node.data)
            name = f"pycache/{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
            found[name] = Node(stat.S_IFREG | 0o644, head + marshal.dumps(code))
    return found


def kernel(package: Path, wanted: Sequence[str]) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The kernel image in `package`, and the modules `wanted` after those they depend on, as (name, content).

    What is built into the kernel is no module of it; a name that is neither gives LookupError.
    """
    image, builtin = b"", ""
    files: dict[str, bytes] = {}
    for name, node in contents(package):
        if name.startswith("boot/vmlinu"):
            image = node.data
        elif name.endswith("/modules.builtin"):
            builtin = node.data.decode()
        elif ".ko" in name and stat.S_ISREG(node.mode):
            files[_module_name(name)] = node.data
    inside = {_module_name(line) for line in builtin.splitlines()}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in inside or name in ordered:
            return
        if name not in files:
            raise LookupError(f"{package.name}: no module {name}")
        data = lzma.decompress(files[name]) if files[name].startswith(b"\xfd7zXZ") else files[name]
        depends = re.search(rb"\0depends=([^\0]*)\0", data)  # .modinfo, as modinfo(8) shows it
        for other in depends[1].decode().split(",") if depends and depends[1] else []:
            add(other.replace("-", "_"))
        ordered[name] = data

    for name in wanted:
        add(name)
    return image, list(ordered.items())


def _module_name(path: str) -> str:
    return Path(path).name.split(".", 1)[0].replace("-", "_")


def write_cpio(tree: Tree, out: BinaryIO) -> None:
    """Write `tree` as a "newc" cpio archive, with the directories it needs, all owned by root."""
    directories = {str(parent) for name in tree for parent in Path(name).parents} - {"."}
    everything = {name: Node(stat.S_IFDIR | 0o755) for name in directories} | tree
    for number, name in enumerate(sorted(everything), 1):  # sorted: every directory comes before what is in it
        _write_entry(out, number, name, everything[name])
    _write_entry(out, 0, "TRAILER!!!", Node(0))


def _write_entry(out: BinaryIO, inode: int, name: str, node: Node) -> None:
    encoded = name.encode() + b"\0"
    fields = (inode, node.mode, 0, 0, 1, node.mtime, len(node.data), 0, 0, *node.device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out.write(head + bytes(-len(head) % 4) + node.data + bytes(-len(node.data) % 4))
