"""torpor merge: make one file of an image that needs earlier ones."""

from __future__ import annotations

import sys

from torpor.cli.arguments import Option, Verb
from torpor.cli.progress import Progress
from torpor.errors import Obstacle, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.cli.arguments import Parsed

VERB = Verb(
    "merge",
    "Copy the image FILE (- is standard input), and what it needs of earlier ones, into one that needs none.",
    ["FILE"],
    [Option("-o", "--output", value="FILE", doc="the new image, which may replace the old one; - is standard output")],
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises TorporError."""
    output = arguments.text("output")
    if not output:
        raise UsageError(Obstacle("torpor merge", "it needs -o FILE (or -o - for standard output)"))
    if output == "-" and sys.stdout.isatty():
        raise UsageError(Obstacle("torpor merge", "an image is not written to a terminal", "redirect standard output"))
    from torpor.merge import merge

    progress = Progress("merge")
    try:
        merge(arguments.operands[0], output, progress)
    finally:
        progress.close()
    return 0
