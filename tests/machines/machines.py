"""The machines: one row each of what it is made from and how QEMU runs it.

A machine has a kernel and a root from Debian packages of its own architecture, and no disk: the root is an initramfs, the
project and a work folder come over virtio-9p.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOT_PACKAGES = ("python3-minimal", "libpython3-stdlib", "busybox-static")
NINE_P = ("virtio_pci", "9pnet_virtio", "9p")


@dataclass(frozen=True)
class Machine:
    """One kind of machine."""

    name: str
    """What Debian calls the architecture."""
    suite: str
    kernel: str
    """The package that depends on the newest kernel image."""
    qemu: tuple[str, ...]
    """QEMU's program, machine and CPU."""
    compilers: dict[int, tuple[str, ...]]
    """By the width of its programs in bits: the compiler that builds them on an amd64 host."""
    packages: tuple[str, ...] = ROOT_PACKAGES
    modules: tuple[str, ...] = NINE_P
    """Kernel modules to load at the start; those they depend on are found."""
    console: str = "ttyS0"
    transport: str = "pci"
    """virtio-9p-PCI is the device behind which the shared folders are."""
    memory: int = 1024
    """MiB."""


# -cpu max: all that QEMU can do, AVX2 among it. One CPU each: two of them slow each other down where QEMU translates.
MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            name="amd64",
            suite="bookworm",
            kernel="linux-image-amd64",
            qemu=("qemu-system-x86_64", "-machine", "pc", "-cpu", "max"),
            compilers={64: ("gcc", "-m64"), 32: ("gcc", "-m32", "-idirafter", "/usr/include/x86_64-linux-gnu")},
            packages=(*ROOT_PACKAGES, "libc6-i386"),
        ),
        Machine(
            name="i386",
            suite="bookworm",
            kernel="linux-image-686-pae",
            qemu=("qemu-system-i386", "-machine", "pc", "-cpu", "max"),
            compilers={32: ("gcc", "-m32", "-idirafter", "/usr/include/x86_64-linux-gnu")},
        ),
    )
}
