"""torpor verify: read an image from end to end, and check that every byte of it is what was written."""

from __future__ import annotations

from torpor.cli.arguments import SERVER, Verb
from torpor.cli.progress import Progress
from torpor.cli.text import count, instant, plain, put, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torpor.cli.arguments import Parsed

VERB = Verb("verify", "Read the image FILE (- is standard input) from end to end and check every hash.", ["FILE"], [SERVER])


def run(arguments: Parsed) -> int:
    """Run the verb. Raises BadImage, NoPermission or TorporError."""
    progress = Progress("verify")
    try:
        if server := arguments.text("server"):
            from torpor.serve.client import ask

            found = ask(server, {"verb": "verify", "source": arguments.operands[0]}, progress)
        else:
            from torpor.verify import verify

            found = verify(arguments.operands[0], progress).facts()
    finally:
        progress.close()
    put(summary(found))
    return 0


def summary(found: dict[str, Any]) -> str:
    """What an image is, on one line."""
    tree = f"{count(found['processes'], 'process', 'processes')}, {count(found['threads'], 'thread')}"
    data = f"{size(found['data'])} of data"
    taken = f"taken {instant(found['realtime'])} on {found['host']}, Linux {found['release']} {found['machine']}"
    return plain(f"{found['name']}: complete; {tree}, {data}; {taken}")
