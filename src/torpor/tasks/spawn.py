"""Making tasks: with the process and thread ids that they had, stopped, and killed if torpor dies.

A process begins as a *stub*: a static ELF program of one page whose only content is torpor's code. Everything it is to become
is then done by calls that it makes itself.
"""

from __future__ import annotations

import os
import struct

from torpor.linux import clone, memory, ptrace
from torpor.linux.libc import PAGE
from torpor.tasks.places import WORK_LENGTH
from torpor.tasks.remote import Remote
from torpor.tasks.task import Process, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torpor.arch.contract import Arch

OPTIONS = (
    ptrace.O_TRACESYSGOOD | ptrace.O_TRACEFORK | ptrace.O_TRACEVFORK | ptrace.O_TRACECLONE | ptrace.O_TRACEEXEC | ptrace.O_EXITKILL
)
QUIET = 23
"""SIGURG: how a stub says that it has come to a stop."""
EVERYTHING = (1 << 64) - 1
STUB_LENGTH = PAGE + WORK_LENGTH
THREAD_FLAGS = clone.CLONE_VM | clone.CLONE_FS | clone.CLONE_FILES | clone.CLONE_SIGHAND | clone.CLONE_THREAD | clone.CLONE_SYSVSEM
AT_EMPTY_PATH = 0x1000


class Stub:
    """Where every stub of one restart lies: at an address that is free in all address spaces of the image."""

    __slots__ = ("address", "files", "work")

    def __init__(self, address: int, kinds: set[Arch]) -> None:
        self.address, self.work = address, address + PAGE
        self.files: dict[str, int] = {}
        """Kind of task -> descriptor of its stub program."""
        for kind in kinds:
            values = {"v_signal": QUIET, "v_block": kind.mask_value(EVERYTHING & ~(1 << (QUIET - 1)))}
            fd = os.memfd_create("torpor-stub", os.MFD_CLOEXEC)
            os.write(fd, kind.stub(address, self.work, WORK_LENGTH, values))
            # A file that is open for writing cannot be executed (ETXTBSY).
            self.files[kind.name] = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            os.close(fd)

    def code_at(self, kind: Arch) -> int:
        """Where torpor's code begins in a stub."""
        return self.address + kind.stub_code_offset

    def close(self) -> None:
        """Close the stub programs."""
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()


def spawn_root(stub: Stub, kind: Arch, pid: int, carriers: Mapping[int, int], before: Callable[[], None]) -> Remote:
    """Make the first process of the tree, with the process id `pid`, as a child of this process.

    A `pid` of 0 leaves the choice to the kernel. `carriers`: descriptor number in the new process -> our own descriptor. `before`
    is called in the child before its execve. Raises OSError: EEXIST when the id is taken, EPERM without the right to choose it.
    """
    ready, go = os.pipe2(os.O_CLOEXEC)
    try:
        child = clone.clone3(0, exit_signal=17, set_tid=[pid] if pid else [])
        pid = pid or child
        if child == 0:
            _become_stub(stub.files[kind.name], ready, go, carriers, before)
        try:
            ptrace.seize(child, OPTIONS)
            os.write(go, b"x")
            _await_stub(child, pid, kind, stub)
            return _remote(child, pid, kind, stub.code_at(kind), stub.work)
        except BaseException:
            os.kill(child, 9)
            os.waitpid(child, ptrace.WALL)
            raise
    finally:
        os.close(ready)
        os.close(go)


def _become_stub(program: int, ready: int, go: int, carriers: Mapping[int, int], before: Callable[[], None]) -> None:
    """In the child: wait until it is traced, lay the descriptors out, and execute the stub."""
    try:
        os.close(go)
        if os.read(ready, 1) == b"x":
            for number, fd in carriers.items():
                os.dup2(fd, number, inheritable=True)
            for number in (0, 1, 2):
                try:
                    os.set_inheritable(number, False)
                except OSError:
                    pass  # torpor was started without it
            before()
            clone.execveat(program, [b"torpor-stub"])
    finally:
        os._exit(127)


def _await_stub(tid: int, own_pid: int, kind: Arch, stub: Stub) -> None:
    """Wait until a task that is about to execute the stub has mapped its work area and stopped."""
    code_at, symbols = stub.code_at(kind), kind.code.symbols
    while True:
        status = ptrace.wait(tid)
        if status is None or not os.WIFSTOPPED(status):
            raise ChildProcessError(10, f"the stub of process {own_pid} could not be executed (wait status {status})")
        if status >> 16 == ptrace.EVENT_EXEC:
            # Now that it has its own memory: tell the code whom to notify.
            mem = memory.open_mem(tid)
            try:
                for variable in ("v_tgid", "v_tid"):
                    os.pwrite(mem, struct.pack("=i", own_pid), code_at + symbols[variable])
            finally:
                os.close(mem)
        elif status >> 8 == QUIET and kind.registers.read_general(tid)[kind.ip] == code_at + symbols["notified"]:
            return
        ptrace.cont(tid, 0 if status >> 16 else status >> 8 & 0xFF)


def _remote(tid: int, own_pid: int, kind: Arch, code_at: int, work_at: int) -> Remote:
    """A new process's first thread, stopped in torpor's code with the work area mapped."""
    process = Process(tid, own_pid)
    process.arch = kind
    thread = Thread(process, tid, own_pid, kind.registers.read_general(tid), 0)
    return Remote(thread, code_at, work_at, signal=QUIET, mapped=True)


def spawn_child(parent: Remote, stub: Stub, kind: Arch, pid: int, exit_signal: int, program: int) -> Remote:
    """Make a child of the process of `parent` with the process id `pid`; it executes the stub that is open at `program` there."""
    tid = _clone(parent, pid, 0, exit_signal)
    child = _remote(tid, pid, parent.arch, parent.code_at, parent.work_at)
    try:
        child.prepare()
        empty = child.put(bytes(16))
        child.leave(("execveat", program, empty, empty, empty, AT_EMPTY_PATH))
        _await_stub(tid, pid, kind, stub)
    finally:
        child.thread.process.close()
    return _remote(tid, pid, kind, stub.code_at(kind), stub.work)


def spawn_fork(parent: Remote, pid: int, exit_signal: int, flags: int) -> Remote:
    """Make a child that goes on with a copy of its parent's memory; `flags` say what else they share (CLONE_FILES, CLONE_FS)."""
    tid = _clone(parent, pid, flags, exit_signal)
    child = _remote(tid, pid, parent.arch, parent.code_at, parent.work_at)
    child.prepare()
    return child


def spawn_zombie(parent: Remote, pid: int, exit_signal: int, status: int) -> None:
    """Make a child of `parent` that has ended with the wait status `status`, and that nobody has waited for."""
    tid = _clone(parent, pid, 0, exit_signal)
    child = _remote(tid, pid, parent.arch, parent.code_at, parent.work_at)
    try:
        child.prepare()
        if status & 0x7F:
            # A signal that kills leaves no core behind: the stub's memory is nobody's business.
            limit = child.put(bytes(16))
            child.call("prlimit64", 0, 4, limit, 0)
            ptrace.set_signal_mask(tid, 0)  # a blocked signal would only be queued, whoever sends it
            ptrace.cont(tid, status & 0x7F)
        else:
            child.leave(("exit_group", status >> 8 & 0xFF))
        while True:
            end = ptrace.wait(tid)
            if end is None or not os.WIFSTOPPED(end):
                return
            ptrace.cont(tid)
    finally:
        child.thread.process.close()


def spawn_thread(parent: Remote, tid: int) -> Thread:
    """Make another thread of the process of `parent`, with the thread id `tid`."""
    here = _clone(parent, tid, THREAD_FLAGS, 0)
    process = parent.thread.process
    return Thread(process, here, tid, process.arch.registers.read_general(here), 0)


def _clone(parent: Remote, pid: int, flags: int, exit_signal: int) -> int:
    """clone3(2) by the stub of `parent`; the new task, stopped before its first instruction, by its id here.

    Raises OSError: EEXIST when the id is taken, EPERM without the right to choose it.
    """
    parent.reset()
    wanted = parent.put(struct.pack("=i", pid))
    arguments = struct.pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, wanted, 1, 0)
    parent.call("clone3", parent.put(arguments), len(arguments))
    tid = parent.born.pop()
    status = ptrace.wait(tid)
    if status is None or status >> 16 != ptrace.EVENT_STOP:
        raise ChildProcessError(10, f"the new task {pid} did not come up (wait status {status})")
    return tid
