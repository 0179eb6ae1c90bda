"""The machines: one row each of what it is made from and how QEMU runs it.

A machine has a kernel and a root from Debian packages of its own architecture, or built from Debian's sources, and no disk: the
root is an initramfs, the project and a work folder come over virtio-9p.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOT_PACKAGES = ("python3-minimal", "libpython3-stdlib", "busybox-static")
NINE_P = ("virtio_pci", "9pnet_virtio", "9p")
# x-vof: no firmware to wait for. The others are what QEMU cannot do without KVM, and would complain of.
PSERIES = "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"
# On a busy host the kernel finds that the timer it tries for a moment does not work, and stops.
X86_WORDS = "no_timer_check"


@dataclass(frozen=True)
class Machine:
    """One kind of machine."""

    name: str
    """What Debian calls the architecture."""
    suite: str
    kernel: str
    """The package that depends on the newest kernel image, or has the source of one that is built."""
    qemu: tuple[str, ...]
    """QEMU's program, machine and CPU (the last word)."""
    compilers: dict[int, tuple[str, ...]]
    """By the width of its programs in bits: the compiler that builds them, on an amd64 host."""
    packages: tuple[str, ...] = ROOT_PACKAGES
    modules: tuple[str, ...] = NINE_P
    """Kernel modules to load at the start; those they depend on are found."""
    console: str = "ttyS0"
    transport: str = "pci"
    """virtio-9p-PCI is the device behind which the shared folders are."""
    memory: int = 1024
    """MiB."""
    built: bool = False
    """Kernel and root are built for it (sources.py), for Debian has the architecture no more; the first compiler is theirs."""
    poorer: str = ""
    """A CPU that lacks a feature which that of `qemu` has."""
    poorer_words: str = ""
    """What the kernel is told there, besides what every kernel is told."""
    feature: tuple[str, tuple[int, ...]] = ("", ())
    """What torpor calls that feature, and the widths of the programs that have it (tests/programs/feature.c uses it)."""
    words: str = ""
    """What its kernel is told besides."""
    slowness: float = 1.0
    """How many times the time of others is given to it."""


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
            poorer="max,avx=off,xsave=off",
            feature=("avx", (64, 32)),
            words=X86_WORDS,
        ),
        Machine(
            name="i386",
            suite="bookworm",
            kernel="linux-image-686-pae",
            qemu=("qemu-system-i386", "-machine", "pc", "-cpu", "max"),
            compilers={32: ("gcc", "-m32", "-idirafter", "/usr/include/x86_64-linux-gnu")},
            poorer="max,avx=off,xsave=off",
            feature=("avx", (32,)),
            words=X86_WORDS,
        ),
        Machine(
            name="arm64",
            suite="bookworm",
            kernel="linux-image-arm64",
            # pauth-impdef: the architecture's own hash of signed pointers takes half of the time when it is translated.
            qemu=("qemu-system-aarch64", "-machine", "virt", "-cpu", "max,pauth-impdef=on"),
            # Static: Debian has no C library for 32-bit programs in this architecture.
            compilers={64: ("aarch64-linux-gnu-gcc",), 32: ("arm-linux-gnueabihf-gcc", "-static")},
            console="ttyAMA0",
            poorer="cortex-a57",
            feature=("sve", (64,)),
            slowness=2.0,
        ),
        Machine(
            name="armhf",
            suite="bookworm",
            kernel="linux-image-armmp-lpae",
            qemu=("qemu-system-arm", "-machine", "virt,highmem=off", "-cpu", "cortex-a15"),
            compilers={32: ("arm-linux-gnueabihf-gcc",)},
            slowness=2.0,
            modules=("virtio_mmio", "virtio_pci", "9pnet_virtio", "9p"),
            console="ttyAMA0",
            transport="device",
            poorer="cortex-a15,neon=off",
            feature=("neon", (32,)),
        ),
        Machine(
            name="ppc64el",
            suite="bookworm",
            kernel="linux-image-powerpc64le",
            qemu=("qemu-system-ppc64", "-machine", PSERIES, "-cpu", "power9"),
            compilers={64: ("powerpc64le-linux-gnu-gcc",)},
            console="hvc0",
            memory=2048,  # pages of 64 KiB
            slowness=2.0,
        ),
        Machine(
            name="s390x",
            suite="bookworm",
            kernel="linux-image-s390x",
            qemu=("qemu-system-s390x", "-machine", "s390-ccw-virtio", "-cpu", "max"),
            compilers={64: ("s390x-linux-gnu-gcc",)},
            modules=("9pnet_virtio", "9p"),
            console="ttysclp0",
            transport="ccw",
            poorer="max,vx=off,vxeh=off,vxeh2=off",
            feature=("vx", (64,)),
            slowness=2.0,  # on a busy host torpor takes more than 15 s until it has stopped the first process
        ),
        Machine(
            name="riscv64",
            suite="trixie",
            kernel="linux-image-riscv64",
            qemu=("qemu-system-riscv64", "-machine", "virt", "-cpu", "rv64,v=true,vlen=256,vext_spec=v1.0"),
            compilers={64: ("riscv64-linux-gnu-gcc",)},
            poorer="rv64",
            feature=("zve32x", (64,)),
            slowness=4.0,  # QEMU 7.2 forgets all its translated addresses whenever the kernel touches a program's memory
        ),
        Machine(
            name="ppc64",
            suite="bookworm",
            kernel="linux-source-6.1",
            qemu=("qemu-system-ppc64", "-machine", PSERIES, "-cpu", "power9"),
            compilers={64: ("powerpc64-linux-gnu-gcc",), 32: ("powerpc-linux-gnu-gcc",)},
            console="hvc0",
            built=True,
            poorer="power5+_v2.1",
            # In one boot of ten QEMU loses the interrupt that would wake this CPU (7.2); the 970 does the same.
            poorer_words="powersave=off",
            feature=("vsx", (64,)),
            slowness=2.0,
        ),
        Machine(
            name="ppc32",
            suite="bookworm",
            kernel="linux-source-6.1",
            # graphics=off: on the serial port the firmware gets in 2 s where it looks for screen and keyboard in a minute.
            qemu=("qemu-system-ppc", "-machine", "mac99,via=pmu,graphics=off", "-cpu", "7400"),
            compilers={32: ("powerpc-linux-gnu-gcc",)},
            console="ttyPZ0",
            built=True,
            poorer="750",
            feature=("altivec", (32,)),
            slowness=2.0,
        ),
    )
}
