"""The story of a restart: read, check everything, and only then make anything.

The check pass looks at the whole image and at this machine, and collects every reason not to go on; no process has been created by
then (R-D2). The commit pass (rebuild.py) runs in a *keeper*, a child of the caller that becomes the parent of the restarted tree:
with the original ids in this pid namespace where that can be had, else in namespaces of its own.
"""

from __future__ import annotations

import marshal
import os
import time

from torpor import arch
from torpor.collector import Paused
from torpor.errors import BadImage, NoPermission, Obstacle, TorporError, Unsupported, UsageError
from torpor.image.chain import open_parents, sources
from torpor.image.format import CompressedPages, Draft, EarlierPages, Pages
from torpor.image.reader import Image
from torpor.image.record import Record
from torpor.linux import clone, elf, libc, procfs
from torpor.linux import signals as process_signals
from torpor.linux.libc import PAGE
from torpor.objects import files, judge, memory, memory_checks, nodes, plan, processes, signals, tables, threads, timers
from torpor.objects.files import paths
from torpor.objects.files.paths import OpenFile
from torpor.objects.files.seen import O_PATH
from torpor.objects.making import Making
from torpor.objects.memory import Mm
from torpor.objects.nodes import WITH_CONTENTS, FileNode
from torpor.objects.plan import ProcessPlan
from torpor.objects.processes import PID_MAX
from torpor.rebuild import Rebuilding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torpor.image.chain import Source
    from torpor.lazy.server import Server
    from torpor.linux.procfs import Status
    from torpor.objects.late import Late

    Progress = Callable[[int, int], None]
    Places = Mapping[int, list[Source]]
    Row = tuple[str, str, str, int | None]

SAME, NAMESPACE, AUTO = "same", "namespace", "auto"
CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE = 21, 40
# What the stubs of a restart without root need until they give everything up: CAP_SETPCAP, CAP_SYS_CHROOT, CAP_SYS_PTRACE,
# CAP_SYS_ADMIN, CAP_SYS_RESOURCE, CAP_CHECKPOINT_RESTORE, all of them only towards the new user namespace.
AMBIENT = (8, 18, 19, 21, 24, 40)
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
NSEC = 1_000_000_000

class Restarted:
    """A program that goes on. `pid` is its id here, `own_pid` the one it knows; `warnings` is what could not be given back."""

    def __init__(self, pid: int, own_pid: int, mode: str, warnings: list[Obstacle], channel: int) -> None:
        self.pid, self.own_pid, self.mode, self.warnings = pid, own_pid, mode, warnings
        self.following = 0
        """Bytes of memory that a lazy restart had still to bring when the program began to run."""
        self._channel = channel

    def wait(self) -> int:
        """Wait until the first process of the tree has ended; its wait status (wait(2)). -1 when its keeper was killed.

        Raises TorporError when a lazy restart could not bring all of its memory, and has ended it.
        """
        message = _receive(self._channel)
        self.leave()
        if isinstance(message, tuple):
            raise _as_error(*message)
        return message if isinstance(message, int) else -1

    def leave(self) -> None:
        """Leave the program alone."""
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1


class _Child(Restarted):
    """A program whose first process is our own child. `server` brings its memory, if that is still to come."""

    def __init__(self, pid: int, own_pid: int, mode: str, warnings: list[Obstacle], server: Server | None) -> None:
        super().__init__(pid, own_pid, mode, warnings, -1)
        self._server = server

    def wait(self) -> int:
        """See Restarted.wait. Processes that the first one has left behind get their memory before this returns."""
        while True:
            pid, status = os.wait()
            if pid == self.pid:
                break
        if self._server:
            self._server.finish()
        return status


def restart(
    source: str | os.PathLike[str] | int,
    *,
    pids: str = AUTO,
    cpu: str = "same",
    allow_changed: Iterable[str] = (),
    lazy: bool = False,
    progress: Progress | None = None,
) -> Restarted:
    """Let the program in the image `source` go on ("-": standard input; a number: a descriptor).

    `pids`: "same" ids as before in this pid namespace, a "namespace" of its own, or "auto", the first that can be had. `cpu`:
    "used" admits a CPU that lacks what the old one only offered. `allow_changed`: files that may differ from what they were.
    `lazy`: let it run when its records are checked, and bring its memory meanwhile; if that fails the tree is ended, and `wait`
    raises why. Raises TorporError (BadImage, Unsupported, NoPermission, UsageError); nothing is left of the tree then.
    """
    return _restart(source, pids, cpu, allow_changed, lazy, progress, _commit)


def restart_as_child(
    source: str | os.PathLike[str] | int,
    *,
    pids: str = AUTO,
    cpu: str = "same",
    allow_changed: Iterable[str] = (),
    lazy: bool = False,
    progress: Progress | None = None,
) -> Restarted:
    """Like `restart`, for a command that does nothing else until the program has ended, and has no other children.

    Where the program gets its ids in this pid namespace, its first process becomes our own child, with no keeper in between.
    """
    return _restart(source, pids, cpu, allow_changed, lazy, progress, _commit_here)


def _restart(
    source: str | os.PathLike[str] | int,
    pids: str,
    cpu: str,
    allow_changed: Iterable[str],
    lazy: bool,
    progress: Progress | None,
    commit: Callable[[Image, ProcessPlan, str, Late | None], Restarted],
) -> Restarted:
    """Both passes."""
    if pids not in (SAME, NAMESPACE, AUTO) or cpu not in ("same", "used"):
        raise UsageError(Obstacle("arguments", f"pids={pids!r}, cpu={cpu!r} is none of the choices"))
    with Paused(), Image.open(source) as image:
        root = plan.read(image)
        open_parents(image)
        pages = sources(image)
        found = list(check(image, root, pages, cpu, frozenset(os.path.abspath(path) for path in allow_changed)))
        if lazy:
            found += _lazy_refusals()
        if found:
            raise _kind_of(found)([obstacle for obstacle, _ in found])
        late = None
        if lazy:
            from torpor.objects.late import Late

            late = Late(root, image, pages)
        image.verify_data(progress, late.needed_now() if late else None)
        mode = _choose(pids, root)
        try:
            program = commit(image, root, mode, late)
        except (_IdTaken, _MayNotChoose):
            if pids == SAME or mode == NAMESPACE:
                raise
            program = commit(image, root, NAMESPACE, late)
        program.following = late.following() if late else 0
        return program


def _lazy_refusals() -> list[tuple[Obstacle, type[TorporError]]]:
    """Why this kernel or this user cannot have a lazy restart."""
    from torpor.lazy import server

    refused = server.refusal()
    return [(refused[0], NoPermission if refused[1] else Unsupported)] if refused else []


# --- the check pass


def check(
    image: Image, root: ProcessPlan, pages: Places, cpu: str, allowed: frozenset[str]
) -> Iterator[tuple[Obstacle, type[TorporError]]]:
    """Every reason why the image cannot be restarted here, with the kind of error it makes. Makes nothing.

    `pages`: where those of each address space lie.
    """
    for process in root.family():
        if process.arch not in arch.KINDS:
            yield _elsewhere(process), Unsupported
            return  # nor can its registers be judged
    if image.header.page_size != PAGE:
        reason = f"its pages are of {image.header.page_size} bytes, and here of {PAGE}"
        yield Obstacle(image.name, reason, "restart it on a machine like the one it comes from"), Unsupported
        return  # nor can its mappings
    making = Making(image)
    bad = False
    for reason, pid in _faults(image, root, pages, making):
        yield Obstacle(image.name, reason, "take another checkpoint", pid=pid), BadImage
        bad = True
    if bad:
        return  # this machine is not asked about what cannot be
    yield from _machine(image, root, cpu)
    if any(isinstance(record, CompressedPages) for _, record, _ in image.needed_chunks()):
        from torpor.image import compression

        if without := compression.missing():
            yield without, Unsupported
    for node in image.of(FileNode):
        if difference := nodes.differences(node, allowed):
            yield difference, Unsupported
    for record in image.records:
        if isinstance(record, files.RECORDS) and (obstacle := files.check(record, making)):
            yield obstacle, Unsupported
    if any(process.arch.word == 4 for process in root.family()):
        for opened in image.of(OpenFile):
            if obstacle := paths.too_large(opened, making):
                yield obstacle, Unsupported
    here = memory_checks.Here()
    own = procfs.status(os.getpid()) if os.geteuid() == 0 else None
    for process in root.family():
        for obstacle in _obstacles(process, making, here):
            yield obstacle, Unsupported
        if process.alive:
            yield from _may_become(process, own)
    written = [record.node for record in image.of(OpenFile) if record.flags & 3 and not record.flags & O_PATH]
    programs = [process.mm.exe for process in root.family() if process.alive]
    for obstacle in memory_checks.opened_for_writing(written, programs, making.node):
        yield obstacle, Unsupported


def _elsewhere(process: ProcessPlan) -> Obstacle:
    return Obstacle(
        "architecture",
        f"this is a program for {process.arch.name}, and this machine is {os.uname().machine}",
        "restart it on a machine of that family; `torpor inspect` works everywhere",
        pid=process.record.pid,
    )


def _faults(image: Image, root: ProcessPlan, pages: Places, making: Making) -> Iterator[tuple[str, int | None]]:
    """What no program can have, and of which process it is said."""
    for node in image.of(FileNode):
        for reason in nodes.faults(node):
            yield reason, None
    for record in image.records:
        if isinstance(record, files.RECORDS):
            for reason in files.faults(record, making):
                yield reason, None
    for pid, reason in plan.faults(root):
        yield reason, pid
    pids = {process.record.pid for process in root.family()}
    for process in root.family():
        for reason in processes.faults(process.record):
            yield reason, process.record.pid
        if process.alive:
            for reason in _process_faults(process, pages.get(process.mm.id, []), pids, making):
                yield reason, process.record.pid
    tables_ = {process.files.id: process.files for process in root.family() if process.alive}.values()
    for reason in (*tables.unfilled(tables_, making), *tables.conflicts(tables_, making)):
        yield reason, None
    owners = {process.record.mm for process in root.family() if process.alive}
    for kept in image.of(EarlierPages):
        if kept.owner not in owners:
            yield f"it has data for #{kept.owner}, which has none", None
    for data, _ in image.chunks:
        owner = image.by_id(data.owner, Record)
        if isinstance(owner, Draft) and isinstance(data, Pages):
            continue  # of no effect by itself
        if isinstance(data, Pages) != (data.owner in owners) or not isinstance(owner, FileNode | memory.Mm):
            yield f"it has data for #{data.owner}, which has none", None
        elif isinstance(owner, FileNode) and (
            owner.kind not in WITH_CONTENTS or any(start + length > owner.size for start, length in data.runs)
        ):
            yield f"it has data for file #{data.owner} that is not in it", None


def _machine(image: Image, root: ProcessPlan, cpu: str) -> Iterator[tuple[Obstacle, type[TorporError]]]:
    """Whether this CPU and kernel can carry the program (R-B5)."""
    if image.header.arch not in {process.record.arch for process in root.family()}:
        yield Obstacle(image.name, "its header is of another architecture than its processes", "take another checkpoint"), BadImage
    runs = True
    for kind in sorted({process.arch for process in root.family()}, key=lambda kind: kind.name):
        if kind.word != libc.WORD and not elf.runs(kind.elf_machine, kind.word, kind.elf_flags):
            why = f"this kernel runs no {8 * kind.word}-bit programs of this family ({kind.name})"
            yield Obstacle("kernel", why, "boot one that does"), Unsupported
            runs = False
    for kind in judge.families(image) if runs else ():
        try:
            header = judge.header_of(image, kind)
        except BadImage as error:
            yield from ((obstacle, BadImage) for obstacle in error.obstacles)
            return
        for reason in kind.verdict(header, judge.used(image, kind), cpu, kind.header()):
            yield Obstacle("processor", reason), Unsupported


def _process_faults(process: ProcessPlan, pages: list[Source], pids: set[int], making: Making) -> Iterator[str]:
    """What in the records of a process no process can have. `pids`: of the whole tree."""
    kind, mm, node = process.arch, process.mm, making.node
    yield from memory_checks.faults(mm, kind, making.record(mm.base, Mm) if mm.base else None, node)
    yield from memory_checks.stray_pages(mm, pages, node)
    yield from tables.faults(process.files, making)
    yield from signals.faults(process.handlers.actions, kind.user_limit)
    if process.record.components & ~kind.requestable:
        yield f"it has asked for register components that nobody can ask for, {process.record.components:#x}"
    if process.timers is not None:
        yield from timers.faults(process.timers, kind, pids, process.tids)

    def after_syscall(address: int) -> bool:
        return memory_checks.executable(mm, address - len(kind.syscall_instruction[0]))

    for thread in process.threads:
        for reason in (
            *threads.faults(thread.record, kind, lambda address, length: memory_checks.writable(mm, address, length, node)),
            *kind.registers.validate(
                thread.registers,
                user_limit=kind.user_limit,
                is_executable=lambda address: memory_checks.executable(mm, address),
                is_mapped=lambda address: memory_checks.mapped(mm, address),
                syscall_before=after_syscall,
            ),
        ):
            yield f"thread {thread.record.tid}: {reason}"
        if thread.record.registers & kind.records_of(kind.requestable) & ~kind.records_of(process.record.components):
            yield f"thread {thread.record.tid}: it has registers that its process has not asked for"


def _obstacles(process: ProcessPlan, making: Making, here: memory_checks.Here) -> Iterator[Obstacle]:
    """What of a process cannot be had on this machine."""
    pid = process.record.pid
    yield from processes.check(process.record, process.tids)
    if not process.alive:
        return
    yield from memory_checks.check(process.mm, process.arch, making.node, here, pid)
    yield from tables.check(process.files, making, process.fs.root, pid)
    yield from tables.fs_check(process.fs, pid)
    if process.timers is not None:
        yield from timers.check(process.timers, pid)


def _may_become(process: ProcessPlan, own: Status | None) -> Iterator[tuple[Obstacle, type[TorporError]]]:
    """Whether this user may give a process the user and group ids and the capabilities it had. `own`: root's credentials."""
    uid, gid, pid = os.geteuid(), os.getegid(), process.record.pid
    for thread in process.threads:
        record = thread.record
        if own is not None:
            for reason in threads.lacking(record, process.record.groups, own):
                yield Obstacle("credentials", reason, "restart it with more rights", pid=pid), NoPermission
                return
        elif set(record.uids) != {uid} or set(record.gids) != {gid}:
            reason = f"it ran as user {record.uids[1]}, group {record.gids[1]}, and this user is {uid}, group {gid}"
            yield Obstacle("credentials", reason, "restart it as that user, or as root", pid=pid), NoPermission
            return
        elif record.permitted:
            reason = "it had capabilities that this user cannot give"
            yield Obstacle("credentials", reason, "restart it as root", pid=pid), NoPermission
            return


def _kind_of(found: list[tuple[Obstacle, type[TorporError]]]) -> type[TorporError]:
    """The most telling of several kinds of error: a bad image before a missing right before everything else."""
    kinds = {kind for _, kind in found}
    return next(kind for kind in (BadImage, NoPermission, Unsupported) if kind in kinds)


# --- which ids


def _choose(pids: str, root: ProcessPlan) -> str:
    """SAME or NAMESPACE. Raises NoPermission or Unsupported where SAME was asked for and cannot be had."""
    if pids == NAMESPACE:
        return NAMESPACE
    effective, _, _ = clone.capget()
    capable = effective >> CAP_CHECKPOINT_RESTORE & 1 or effective >> CAP_SYS_ADMIN & 1
    taken = _taken(root) if capable else []
    if pids == AUTO:
        return SAME if capable and not taken else NAMESPACE
    if not capable:
        raise NoPermission(
            Obstacle("process ids", "this user may not choose them (CAP_CHECKPOINT_RESTORE)", "say --pids namespace")
        )
    if taken:
        listed = ", ".join(map(str, taken[:5]))
        verb = "is" if len(taken) == 1 else "are"
        raise Unsupported(Obstacle("process ids", f"{listed} {verb} taken here, or too high", "say --pids namespace"))
    return SAME


def _taken(root: ProcessPlan) -> list[int]:
    """The ids of the tree that cannot be had in this pid namespace: another task has them, or they are too high."""
    end = procfs.sysctl("kernel/pid_max", PID_MAX)
    return [number for number in root.ids() if number >= end or os.path.exists(f"/proc/{number}")]


# --- the commit pass


def _commit_here(image: Image, root: ProcessPlan, mode: str, late: Late | None) -> Restarted:
    """Run the commit pass in this process, if it needs no namespaces. Raises like `_commit`."""
    if mode == NAMESPACE:
        return _commit(image, root, mode, late)
    try:
        _continue_clocks(image, False)
        rebuilding = _rebuild(image, root, False, late)
    except Exception as error:
        raise _failure(error) from error
    if late:
        image.keep_open()  # it is read on
    return _Child(rebuilding.born[0], root.record.pid, mode, rebuilding.warnings, rebuilding.server)


def _commit(image: Image, root: ProcessPlan, mode: str, late: Late | None) -> Restarted:
    """Run the commit pass in a keeper of its own. Raises TorporError; _IdTaken, _MayNotChoose for the ids."""
    receive, send = os.pipe2(os.O_CLOEXEC)
    keeper = os.fork()
    if keeper == 0:
        os.close(receive)
        _keep(image, root, mode, late, send)
    os.close(send)
    try:
        answer = _receive(receive)
        if not isinstance(answer, tuple):
            os.close(receive)
            _, status = os.waitpid(keeper, 0)
            raise TorporError(Obstacle("restart", f"its keeper ended unexpectedly (wait status {status})"))
        kind, pid, rows = answer
        if kind == "ok":
            pid = pid or _find_inside(keeper, root.record.pid)
            return Restarted(pid, root.record.pid, mode, _obstacles_of(rows), receive)
        os.close(receive)
        os.waitpid(keeper, 0)
        raise _as_error(*answer)
    except BaseException:
        raise


def _obstacles_of(rows: list[Row]) -> list[Obstacle]:
    return [Obstacle(what, reason, remedy, pid=number) for what, reason, remedy, number in rows]


def _as_error(kind: str, _pid: int, rows: list[Row]) -> TorporError:
    return _ERRORS[kind](_obstacles_of(rows))


def _find_inside(keeper: int, own_pid: int) -> int:
    """The id here of the process that is `own_pid` in the pid namespace below `keeper`; 0 if it has ended already."""
    for pid in procfs.descendants(keeper):
        try:
            if procfs.status(pid).ns_tgid[-1] == own_pid and pid not in procfs.children(keeper):
                return pid
        except OSError:
            continue
    return 0


def _send(channel: int, message: int | tuple[str, int, list[Row]]) -> bool:
    """Whether somebody is there to hear it."""
    data = marshal.dumps(message)
    try:
        os.write(channel, len(data).to_bytes(4, "little") + data)
    except BrokenPipeError:
        return False
    return True


def _receive(channel: int) -> object:
    head = _read(channel, 4)
    if len(head) < 4:
        return None
    data = _read(channel, int.from_bytes(head, "little"))
    result: object = marshal.loads(data)
    return result


def _read(channel: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(channel, length - len(data))
        if not part:
            break
        data += part
    return data


def _keep(image: Image, root: ProcessPlan, mode: str, late: Late | None, channel: int) -> None:
    """The keeper: enter namespaces, rebuild the tree, be its parent until it ends. Does not return."""
    status = 1
    try:
        own_groups = False
        if mode == NAMESPACE:
            own_groups = os.geteuid() != 0
            _enter_namespaces(own_groups)
        _continue_clocks(image, mode == NAMESPACE)
        if mode == NAMESPACE:
            init = os.fork()
            if init:
                _drop_terminal()
                _ignore_terminal()
                os.waitpid(init, 0)
                os._exit(0)
            _become_init(own_groups)
        _rebuild_and_stay(image, root, own_groups, late, channel)
        status = 0
    except BaseException as error:
        _send(channel, _as_message(_failure(error)))
    finally:
        os._exit(status)


class _IdTaken(Unsupported):
    """The kernel did not give us a process id that the check pass had taken for free."""


class _MayNotChoose(NoPermission):
    """The kernel did not let us choose a process id."""


_ERRORS: dict[str, type[TorporError]] = {
    kind.__name__: kind for kind in (TorporError, UsageError, Unsupported, BadImage, NoPermission, _IdTaken, _MayNotChoose)
}


def _failure(error: BaseException) -> TorporError:
    """What is said of an exception that ended the commit pass."""
    if isinstance(error, FileExistsError) and str(error).startswith("[Errno 17] clone3"):
        reason = "one of them is taken here, if only by a process group whose leader has ended"
        return _IdTaken(Obstacle("process ids", reason, "say --pids namespace"))
    if isinstance(error, PermissionError) and str(error).startswith("[Errno 1] clone3"):
        return _MayNotChoose(Obstacle("process ids", "this user may not choose them", "say --pids namespace"))
    if isinstance(error, TorporError):
        return error
    if isinstance(error, OSError):
        return TorporError(Obstacle("restart", str(error).partition("] ")[2] or str(error), "nothing is left of it"))
    return TorporError(Obstacle("restart", f"{type(error).__name__}: {error} ({_place(error)})", "this is a bug"))


def _place(error: BaseException) -> str:
    """Where in the code an exception comes from."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at is not None else "?"


def _enter_namespaces(own_user: bool) -> None:
    """New pid and mount namespaces and, for an ordinary user, a user namespace in which he is himself."""
    uid, gid = os.geteuid(), os.getegid()
    flags = clone.CLONE_NEWPID | clone.CLONE_NEWNS | (clone.CLONE_NEWUSER if own_user else 0)
    try:
        clone.unshare(flags)
    except OSError as error:
        raise NoPermission(
            Obstacle(
                "namespaces",
                f"the kernel does not let this user make them ({error.strerror})",
                "allow unprivileged user namespaces (sysctl user.max_user_namespaces), or be root",
            )
        ) from error
    if own_user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


_own_clocks: tuple[int, int] | None = None
"""What this process's own CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of the machine's, in ns."""


def _continue_clocks(image: Image, fresh: bool) -> None:
    """Give the children of this process clocks that go on from the instant of the checkpoint (time_namespaces(7))."""
    global _own_clocks
    # The file speaks of this process's children: from the first restart on, not of itself any more.
    _own_clocks = _own_clocks or procfs.timens_offsets(os.getpid())
    own_monotonic, own_boottime = _own_clocks
    monotonic = image.header.monotonic - (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - own_monotonic)
    boottime = image.header.boottime - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - own_boottime)
    try:
        clone.unshare(clone.CLONE_NEWTIME)
    except OSError:
        if image.header.boot_id == procfs.boot_id() and not own_monotonic:
            return  # the same clock still runs, only further on
        raise NoPermission(
            Obstacle("clocks", "this kernel or user has no time namespaces, so that the program's clock would jump",
                     "restart it on the boot it was saved on, or on a kernel with CONFIG_TIME_NS")
        ) from None  # fmt: skip
    with open("/proc/self/timens_offsets", "w") as file:
        for name, offset in (("monotonic", monotonic), ("boottime", boottime)):
            file.write(f"{name} {offset // NSEC} {offset % NSEC}\n")


def _become_init(own_user: bool) -> None:
    """The first process of a new pid namespace: a /proc of its own, and capabilities that survive execve."""
    clone.mount("none", "/", "", MS_REC | MS_PRIVATE)
    clone.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if own_user:
        effective, permitted, _ = clone.capget()
        clone.capset(effective, permitted, permitted)
        clone.raise_ambient(AMBIENT)


def _rebuild(image: Image, root: ProcessPlan, own_groups: bool, late: Late | None) -> Rebuilding:
    """The tree, complete and let go. When that fails nothing is left of it."""
    rebuilding = Rebuilding(root, Making(image), late, own_groups=own_groups)
    try:
        rebuilding.run()
        rebuilding.let_go()
    except BaseException as error:
        rebuilding.abandon()
        if rebuilding.server and rebuilding.server.failure:
            raise rebuilding.server.failure from error
        raise
    return rebuilding


def _rebuild_and_stay(image: Image, root: ProcessPlan, own_groups: bool, late: Late | None, channel: int) -> None:
    """Rebuild, let go, report; then wait for the tree and report its end."""
    rebuilding = _rebuild(image, root, own_groups, late)
    # Our own copy of the pipe must not keep the tree's descriptors alive, nor the image: close before, not after.
    first = rebuilding.born[0]
    server = rebuilding.server
    if server is None:
        image.close()
    _send(channel, ("ok", _pid_outside(first), _rows(rebuilding.warnings)))
    _drop_terminal()
    _ignore_terminal()
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        if pid == first and not (server and server.failure):
            _send(channel, status)
    if server:
        try:
            server.finish()
        except TorporError as error:
            if not _send(channel, _as_message(error)):
                server.log(error)


def _rows(obstacles: Iterable[Obstacle]) -> list[Row]:
    return [(o.object, o.reason, o.remedy, o.pid) for o in obstacles]


def _as_message(error: TorporError) -> tuple[str, int, list[Row]]:
    return type(error).__name__, 0, _rows(error.obstacles)


def _pid_outside(pid: int) -> int:
    """The id under which those outside of our pid namespace know process `pid`; 0 when only they can tell."""
    return pid if os.getpid() != 1 else 0


def _ignore_terminal() -> None:
    """What a terminal or a shell sends to a whole group is for the program, not for its keeper."""
    process_signals.ignore(
        process_signals.SIGHUP,
        process_signals.SIGINT,
        process_signals.SIGQUIT,
        process_signals.SIGTERM,
        process_signals.SIGTSTP,
    )


def _drop_terminal() -> None:
    """The keeper reads and writes nothing: it must not hold the program's standard streams open."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
