"""Kernels and roots built from Debian's sources, for machines that Debian has no packages for any more.

Such a machine's row names the suite, the package with the kernel's source, and the cross compilers. The root has what no
package could bring: Python, which has ctypes and zlib only where libffi and zlib are, so these are built before it, into it.
The C libraries come with the cross compilers. All this takes ten minutes or so, 2 GB while it lasts, and what TOOLS names.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.machines import initramfs
from tests.machines.machines import Machine
from tests.machines.packages import Apt, FetchFailure

CONFIGURATIONS = Path(__file__).resolve().parent / "kernels"
KERNEL_ARCHITECTURE = "powerpc"  # of all machines that are built
PYTHON = "python3.11"  # that of the suite; the same is needed here, for it runs the steps that the one to be built cannot yet
TOOLS = {
    "bc": "bc",
    "bison": "bison",
    "bzip2": "bzip2",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "xz": "xz-utils",
    PYTHON: PYTHON,
}
"""By the command: the package that has it. The cross compilers are not among them: the programs of the tests need these as well."""
LIBRARIES = ("libc.so.6", "libm.so.6", "libgcc_s.so.1")
LOADERS = {"ld64.so.1": "lib64", "ld.so.1": "lib"}
"""The program interpreters of the architectures, and the directory in which programs look for theirs."""
INDISPENSABLE = ("_ctypes", "zlib")
"""Modules that Python is built without, and without a word, if it does not find what they need."""
LEFT_OUT = {"__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "tkinter", "turtledemo"}
TAIL = 40  # lines of the log that a failure shows


class CannotBuild(Exception):
    """What a build needs is not here; the text says what."""


class BuildFailure(Exception):
    """A step has failed; the text says which, and how."""


def configuration(machine: Machine) -> str:
    """What is asked of the kernel's configuration."""
    return "".join((CONFIGURATIONS / f"{name}.config").read_text() for name in ("common", machine.name))


def files(machine: Machine, directory: Path) -> tuple[Path, Path]:
    """What the kernel and the root are called that a build leaves in `directory`."""
    return directory / f"{machine.name}-vmlinux.xz", directory / f"{machine.name}-root.tar.xz"


def build(machine: Machine, cache: Path, directory: Path) -> None:
    """Make both, and beside them the steps' `log` and `made-from`. Raises CannotBuild, BuildFailure, OSError."""
    missing = sorted({package for command, package in TOOLS.items() if not shutil.which(command)})
    if missing:
        raise CannotBuild(f"these packages are missing, install them as root: apt-get install {' '.join(missing)}")
    try:
        apt = Apt("amd64", machine.suite, cache / "apt" / f"{machine.suite}-sources", cache / "sources", sources=True)
        kernel_source = apt.fetch_alone(machine.kernel)
        python, ffi, zlib = (apt.fetch_source(name) for name in (PYTHON, "libffi", "zlib"))
    except FetchFailure as problem:
        raise CannotBuild(f"Debian's sources cannot be fetched: {problem}") from problem
    (directory / "made-from").write_text("".join(f"{file.name}\n" for file in (kernel_source, python, ffi, zlib)))
    kernel, root = files(machine, directory)
    with tempfile.TemporaryDirectory(dir=directory) as work:
        workshop = Workshop(machine, Path(work), directory / "log")
        workshop.build_kernel(kernel_source, kernel)
        workshop.build_root(python, ffi, zlib, root)


class Workshop:
    """The steps of a build. `work` holds what is needed in between."""

    def __init__(self, machine: Machine, work: Path, log: Path) -> None:
        self._machine, self._work, self._log = machine, work, log
        self._triplets = [compiler[0].removesuffix("-gcc") for compiler in machine.compilers.values()]
        self._triplet = self._triplets[0]
        """That of the kernel and of Python; programs of the others can be run."""
        self._at_once = f"-j{len(os.sched_getaffinity(0))}"

    def build_kernel(self, package: Path, out: Path) -> None:
        """`package` holds the source as Debian builds it, all changes made."""
        (archive,) = (node.data for name, node in initramfs.contents(package) if name.startswith("usr/src/") and ".tar." in name)
        packed = self._work / "linux.tar"
        packed.write_bytes(archive)
        source = self._unpack("linux", packed)
        wanted = self._work / "config"
        wanted.write_text(configuration(self._machine))
        make = ("make", f"ARCH={KERNEL_ARCHITECTURE}", f"CROSS_COMPILE={self._triplet}-")
        self._run("configuring linux", source, *make, "allnoconfig", KCONFIG_ALLCONFIG=str(wanted))
        got = (source / ".config").read_text().splitlines()
        lost = [line for line in wanted.read_text().splitlines() if line.startswith("CONFIG_") and line not in got]
        if lost:
            raise self._failure(f"the kernel's configuration has no {', '.join(lost)}")
        self._run("building linux", source, *make, self._at_once, "vmlinux")
        self._run("stripping linux", source, f"{self._triplet}-strip", "vmlinux")
        out.write_bytes(lzma.compress((source / "vmlinux").read_bytes(), preset=1))
        shutil.rmtree(source)  # most of the 2 GB

    def build_root(self, python: Path, ffi: Path, zlib: Path, out: Path) -> None:
        """Python in /usr, and beside it the C libraries of all kinds of programs that the machine runs."""
        prefix = self._work / "prefix"
        host = f"--host={self._triplet}"
        source = self._unpack("libffi", ffi)
        static = ("--disable-shared", "--with-pic", "--disable-docs", "--disable-multi-os-directory")
        self._run("configuring libffi", source, "./configure", host, f"--prefix={prefix}", *static)
        self._run("building libffi", source, "make", self._at_once, "install")
        source = self._unpack("zlib", zlib)
        options = ("--static", f"--prefix={prefix}")
        self._run("configuring zlib", source, "./configure", *options, CHOST=self._triplet, CFLAGS="-O2 -fPIC")
        self._run("building zlib", source, "make", self._at_once, "install")
        source = self._unpack("python", python)
        self._build_python(source, prefix)
        with tarfile.open(out, "w:xz", preset=1, dereference=True) as archive:
            self._add_python(archive, source)
            for triplet in self._triplets:
                self._add_libraries(archive, triplet)

    def _build_python(self, source: Path, prefix: Path) -> None:
        here = shutil.which(PYTHON)
        words = [f"--host={self._triplet}", f"--build={os.uname().machine}-linux-gnu", f"--with-build-python={here}"]
        words += ["--prefix=/usr", "--disable-test-modules", "--without-ensurepip"]
        words += ["ac_cv_file__dev_ptmx=yes", "ac_cv_file__dev_ptc=no", "ac_cv_buggy_getaddrinfo=no"]  # what only a run could tell
        found = {"CPPFLAGS": f"-I{prefix}/include", "LDFLAGS": f"-L{prefix}/lib", "PKG_CONFIG_LIBDIR": f"{prefix}/lib/pkgconfig"}
        self._run("configuring Python", source, "./configure", *words, **found)
        self._run("building Python", source, "make", self._at_once)
        modules = sorted(self._modules(source).glob("*.so"))
        lost = set(INDISPENSABLE) - {module.name.split(".")[0] for module in modules}
        if lost:
            raise self._failure(f"Python has been built without {', '.join(sorted(lost))}")
        self._run("stripping Python", source, f"{self._triplet}-strip", "python", *map(str, modules))

    def _modules(self, source: Path) -> Path:
        """Where Python's build has left its modules in C, and what `sysconfig` knows."""
        return source / (source / "pybuilddir.txt").read_text().strip()

    def _add_python(self, archive: tarfile.TarFile, source: Path) -> None:
        """As `make install` would, which would also compile every file, three times."""
        library = f"usr/lib/{PYTHON}"
        archive.add(source / "python", "usr/bin/python3")
        archive.add(source / "Lib", library, filter=lambda member: None if Path(member.name).name in LEFT_OUT else member)
        modules = self._modules(source)
        for file in sorted(modules.glob("*.so")):
            archive.add(file, f"{library}/lib-dynload/{file.name}")
        for file in sorted(modules.glob("_sysconfigdata*.py")):
            archive.add(file, f"{library}/{file.name}")

    def _add_libraries(self, archive: tarfile.TarFile, triplet: str) -> None:
        """The cross compiler's own C library: the one that programs were linked against."""
        libraries = Path("/usr") / triplet / "lib"
        for name in LIBRARIES:
            archive.add(libraries / name, f"lib/{triplet}/{name}")
        for name, directory in LOADERS.items():
            if (libraries / name).exists():
                archive.add(libraries / name, f"{directory}/{name}")

    def _unpack(self, name: str, archive: Path) -> Path:
        """The one directory that is in `archive`."""
        directory = self._work / name
        directory.mkdir()
        options = ("--no-same-owner", "--strip-components=1", "--file", str(archive))
        self._run(f"unpacking {name}", directory, "tar", "--extract", *options)
        return directory

    def _run(self, step: str, directory: Path, *command: str, **environment: str) -> None:
        """With nothing of our environment that a build might take for its own, such as MAKEFLAGS or CFLAGS."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self._log.open("a") as log:
            print(f"== {step}: {' '.join(command)}", file=log, flush=True)
            done = subprocess.run(
                command,
                cwd=directory,
                env={**kept, "LC_ALL": "C.UTF-8", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if done.returncode:
            raise self._failure(f"{step} has ended with {done.returncode}")

    def _failure(self, problem: str) -> BuildFailure:
        tail = self._log.read_text(errors="replace").splitlines()[-TAIL:]
        return BuildFailure("\n".join([f"{self._machine.name}: {problem}; the end of {self._log}:", *tail]))
