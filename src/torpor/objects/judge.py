"""Whether the program in an image can run on a CPU: this one, or another that is described (R-B5, R-B6).

The image's architecture header says what its CPU *offered*, the masks of its threads what the program *uses*. The CPU in
question is an architecture header too: this machine's, that of any other image, which says what there was where that one was
taken, or one made from a copy of another machine's /proc/cpuinfo.
"""

from __future__ import annotations

import os

from torpor import arch
from torpor.errors import BadImage, Obstacle, UsageError
from torpor.image.failure import failure
from torpor.image.format import ARCHITECTURES, MAGIC
from torpor.image.reader import Image
from torpor.linux import procfs
from torpor.objects.processes import ALIVE, Process
from torpor.objects.threads import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.contract import Arch
    from torpor.image.record import Record

CPUINFO_MAX = 1 << 20
"""Bytes that are read of a copy of /proc/cpuinfo: its first CPU takes about 2 KiB."""


def families(image: Image) -> list[Arch]:
    """A kind of task of each processor family that the image has threads of: one machine may run programs of two.

    Raises BadImage like `kind_of`, whose answer comes first.
    """
    found = [kind_of(image)]
    for process in image.of(Process):
        kind = arch.by_image_id(process.arch)
        if process.state == ALIVE and kind and all(kind.header_record is not other.header_record for other in found):
            found.append(kind)
    return found


def used(image: Image, family: Arch) -> int:
    """The union of the register masks of all threads of a family, with what their processes have asked for (R-B5)."""
    mask, mine = 0, set()
    for process in image.of(Process):
        kind = arch.by_image_id(process.arch)
        if kind and kind.header_record is family.header_record:
            mask |= kind.records_of(process.components)
            mine.add(process.id)
    for thread in image.of(Thread):
        if thread.process in mine:
            mask |= thread.registers
    return mask


def kind_of(image: Image) -> Arch:
    """The kind of task of the image's first process. Raises BadImage for one that this version does not know."""
    kind = arch.by_image_id(image.header.arch)
    if kind is None:
        name = ARCHITECTURES.get(image.header.arch, f"number {image.header.arch}")
        raise BadImage(Obstacle(image.name, f"its architecture, {name}, is not known here", "use a newer torpor"))
    return kind


def header_of(image: Image, family: Arch) -> Record:
    """The architecture header of a family (R-B2). Raises BadImage unless there is exactly one."""
    headers = image.of(family.header_record)
    if len(headers) != 1:
        raise BadImage(
            Obstacle(image.name, f"it has {len(headers)} architecture headers for {family.name}", "take another checkpoint")
        )
    return headers[0]


def described(path: str | os.PathLike[str], kind: Arch) -> Record:
    """The CPU that the file `path`, an image or a copy of /proc/cpuinfo, describes, as tasks of `kind` see it.

    Raises UsageError for a file that is neither, or of another family; BadImage, NoPermission, TorporError.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(CPUINFO_MAX)
    except OSError as error:
        raise failure(os.fspath(path), "read the description of the CPU", error) from error
    if data.startswith(MAGIC):
        with Image.open(path) as other:
            header = header_of(other, kind if other.of(kind.header_record) else kind_of(other))
    else:
        header = kind.described(procfs.first_cpu(data.strip()))
    if not isinstance(header, kind.header_record):
        raise UsageError(Obstacle(os.fspath(path), f"describes a CPU of another family than {kind.name}"))
    return header
