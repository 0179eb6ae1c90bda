"""torpor serve: carry out what others ask for on a socket, with everything loaded. docs/serve.md is the protocol."""

from __future__ import annotations

from torpor.cli.arguments import Verb
from torpor.cli.text import put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.cli.arguments import Parsed

VERB = Verb(
    "serve",
    "Listen on the new socket SOCKET and carry out what this user asks for there, until SIGTERM or Ctrl-C.",
    ["SOCKET"],
    [],
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises TorporError, NoPermission or UsageError when it cannot listen there."""
    from torpor.serve.client import PROTOCOL
    from torpor.serve.server import serve

    path = arguments.operands[0]
    serve(path, lambda: put(f"torpor: listening on {path}, protocol {PROTOCOL}"))
    return 0
