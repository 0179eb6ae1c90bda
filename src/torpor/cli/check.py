"""torpor check: what stands in the way of a checkpoint, without stopping the program; or what this kernel can do."""

from __future__ import annotations

from torpor.cli.arguments import SERVER, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torpor.cli.arguments import Parsed

VERB = Verb(
    "check",
    "Say everything that stands in the way of a checkpoint of PID; without PID, what this kernel offers.",
    ["?PID"],
    [SERVER],
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises Unsupported with all that stands in the way."""
    server = arguments.text("server")
    if arguments.operands:
        pid = arguments.number(0, "process id")
        processes = _ask(server, pid=pid)["processes"] if server else _look(pid)
        print(f"{processes} {'process' if processes == 1 else 'processes'}: nothing stands in the way of a checkpoint")
        return 0
    for name, state in _ask(server)["kernel"] if server else _kernel():
        print(f"{name:<28} {state}")
    return 0


def _look(pid: int) -> int:
    from torpor import preflight

    return preflight.look(pid)


def _kernel() -> list[tuple[str, str]]:
    from torpor import preflight

    return preflight.kernel()


def _ask(server: str, **fields: int) -> dict[str, Any]:
    from torpor.serve.client import ask

    return ask(server, {"verb": "check", **fields})
