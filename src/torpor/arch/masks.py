"""The record mask of a thread (R-B5): which register records follow it, and whether a CPU can take what they hold."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torpor.image.record import Record


class State:
    """A row of a family's table: one kind of register record."""

    __slots__ = ("bit", "feature", "gone", "record", "title")

    def __init__(self, bit: int, record: type[Record], feature: str, title: str, gone: str = "") -> None:
        self.bit, self.record = bit, record
        self.feature = feature
        """What a CPU and kernel must offer to take it, as /proc/cpuinfo calls it, or nothing."""
        self.title = title
        """What to call it in a sentence."""
        self.gone = gone
        """Why no kernel takes it any more, whatever the CPU offers; or nothing."""


def mask_of(records: Sequence[Record], states: Mapping[type[Record], State]) -> int:
    """The record mask that announces `records`. KeyError for a record that has no row in `states`."""
    mask = 0
    for record in records:
        mask |= 1 << states[type(record)].bit
    return mask


def in_order(records: Sequence[Record], states: Mapping[type[Record], State]) -> bool:
    """Whether all `records` have a row in `states`, and stand in the order of their bits, each once."""
    if any(type(record) not in states for record in records):
        return False
    bits = [states[type(record)].bit for record in records]
    return sorted(set(bits)) == bits


def refusals(
    features: str, model: str, used: int, here: Collection[str], cpu: str, states: Sequence[State], *, ran_on: str
) -> list[str]:
    """Why an image cannot run where the features `here` are offered, a sentence for each reason.

    `features` and `model` are those of the image's architecture header, `used` is the union of its threads' masks. `cpu` is "same"
    when the program may use whatever its old CPU offered, "used" when the user says that it only needs what it holds
    state of. `ran_on`: what to call the old CPU.
    """
    if not (features.isprintable() and model.isprintable()):
        return ["the features of the CPU it comes from are no words that can be printed; take another checkpoint"]
    found = []
    known = sum(1 << state.bit for state in states)
    unknown = [str(bit) for bit in range(64) if (used & ~known) >> bit & 1]
    if unknown:
        found.append(
            f"the threads have register records of kinds that this version of torpor does not know (bits "
            f"{', '.join(unknown)}); restart them with the version that wrote them, or a newer one"
        )
    needed: dict[str, list[State]] = {}
    for state in states:
        if used >> state.bit & 1 and state.feature:
            needed.setdefault(state.feature, []).append(state)
    for feature, users in needed.items():
        if users[0].gone:
            found.append(f"{feature}: {users[0].gone}")
        elif feature not in here:
            found.append(
                f"{feature}: its {' and '.join(state.title for state in users)} are in use, and this CPU or kernel has none; "
                f"restart on a machine with {feature}"
            )
    lacking = sorted(set(features.split()) - set(here) - needed.keys())
    if lacking and cpu != "used":
        found.append(
            f"{', '.join(lacking)}: offered to the program where it ran ({ran_on}), not here; "
            "it may have chosen its code accordingly; restart on such a CPU, or say cpu=used if it uses none of them"
        )
    return found
