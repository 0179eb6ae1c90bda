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
"""

from __future__ import annotations

from torpor.cli.arguments import Option, Verb
from torpor.cli.text import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.cli.arguments import Parsed

VERB = Verb(
    "inspect",
    "Show what is in the image FILE (- is standard input): the tree, its threads, memory and descriptors.",
    ["FILE"],
    [Option("--json", doc="everything, for programs: every record with all of its fields")],
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises BadImage, NoPermission or TorporError."""
    from torpor.image.reader import Image
    from torpor.objects.show import Contents, as_data

    with Image.open(arguments.operands[0]) as image:
        contents = Contents(image)
        if arguments.switch("json"):
            import json

            put(json.dumps(as_data(contents), indent=1))
        else:
            from torpor.cli import picture

            put("\n".join(picture.lines(contents)))
    return 0
