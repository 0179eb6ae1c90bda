"""A restored thread goes on in the call it was in, with the time that was left.

Calls that the kernel restarts by themselves need nothing but their registers. Those with a restart block (-516: nanosleep,
poll, futex with a timeout) need the block: the thread enters the call anew, with the rest of the time, while an interrupt is
pending already, so that the call ends at once and the kernel itself has built the block. docs/architecture.md has the
alternative.
"""

from __future__ import annotations

from torpor.arch.contract import ERESTART_RESTARTBLOCK
from torpor.arch.waits import NO_LIMIT
from torpor.tasks.remote import stop_again, to_next_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.tasks.remote import Remote


def rebuild_restart_block(remote: Remote, number: int, left: int) -> None:
    """Let the kernel build the restart block of the call `number` with `left` ns to go.

    `left` may be NO_LIMIT. `remote.thread.regs` are the registers of the interrupted call; when the call has nothing to wait
    for any more they become those of its end. Nothing is done for a thread that shows no restart block.
    """
    arch, thread = remote.arch, remote.thread
    call = arch.pending_call(thread.regs)
    if call is None or call[1] != ERESTART_RESTARTBLOCK or number < 0:
        return
    arguments = [thread.regs[name] for name in arch.arguments]
    if left != NO_LIMIT:
        arch.shorten(number, arguments, left, remote.put)
    result = _interrupted_call(remote, (number, *arguments))
    if result == -ERESTART_RESTARTBLOCK:
        return
    thread.regs = arch.ended(thread.regs, result)


def _interrupted_call(remote: Remote, call: tuple[int, ...]) -> int:
    """Make a call that finds a signal pending as soon as it would sleep. Returns its result, -516 included."""
    tid = remote.thread.tid
    remote.begin(call)
    to_next_call(tid)
    remote.suppressed += stop_again(tid)
    arch, regs = remote.arch, remote.arch.registers.read_general(tid)
    if arch.rewinds and regs[arch.ip] == remote.code_at + arch.code.symbols["call"]:
        return -ERESTART_RESTARTBLOCK  # it is to be made again
    return arch.outcome(regs)
