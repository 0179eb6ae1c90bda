"""torpor check: what stands in the way of a checkpoint, without stopping the program; or what this kernel can do."""

from __future__ import annotations

from torpor.cli.arguments import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.cli.arguments import Parsed

VERB = Verb(
    "check", "Say everything that stands in the way of a checkpoint of PID; without PID, what this kernel offers.", ["?PID"], []
)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises Unsupported with all that stands in the way."""
    from torpor import preflight

    if arguments.operands:
        pid = arguments.number(0, "process id")
        processes = preflight.look(pid)
        print(f"{processes} {'process' if processes == 1 else 'processes'}: nothing stands in the way of a checkpoint")
        return 0
    for name, state in preflight.kernel():
        print(f"{name:<28} {state}")
    return 0
