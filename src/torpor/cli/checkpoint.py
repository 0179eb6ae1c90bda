"""torpor checkpoint: save a running program and all its children into a file."""

from __future__ import annotations

import sys

from torpor.cli.arguments import Option, Verb
from torpor.cli.progress import Progress
from torpor.errors import Obstacle, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.cli.arguments import Parsed

VERB = Verb(
    "checkpoint",
    "Save the process PID and all its descendants. The program goes on.",
    ["?PID"],
    [
        Option("-o", "--output", value="FILE", doc="the image; - is standard output"),
        Option("--kill", doc="end the program as soon as the image is complete"),
        Option("--parent", value="IMAGE", doc="save only memory that is not as in that earlier image, which stays needed"),
        Option("--compress", value="zstd[:LEVEL]", doc="compress memory"),
        Option("--self", doc="save the program that runs this command: exits 0 in it, 3 in the restarted one"),
    ],
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises TorporError."""
    output = arguments.text("output")
    if not output:
        raise UsageError(Obstacle("torpor checkpoint", "it needs -o FILE (or -o - for standard output)"))
    if output == "-" and sys.stdout.isatty():
        raise UsageError(Obstacle("torpor checkpoint", "an image is not written to a terminal", "redirect standard output"))
    from torpor.checkpoint import checkpoint

    if arguments.switch("self"):
        if arguments.operands or arguments.text("parent") or arguments.text("compress"):
            raise UsageError(Obstacle("torpor checkpoint", "--self takes no PID, --parent or --compress"))
        from torpor.selfsave import checkpoint_parent

        checkpoint_parent(output)
        return 0
    if not arguments.operands:
        raise UsageError(Obstacle("torpor checkpoint", "it needs the PID of the program", "see ps(1)"))
    progress = Progress("checkpoint")
    try:
        kill = arguments.switch("kill")
        why = checkpoint(
            arguments.number(0, "process id"),
            output,
            kill=kill,
            progress=progress,
            parent=arguments.text("parent") or None,
            compress=arguments.text("compress"),
        )
    finally:
        progress.close()
    if why and not kill:
        print(f"torpor: the program stood still until its memory was written: {why}", file=sys.stderr)
    return 0
