"""torpor checkpoint: save a running program and all its children into a file."""

from __future__ import annotations

import sys

from torpor.cli.arguments import SERVER, Option, Verb
from torpor.cli.progress import Progress
from torpor.errors import Obstacle, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
        SERVER,
    ],
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises TorporError."""
    output = arguments.text("output")
    if not output:
        raise UsageError(Obstacle("torpor checkpoint", "it needs -o FILE (or -o - for standard output)"))
    if output == "-" and sys.stdout.isatty():
        raise UsageError(Obstacle("torpor checkpoint", "an image is not written to a terminal", "redirect standard output"))
    if arguments.switch("self"):
        if arguments.operands or any(arguments.text(one) for one in ("parent", "compress", "server")):
            raise UsageError(Obstacle("torpor checkpoint", "--self takes no PID, --parent, --compress or --server"))
        from torpor.selfsave import checkpoint_parent

        checkpoint_parent(output)
        return 0
    if not arguments.operands:
        raise UsageError(Obstacle("torpor checkpoint", "it needs the PID of the program", "see ps(1)"))
    progress = Progress("checkpoint")
    pid, kill = arguments.number(0, "process id"), arguments.switch("kill")
    try:
        options: dict[str, Any] = {"kill": kill}
        options |= {name: text for name in ("parent", "compress") if (text := arguments.text(name))}
        if server := arguments.text("server"):
            from torpor.serve.client import ask

            why = ask(server, {"verb": "checkpoint", "pid": pid, "output": output, **options}, progress)["stood_still"]
        else:
            from torpor.checkpoint import checkpoint

            why = checkpoint(pid, output, progress=progress, **options)
    finally:
        progress.close()
    if why and not kill:
        print(f"torpor: the program stood still until its memory was written: {why}", file=sys.stderr)
    return 0
