"""What stands in the way of a checkpoint, all of it at once, each with the remedy (requirements, part E).

`program` looks at a running program without stopping it; `frozen` looks once more when nothing moves any more.
"""

from __future__ import annotations

import os

from torpor.errors import NoPermission, Obstacle, TorporError, Unsupported
from torpor.linux import kcmp, procfs
from torpor.objects import files, memory, tables
from torpor.objects.files import events, pipes
from torpor.objects.files import seen as seen_files
from torpor.objects.files.seen import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from torpor.linux.procfs import Mapping as MappedRange
    from torpor.linux.procfs import Status
    from torpor.tasks.freeze import FrozenTree

_NAMESPACES = {
    "pid": "process ids", "ipc": "System V objects", "uts": "the host name", "net": "the network",
}  # fmt: skip


def refuse(obstacles: Iterable[Obstacle]) -> None:
    """Raise Unsupported with every obstacle, if there is one."""
    found = list(dict.fromkeys(obstacles))
    if found:
        raise Unsupported(found)


def survey(pid: int, absent: Container[int] = ()) -> dict[int, list[MappedRange]]:
    """The mappings of process `pid` and of each of its descendants but those `absent`, while they run.

    Raises TorporError (no such process), NoPermission or Unsupported when a checkpoint cannot be taken.
    """
    check_target(pid, absent)
    mappings: dict[int, list[MappedRange]] = {}
    for process in (pid, *procfs.descendants(pid)):
        if process in absent:
            continue
        try:
            mappings[process] = procfs.smaps(process)
        except PermissionError:
            raise not_ours(process) from None
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    refuse(program(pid, mappings))
    return mappings


def check_target(pid: int, absent: Container[int] = ()) -> None:
    """Refuse what can never be saved: nobody, the kernel, torpor itself and those that wait for it."""
    if pid <= 0 or not procfs.exists(pid):
        raise TorporError(Obstacle("process", "there is no such process", "see ps(1)", pid=pid))
    if procfs.is_kernel_thread(pid):
        raise Unsupported(Obstacle("process", "it is a thread of the kernel", "choose a program", pid=pid))
    ancestor = os.getpid()
    while ancestor > 0 and os.getpid() not in absent:
        if ancestor == pid:
            who = "torpor itself" if pid == os.getpid() else "torpor runs under it"
            raise Unsupported(
                Obstacle("process", f"{who}, and cannot stop what it needs to go on",
                         "call torpor from another shell", pid=pid)
            )  # fmt: skip
        ancestor = procfs.stat(ancestor).ppid


def not_ours(pid: int) -> NoPermission:
    """The sentence for a process that this user may not look into."""
    return NoPermission(
        Obstacle(
            "process",
            "this user may not look into it (ptrace(2), ptrace access mode checking)",
            "run torpor as the user whose process it is, or as root",
            pid=pid,
        )
    )


def look(pid: int) -> int:
    """How many processes a checkpoint of `pid` would save. Raises like `survey`."""
    return len(survey(pid))


def kernel() -> list[tuple[str, str]]:
    """What this kernel and user offer: (mechanism, state)."""
    import errno

    from torpor.linux import clone, libc, pagemap

    def has(path: str) -> str:
        return "yes" if os.path.exists(path) else "no"

    capable = clone.capget()[0] >> 40 & 1 or clone.capget()[0] >> 21 & 1
    rows = [
        ("kernel", f"{os.uname().release} {os.uname().machine}"),
        ("choose process ids", "yes" if capable else "in a namespace (no CAP_CHECKPOINT_RESTORE)"),
        ("PAGEMAP_SCAN", "yes" if pagemap.has_scan() else "no: /proc/PID/pagemap is read instead"),
        ("time namespaces", has("/proc/self/ns/time")),
        ("user namespaces", has("/proc/self/ns/user")),
        ("time left of a sleep", "yes" if procfs.exec_start(os.getpid()) is not None else "no (/proc/PID/sched is missing)"),
    ]
    try:
        libc.call("kcmp", os.getpid(), os.getpid(), 0, 0, 0)
        rows.append(("kcmp", "yes"))
    except OSError as error:
        rows.append(("kcmp", f"no ({errno.errorcode.get(error.errno or 0, '?')})"))
    return rows


def program(pid: int, mappings: Mapping[int, Sequence[MappedRange]]) -> list[Obstacle]:
    """Everything that stands in the way of a checkpoint of process `pid` and its descendants, without stopping them.

    `mappings`: the smaps of each of them. Raises NoPermission when it may not be looked into at all.
    """
    found: list[Obstacle] = []
    descriptors: dict[int, list[Seen]] = {}
    for process, ranges in mappings.items():
        try:
            status = procfs.status(process)
            if status.state == "Z":
                continue
            descriptors[process] = seen_files.look(process)
            found += _process(process, pid, status)
            found += _mapped(process, ranges)
        except PermissionError:
            raise not_ours(process) from None
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    found += _descriptors(descriptors)
    return found


def frozen(
    tree: FrozenTree,
    mappings: Mapping[int, Sequence[MappedRange]],
    descriptors: Mapping[int, Sequence[Seen]],
) -> list[Obstacle]:
    """What stands in the way of saving a frozen tree: the looks of `program` again, and what only a stopped task shows.

    `mappings`: of those processes whose mappings are not what `program` has seen.
    """
    found: list[Obstacle] = []
    for process in tree.alive():
        pid = process.pid
        found += _mapped(pid, mappings.get(pid, ()))
        found += _shared(process.threads[0].tid, [thread.tid for thread in process.threads[1:]], pid)
        for thread in process.threads:
            if thread.status.seccomp:
                found.append(_seccomp(pid))
                break
    found += _shared_between(tree)
    found += _descriptors(descriptors)
    return found


def _process(pid: int, root: int, status: Status) -> list[Obstacle]:
    """What /proc shows of a running process that stands in the way."""
    found = []
    if status.seccomp:
        found.append(_seccomp(pid))
    if status.tracer_pid:
        found.append(Obstacle("process", f"it is being traced by process {status.tracer_pid}", "end that debugger first", pid=pid))
    if obstacle := tables.fs_obstacle(pid):
        found.append(obstacle)
    for kind, what in _NAMESPACES.items():
        if procfs.namespace(pid, kind) != procfs.namespace(root, kind):
            found.append(
                Obstacle(
                    f"{kind} namespace",
                    f"it has another view of {what} than process {root}, which is not saved yet",
                    "checkpoint it by itself",
                    pid=pid,
                )
            )
    for kind in ("ipc", "uts", "net"):
        if pid == root and procfs.namespace(pid, kind) != procfs.namespace(os.getpid(), kind):
            found.append(
                Obstacle(f"{kind} namespace", f"it has a view of {_NAMESPACES[kind]} of its own, which is not saved yet",
                         "run torpor inside of it (nsenter)", pid=pid)
            )  # fmt: skip
    here, there = os.stat("/"), os.stat(f"/proc/{pid}/root/")
    chrooted = procfs.root(pid) != "/"
    if not chrooted and (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
        found.append(Obstacle("root directory", "it lives in another file system than torpor does (a container)",
                              "run torpor inside of it (nsenter)", pid=pid))  # fmt: skip
    return found


def _seccomp(pid: int) -> Obstacle:
    return Obstacle("seccomp", "it filters its system calls; filters are not saved yet", "run it without seccomp", pid=pid)


def _mapped(pid: int, ranges: Sequence[MappedRange]) -> list[Obstacle]:
    found = []
    for mapping in ranges:
        obstacle = memory.obstacle(mapping, pid)
        if obstacle:
            found.append(obstacle)
    return found


def _shared(leader: int, others: Sequence[int], pid: int) -> list[Obstacle]:
    """Threads that have left what threads share."""
    for tid in others:
        for kind, what in ((kcmp.FILES, "a descriptor table"), (kcmp.FS, "a working directory")):
            if not kcmp.same(leader, tid, kind):
                return [Obstacle(f"thread {tid}", f"it has {what} of its own (unshare(2)), which is not saved yet", pid=pid)]
    return []


def _shared_between(tree: FrozenTree) -> list[Obstacle]:
    """Processes that share what only parent and child can share when they are made again, or memory."""
    found = []
    processes = {process.pid: process for process in tree.alive()}
    for first, *others in kcmp.groups(processes, kcmp.VM):
        for pid in others:
            found.append(Obstacle("memory", f"it is shared with process {first} (CLONE_VM), which is not saved yet", pid=pid))
    for kind, what in ((kcmp.FILES, "descriptor table"), (kcmp.FS, "working directory")):
        for first, *others in kcmp.groups(processes, kind):
            for pid in others:
                parent = processes[pid].parent
                if parent is None or parent.pid not in (first, *others):
                    reason = f"it is shared with process {first}, which is neither its parent nor its child"
                    found.append(Obstacle(what, reason, "this is not saved yet", pid=pid))
    return found


def _descriptors(descriptors: Mapping[int, Sequence[Seen]]) -> list[Obstacle]:
    found = []
    ends: list[Seen] = []
    for table in descriptors.values():
        numbers = {seen.fd for seen in table}
        for seen in table:
            for lost in events.lost_members(seen, numbers):
                reason = f"it watches descriptor {lost}, which this process has closed while another has it open"
                found.append(Obstacle(seen.name, reason, "remove the member first (EPOLL_CTL_DEL)", pid=seen.pid))
            if obstacle := files.obstacle(seen):
                found.append(obstacle)
            found += tables.obstacles(seen)
            if pipes.claims(seen):
                ends.append(seen)
    if ends:
        tree = set(descriptors)
        found += pipes.outside(ends, _links_outside(tree), lambda pid: _descends(pid, tree))
    return found


def _descends(pid: int, tree: set[int]) -> bool:
    """Whether a process has ended meanwhile or has an ancestor in `tree`."""
    try:
        while pid > 0:
            if pid in tree:
                return True
            pid = procfs.stat(pid).ppid
    except (FileNotFoundError, ProcessLookupError):
        return True
    return False


def _links_outside(tree: set[int]) -> dict[int, list[str]]:
    """The descriptors of every process outside the tree that this user may look into."""
    links: dict[int, list[str]] = {}
    mine = os.getpid()
    for pid in procfs.pids():
        if pid in tree or pid == mine:
            continue
        try:
            links[pid] = [procfs.fd_link(pid, fd) for fd in procfs.fds(pid)]
        except OSError:
            continue
    return links
