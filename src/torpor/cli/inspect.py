"""torpor inspect: show what is in an image. Needs no right, and nothing of the machine that the image is from (R-B6).

The text is for people and may change. `--json` is for programs and only grows:

    {"header": FIELDS, "records": {CLASS: [FIELDS, ...], ...}, "trailer": FIELDS}

CLASS is a record as docs/image-format.md calls it ("Process", "Mm", "OpenFile", "Pages" ...); the records of a class
stand in the order of the image, and classes without a record are left out. FIELDS has every field of that record by
name. A number is a number (up to 64 bits: take a parser that keeps them), a choice is its name, flags are the list of
their names, a text is a string in which a byte that is no UTF-8 is a lone surrogate (U+DC80 to U+DCFF, PEP 383), bytes
are hexadecimal digits, structs are FIELDS again. What belongs together is found by id: the "process" of a Thread is the
"id" of a Process. Three things are added:

    Process.arguments           the program's arguments, or null where their pages are not in the image
    Thread.register_names       the names of the bits set in Thread.registers, ascending; "bit N" for one without record
    Thread.register_records     the register records that these bits announce: FIELDS and "class"; not under "records"

The raw data (pages, contents of files) is not shown; "Pages" and "FileData" say where it belongs.

`--cpu FILE` judges instead, offline, whether the program can run on another CPU, and why not (docs/architecture.md, "Which CPU").
"""

from __future__ import annotations

from torpor.cli.arguments import Option, Verb
from torpor.cli.text import plain, put
from torpor.errors import TorporError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.cli.arguments import Parsed
    from torpor.image.reader import Image

VERB = Verb(
    "inspect",
    "Show what is in the image FILE (- is standard input): the tree, its threads, memory and descriptors.",
    ["FILE"],
    [
        Option("--json", doc="everything, for programs: every record with all of its fields"),
        Option("--cpu", value="FILE", doc="only whether it can run on another CPU: that of the image FILE, or of a copy of "
                                          "/proc/cpuinfo; exit 0 if so, 4 if not"),
    ],
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises BadImage, NoPermission or TorporError."""
    from torpor.image.chain import open_parents
    from torpor.image.reader import Image
    from torpor.objects.show import Contents, as_data

    with Image.open(arguments.operands[0]) as image:
        if cpu := arguments.text("cpu"):
            return judged(image, cpu)
        try:
            open_parents(image)
        except TorporError:
            pass  # `torpor verify` says why; what this image holds itself is shown
        contents = Contents(image)
        if arguments.switch("json"):
            import json

            put(json.dumps(as_data(contents), indent=1))
        else:
            from torpor.cli import picture

            put("\n".join(picture.lines(contents)))
    return 0


def judged(image: Image, cpu: str) -> int:
    """Say whether the program can run on the CPU that the file `cpu` describes; the exit code."""
    from torpor.objects import judge

    families = [(kind, judge.header_of(image, kind), judge.used(image, kind)) for kind in judge.families(image)]
    there = [judge.described(cpu, kind) for kind, _, _ in families]
    where = plain(getattr(there[0], "model", "")) or "a CPU without a name"

    def reasons_with(mode: str) -> list[str]:
        found = zip(families, there, strict=True)
        return [reason for (kind, header, used), here in found for reason in kind.verdict(header, used, mode, here)]

    reasons = reasons_with("same")
    if not reasons:
        put(f"{plain(image.name)}: can run on {where}")
        return 0
    put(f"{plain(image.name)}: cannot run on {where}")
    for reason in reasons:
        put(f"  {plain(reason)}")
    if not reasons_with("used"):
        put("  what it holds in its registers is no obstacle: with --cpu used it can be restarted there")
    return Unsupported.exit_code
