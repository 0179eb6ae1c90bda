"""The text of `torpor inspect`: an image as people read it, a part of it a function, each yielding lines."""

from __future__ import annotations

from torpor import arch
from torpor.cli.descriptors import armed, described, lock, value
from torpor.cli.text import brief, command_line, count, duration, instant, plain, size, wrapped
from torpor.image.format import ARCHITECTURES, ParentImage
from torpor.image.kinds import Fixed
from torpor.objects import names
from torpor.objects.memory import ATTRIBUTES, FILE, MAYWRITE, SHARED
from torpor.objects.nodes import NAMED, FileNode
from torpor.objects.processes import INFINITY
from torpor.objects.threads import SS_DISABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torpor.image.reader import Image
    from torpor.image.record import Record
    from torpor.objects.memory import MappingRecord, Mm
    from torpor.objects.show import Contents, ShownProcess, ShownThread
    from torpor.objects.signals import Queued
    from torpor.objects.threads import Thread

WIDTH = 110
DEEP = 20
"""Levels of the tree that are indented; further ones are not."""
_ADVICE = {bit: name for bit, (_, name) in ATTRIBUTES.items()}


def lines(contents: Contents) -> Iterator[str]:
    """All of it."""
    yield from _header(contents.image)
    yield ""
    yield from _tree(contents)
    for process in contents.processes:
        yield ""
        yield from _process(process, contents)


def _row(name: str, text: str, indent: str = "  ") -> str:
    return f"{indent}{name:<12} {text}"


def _rows(name: str, words: Iterable[str]) -> Iterator[str]:
    """A row that may need several lines."""
    for line in wrapped(words, WIDTH - 15):
        yield _row(name, line)
        name = ""


def _header(image: Image) -> Iterator[str]:
    """What R-B1 and R-B2 ask an image to say of itself."""
    header = image.header
    by = f"format {header.major}.{header.minor}, by torpor {header.torpor}"
    yield plain(f"{image.name}: {size(image.trailer.size)}, {by}")
    yield _row("taken", plain(f"{instant(header.realtime)} on {header.host}, boot {header.boot_id}"))
    yield _row("kernel", plain(f"Linux {header.release} {header.version} {header.machine}"))
    yield _row("architecture", f"{ARCHITECTURES[header.arch]}, pages of {size(header.page_size)}")
    yield _row("clocks", f"monotonic {duration(header.monotonic)}, boottime {duration(header.boottime)}")
    yield _row("constants", ", ".join(plain(f"{one.name} {one.value}") for one in header.constants))
    for record in image.records:
        if type(record).__name__.endswith("Header"):
            yield from _architecture(record)
    name = "needs"
    for parent in image.of(ParentImage):
        mark = "" if parent.id in image.parents else " (not there, or another one)"
        yield _row(name, plain(f"{parent.name}, taken {instant(parent.realtime)}{mark}"))
        name = ""


def _architecture(record: Record) -> Iterator[str]:
    """What the processor was and offered, whatever fields the header of its family has."""
    yield _row("processor", plain(getattr(record, "model", "") or "unknown"))
    others = [field for field in record.declared if field.name not in ("model", "features")]
    numbers = [f"{field.name} {field.show(getattr(record, field.name))}" for field in others]
    yield _row("", brief(", ".join(numbers)))
    yield from _rows("offers", plain(getattr(record, "features", "")).split())


def _tree(contents: Contents) -> Iterator[str]:
    threads = sum(len(process.threads) for process in contents.processes)
    tree = f"{count(len(contents.processes), 'process', 'processes')}, {count(threads, 'thread')}"
    yield f"{tree}, {size(contents.image.trailer.data)} of memory and files"
    for process in contents.processes:
        name = f"{'  ' * min(process.depth, DEEP)}{process.record.pid} {plain(process.name)}"
        words = contents.arguments(process.mm) if process.mm else None
        what = command_line(words) if words else ""
        yield f"  {name:<32} {_state(process)}  {what}".rstrip()


def _state(process: ShownProcess) -> str:
    if not process.alive:
        return f"zombie ({names.end(process.record.exit_status)})"
    if process.record.stopped_by:
        return f"stopped by {names.signal(process.record.stopped_by)}"
    return "running"


def _process(process: ShownProcess, contents: Contents) -> Iterator[str]:
    record = process.record
    yield f"process {record.pid} {plain(process.name)}".rstrip()
    parent = process.parent.record.pid if process.parent else "none"
    yield _row("ids", f"parent {parent}, group {record.pgid or 'outside'}, session {record.sid or 'outside'}")
    last_word = names.signal(record.exit_signal) if record.exit_signal else "nothing"
    yield _row("state", f"{_state(process)}; its end sends its parent {last_word}")
    if not process.alive:
        return
    yield _row("program", f"{ARCHITECTURES[record.arch]}{_exe(process, contents.image)}")
    if process.fs:
        yield _row("directory", f"{brief(process.fs.cwd)}, root {brief(process.fs.root)}, umask {process.fs.umask:03o}")
    if process.threads:
        yield from _credentials(process.threads[0].record, record.groups)
    yield from _attributes(process)
    yield from _limits(process)
    yield from _actions(process)
    yield from _pending(record.pending, "  ")
    yield from _timers(process)
    for thread in process.threads:
        yield from _thread(thread, process)
    if process.mm:
        yield from _memory(process.mm, contents)
    yield from _descriptors(process, contents.image)


def _exe(process: ShownProcess, image: Image) -> str:
    return f" {brief(image.by_id(process.mm.exe, FileNode).path)}" if process.mm else ""


def _credentials(thread: Thread, groups: Sequence[int]) -> Iterator[str]:
    """Those of the first thread, which are nearly always those of all."""

    def ids(values: Sequence[int]) -> str:
        """Real, effective, saved, file system; one where they are all the same."""
        return str(values[0]) if len(set(values)) == 1 else "/".join(map(str, values)) or "?"

    more = f", groups {' '.join(map(str, groups))}" if groups else ""
    yield _row("credentials", f"uid {ids(thread.uids)}, gid {ids(thread.gids)}{brief(more)}")
    said = [f"effective {names.capabilities(thread.effective)}"]
    for name in ("permitted", "inheritable", "ambient"):
        value = getattr(thread, name)
        if value != (thread.effective if name == "permitted" else 0):
            said.append(f"{name} {names.capabilities(value)}")
    said.append(f"bounding {names.capabilities(thread.bounding)}")
    yield _row("capabilities", "; ".join(said))
    if thread.securebits or thread.no_new_privs:
        yield _row("", f"securebits {names.bits(thread.securebits, names.SECUREBITS)}"
                       f"{', no new privileges' if thread.no_new_privs else ''}")  # fmt: skip


def _attributes(process: ShownProcess) -> Iterator[str]:
    """The small things, where they are not what every program has."""
    record = process.record
    said = []
    if record.personality:
        said.append(f"personality {record.personality:#x}")
    if record.dumpable != 1:
        said.append(f"dumpable: {value(record, 'dumpable')}")
    for name in ("subreaper", "thp_disable"):
        if getattr(record, name):
            said.append(name)
    if record.oom_score_adj:
        said.append(f"oom_score_adj {record.oom_score_adj}")
    if said:
        yield _row("attributes", ", ".join(said))


def _limits(process: ShownProcess) -> Iterator[str]:
    said: list[str] = []
    for limit in process.record.limits:
        if (limit.soft, limit.hard) != (INFINITY, INFINITY):
            soft, hard = ("unlimited" if value == INFINITY else str(value) for value in (limit.soft, limit.hard))
            said.append(f"{names.LIMITS[limit.resource]} {soft if soft == hard else f'{soft} of {hard}'},")
    yield from _rows("limits", " ".join(said).removesuffix(",").split())


def _actions(process: ShownProcess) -> Iterator[str]:
    actions = process.handlers.actions if process.handlers else []
    yield from _rows("ignored", [names.signal(action.signal) for action in actions if action.handler == 1])
    for action in actions:
        if action.handler != 1:
            said = f"{names.signal(action.signal)} to {action.handler:#x}, {names.bits(action.flags, names.SA_FLAGS)}"
            yield _row("signal", said + (f", blocks {names.signals(action.mask)} meanwhile" if action.mask else ""))


def _pending(pending: Sequence[Queued], indent: str) -> Iterator[str]:
    for queued in pending:
        sender = f"from pid {queued.pid}, uid {queued.uid}"
        yield _row("pending", f"{names.signal(queued.signal)}, code {queued.code}, {sender}", indent)


def _timers(process: ShownProcess) -> Iterator[str]:
    if process.timers is None:
        return
    for interval in process.timers.interval_timers:
        name = ("REAL", "VIRTUAL", "PROF")[interval.which]
        yield _row("timer", f"ITIMER_{name}: {armed(interval.left, interval.interval)}")
    for timer in process.timers.timers:
        target = f" to thread {timer.thread}" if timer.thread else ""
        what = "nothing" if timer.notify == 1 else f"{names.signal(timer.signal)}{target}"
        when = armed(timer.left, timer.interval)
        yield _row("timer", f"{timer.number}: {names.clock(timer.clock)}, {when}, sends {what}")


def _thread(thread: ShownThread, process: ShownProcess) -> Iterator[str]:
    record = thread.record
    said = [plain(record.name) or "(no name)"]
    if call := _call(thread, process):
        said.append(call)
    if record.blocked:
        said.append(f"blocks {names.signals(record.blocked)}")
    if (record.policy, record.nice, record.priority) != (0, 0, 0):
        said.append(f"policy {value(record, 'policy')}, nice {record.nice}, priority {record.priority}")
    if not record.stack_flags & SS_DISABLE:
        said.append(f"signal stack at {record.stack:#x}")
    if process.threads[0].record.uids != record.uids or process.threads[0].record.gids != record.gids:
        said.append(f"uids {record.uids}, gids {record.gids}")
    yield _row(f"thread {record.tid}", "; ".join(said))
    yield from _pending(record.pending, "    ")
    yield from _registers(thread)


def _call(thread: ShownThread, process: ShownProcess) -> str:
    """The system call that a thread was in, where that can be told."""
    kind = arch.by_image_id(process.record.arch)
    if kind is None or not thread.registers:
        return ""
    try:
        call = kind.pending_call(kind.registers.general_dict(thread.registers[0]))
    except (AttributeError, KeyError):
        return ""  # a register record of another kind of task
    if call is None:
        return ""
    number = thread.record.call if thread.record.call >= 0 else call[0]
    name = next((name for name, known in kind.syscalls.items() if known == number), "")
    left = f" with {duration(thread.record.left)} left" if thread.record.left else ""
    return f"in system call {number}{f' ({name})' if name else ''}{left}"


def _registers(thread: ShownThread) -> Iterator[str]:
    """The mask by name, and the general registers; --json has the others."""
    said = [name or f"bit {bit} (lacking)" for bit, name in thread.bits()]
    yield f"    registers  {thread.record.registers:#x}: {' '.join(said)}"
    if not thread.registers:
        return
    general = thread.registers[0]
    cells = [
        f"{field.name:>8} {getattr(general, field.name):0{2 * field.size}x}"
        for field in general.declared
        if isinstance(field, Fixed) and isinstance(getattr(general, field.name), int)
    ]
    for first in range(0, len(cells), 4):
        yield "    " + "  ".join(cells[first : first + 4])


def _memory(mm: Mm, contents: Contents) -> Iterator[str]:
    counts = contents.own_bytes(mm)
    shared = f", others as in address space #{mm.base}" if mm.base else ""
    saved = f"{size(sum(counts))} of pages in the image{shared}"
    yield _row("memory", f"address space #{mm.id}, {count(len(mm.mappings), 'mapping')}, {saved}")
    for mapping, own in zip(mm.mappings, counts, strict=True):
        yield _mapping(mapping, own, mm, contents.image)


def _mapping(m: MappingRecord, own: int, mm: Mm, image: Image) -> str:
    """A line as in /proc/PID/maps, with the KiB that the image carries in place of device and inode."""
    letters = "".join(letter if m.prot >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
    letters += "s" if m.attributes & SHARED else "p"
    what = m.name or _heap_or_stack(m, mm)
    if m.kind == FILE and m.node:
        node = image.by_id(m.node, FileNode)
        what = node.path if node.kind == NAMED else f"{node.path} ({value(node, 'kind')})"
    advice = names.bits(m.attributes & ~(SHARED | MAYWRITE), _ADVICE).lower()
    text = f"    {m.start:012x}-{m.end:012x} {letters} {m.offset:08x} {own >> 10 or '-':>8} K"
    return "  ".join(filter(None, (text, brief(what), "" if advice == "0" else advice)))


def _heap_or_stack(m: MappingRecord, mm: Mm) -> str:
    """As the kernel says it (fs/proc/task_mmu.c)."""
    if m.start < mm.brk and m.end > mm.start_brk:
        return "[heap]"
    return "[stack]" if m.start <= mm.start_stack < m.end else ""


def _descriptors(process: ShownProcess, image: Image) -> Iterator[str]:
    if process.files is None:
        return
    architecture = ARCHITECTURES[image.header.arch]
    yield _row("descriptors", str(len(process.files.entries)))
    for entry in process.files.entries:
        said = described(entry.file, image, architecture)
        yield f"    {entry.fd:>5} {'c' if entry.cloexec else ' '} #{entry.file}: {brief(said)}"
    for one in process.files.locks:
        yield f"    {one.fd:>5}   {lock(one)}"
