"""The tree that an image describes, put together from its records: processes with their threads, registers and timers.

Nothing is made here. Whatever does not fit together is a BadImage.
"""

from __future__ import annotations

from torpor import arch
from torpor.errors import BadImage, Obstacle, Unsupported
from torpor.objects.memory import Mm
from torpor.objects.processes import ALIVE, Process
from torpor.objects.signals import Handlers
from torpor.objects.tables import FdTable, Fs
from torpor.objects.threads import Thread
from torpor.objects.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.arch.contract import Arch
    from torpor.image.reader import Image
    from torpor.image.record import Record


class ThreadPlan:
    """A thread and its register records, in the order of their bits."""

    __slots__ = ("record", "registers")

    def __init__(self, record: Thread) -> None:
        self.record = record
        self.registers: list[Record] = []


class ProcessPlan:
    """A process, what it refers to, and its children."""

    __slots__ = ("arch", "children", "files", "fs", "handlers", "mm", "parent", "record", "threads", "timers")

    arch: Arch
    mm: Mm
    files: FdTable
    fs: Fs
    handlers: Handlers

    def __init__(self, record: Process, parent: ProcessPlan | None) -> None:
        self.record, self.parent = record, parent
        self.children: list[ProcessPlan] = []
        self.threads: list[ThreadPlan] = []
        self.timers: Timers | None = None

    @property
    def alive(self) -> bool:
        """Not a zombie."""
        return self.record.state == ALIVE

    @property
    def tids(self) -> set[int]:
        """The ids of its threads."""
        return {thread.record.tid for thread in self.threads}

    def family(self) -> Iterator[ProcessPlan]:
        """This process and all its descendants, parents first."""
        waiting = [self]
        while waiting:
            process = waiting.pop(0)
            yield process
            waiting += process.children

    def ids(self) -> Iterator[int]:
        """Every process and thread id of the family."""
        for process in self.family():
            yield process.record.pid
            for thread in process.threads[1:]:
                yield thread.record.tid


def read(image: Image) -> ProcessPlan:
    """The root of the tree in `image`. Raises BadImage, or Unsupported for tasks of a family that torpor cannot restart."""
    by_id: dict[int, ProcessPlan] = {}
    root: ProcessPlan | None = None
    thread: ThreadPlan | None = None
    process: ProcessPlan | None = None
    for record in image.records:
        if thread is not None and len(thread.registers) < thread.record.registers.bit_count():
            if not arch.is_register_record(record):
                raise _bad(image, f"the register records of thread {thread.record.tid} are not those that its mask announces")
            thread.registers.append(record)
            continue
        if arch.is_register_record(record):
            raise _bad(image, f"it has registers ({type(record).__name__}) that belong to no thread")
        if isinstance(record, Process):
            process = _process(record, by_id, image)
            if process.parent is None:
                if root is not None:
                    raise _bad(image, f"processes {root.record.pid} and {record.pid} both have no parent")
                root = process
            by_id[record.id] = process
        elif isinstance(record, Thread):
            thread = ThreadPlan(record)
            owner = by_id[record.process]
            if not owner.alive:
                raise _bad(image, f"process {owner.record.pid} has ended and has a thread {record.tid}")
            owner.threads.append(thread)
        elif isinstance(record, Timers):
            owner = by_id[record.process]
            if owner.timers is not None or not owner.alive:
                raise _bad(image, f"process {owner.record.pid} has timers twice, or has ended and has timers")
            owner.timers = record
    if root is None:
        raise _bad(image, "there is no process in it")
    for process in by_id.values():
        _fits(process, image)
    seen: set[int] = set()
    for number in root.ids():
        if number in seen:
            raise _bad(image, f"two tasks have the id {number}")
        seen.add(number)
    return root


def _process(record: Process, by_id: dict[int, ProcessPlan], image: Image) -> ProcessPlan:
    parent = by_id[record.parent] if record.parent else None
    process = ProcessPlan(record, parent)
    if parent is not None:
        if not parent.alive:
            raise _bad(image, f"process {parent.record.pid} has ended and has a child {record.pid}")
        parent.children.append(process)
    kind = arch.by_image_id(record.arch)
    if kind is None:
        raise Unsupported(
            Obstacle(
                "architecture",
                f"this is a program for another processor family (number {record.arch})",
                "restart it on a machine of that family; `torpor inspect` works everywhere",
                pid=record.pid,
            )
        )
    process.arch = kind
    if process.alive:
        if not (record.mm and record.files and record.fs and record.handlers):
            raise _bad(image, f"process {record.pid} lacks memory, descriptors, a directory or signal actions")
        process.mm, process.files = image.by_id(record.mm, Mm), image.by_id(record.files, FdTable)
        process.fs, process.handlers = image.by_id(record.fs, Fs), image.by_id(record.handlers, Handlers)
        sharing = parent is not None and (record.files == parent.record.files or record.fs == parent.record.fs)
        if process.mm.base and (parent is None or parent.record.mm != process.mm.base or parent.record.arch != record.arch):
            raise _bad(image, f"process {record.pid} shares pages with an address space that is not its parent's")
        if sharing and not process.mm.base:
            raise _bad(image, f"process {record.pid} shares descriptors or a directory with its parent, but no pages")
    elif parent is None:
        raise _bad(image, "the root of the tree has ended")
    return process


def _fits(process: ProcessPlan, image: Image) -> None:
    """Raise BadImage where the threads of a process and their registers are not what their records announce."""
    if not process.alive:
        return
    if not process.threads or process.threads[0].record.tid != process.record.pid:
        raise _bad(image, f"process {process.record.pid} has no first thread")
    registers = process.arch.registers
    for thread in process.threads:
        known = thread.registers and all(map(registers.knows, thread.registers))
        if not known or registers.mask(thread.registers) != thread.record.registers:
            raise _bad(image, f"the register records of thread {thread.record.tid} are not those that its mask announces")


DEEPEST = 200
"""Generations of a tree: each is a few calls deep in Python when it is made."""


def faults(root: ProcessPlan) -> Iterator[tuple[int, str]]:
    """What the processes of a tree cannot have together: (pid, reason)."""
    alive = {process.record.pid: process.record for process in root.family() if process.alive}
    users: dict[int, int] = {}
    depths: dict[int, int] = {}
    for process in root.family():
        record, parent = process.record, process.parent
        depths[record.pid] = depth = depths[parent.record.pid] + 1 if parent else 0
        if depth == DEEPEST:
            yield record.pid, f"it is {DEEPEST} generations below the root of the tree, more than can be made again"
        if record.sid == record.pid != record.pgid:
            yield record.pid, "it leads a session, but not its own process group"  # kernel/sys.c, ksys_setsid()
        leader = alive.get(record.pgid)
        if process.alive and leader is not None and leader.sid != record.sid:
            yield record.pid, "its process group is in another session"  # kernel/sys.c, setpgid(2)
        if not process.alive:
            continue
        for what, number in (("address space", record.mm), ("signal actions", record.handlers)):
            if (first := users.setdefault(number, record.pid)) != record.pid:
                yield record.pid, f"it has the same {what} as process {first}"
        inherited = (parent.record.files, parent.record.fs) if parent else (0, 0)
        for what, number in (("descriptor table", record.files), ("working directory", record.fs)):
            if (first := users.setdefault(number, record.pid)) != record.pid and number not in inherited:
                yield record.pid, f"it shares its {what} with process {first}, which is not its parent"


def sessions(root: ProcessPlan) -> dict[int, int]:
    """The session in which each process is made, by pid: the id of its leader, or 0 for that of the restart command.

    It is another than the recorded one where the process that led it, or through which it was inherited, has ended.
    """
    found: dict[int, int] = {}
    before: dict[int, int] = {}
    for process in root.family():
        record, parent = process.record, process.parent
        if parent is None:
            inherited = 0
        elif parent is not root and parent.record.sid == parent.record.pid != record.sid:
            inherited = before[parent.record.pid]  # made before its parent began a session of its own
        else:
            inherited = found[parent.record.pid]
        before[record.pid] = inherited
        found[record.pid] = record.pid if process.alive and record.sid == record.pid else inherited
    return found


def _bad(image: Image, reason: str) -> BadImage:
    return BadImage(Obstacle(image.name, reason, "take another checkpoint"))
