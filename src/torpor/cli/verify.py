"""torpor verify: read an image from end to end, and check that every byte of it is what was written.

Needs no right and nothing of the machine that the image is from. Whether the program could go on *here* is what a
restart looks at.
"""

from __future__ import annotations

from torpor.cli.arguments import Verb
from torpor.cli.progress import Progress
from torpor.cli.text import count, instant, plain, put, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.cli.arguments import Parsed
    from torpor.image.reader import Image

VERB = Verb("verify", "Read the image FILE (- is standard input) from end to end and check every hash.", ["FILE"], [])


def run(arguments: Parsed) -> int:
    """Run the verb. Raises BadImage, NoPermission or TorporError."""
    from torpor import arch
    from torpor.image.chain import open_parents
    from torpor.image.reader import Image
    from torpor.objects import plan
    from torpor.objects.processes import Process

    progress = Progress("verify")
    with Image.open(arguments.operands[0]) as image:
        # The tree of a processor family that this version does not know cannot be put together; the rest is checked.
        if all(arch.by_image_id(process.arch) for process in image.of(Process)):
            plan.read(image)
        open_parents(image)
        try:
            image.verify_data(progress)
        finally:
            progress.close()
        put(summary(image))
    return 0


def summary(image: Image) -> str:
    """What an image is, on one line."""
    from torpor.objects.processes import Process
    from torpor.objects.threads import Thread

    header = image.header
    tree = f"{count(len(image.of(Process)), 'process', 'processes')}, {count(len(image.of(Thread)), 'thread')}"
    data = f"{size(image.trailer.data)} of data"
    taken = f"taken {instant(header.realtime)} on {header.host}, Linux {header.release} {header.machine}"
    return plain(f"{image.name}: complete; {tree}, {data}; {taken}")
