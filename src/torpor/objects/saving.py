"""What the object kinds share while an image is written: the writer, the ids, and what has been written already."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

    from torpor.image.record import Record
    from torpor.image.writer import ImageWriter
    from torpor.objects.nodes import Code


class Saving:
    """One image in the making.

    Shared objects are written once and named by their id afterwards (R-B4): `seen` remembers, under a key that each kind
    chooses for itself, the id of everything that has been written.
    """

    def __init__(self, writer: ImageWriter, code: Code) -> None:
        self.writer, self.code = writer, code
        self._last = 0
        self._seen: dict[Hashable, int] = {}

    def new_id(self) -> int:
        """An id that no record of this image has yet."""
        self._last += 1
        return self._last

    def known(self, key: Hashable) -> int:
        """The id of the object written under `key`, or 0."""
        return self._seen.get(key, 0)

    def also(self, key: Hashable, known: Hashable) -> None:
        """Make what was written under `known` known under `key` too."""
        self._seen[key] = self._seen[known]

    def add(self, record: Record, key: Hashable = None) -> int:
        """Write `record` and remember its id under `key`. Returns the id (0 for a record that has none)."""
        self.writer.add(record)
        number: int = getattr(record, "id", 0)
        if key is not None:
            self._seen[key] = number
        return number
