"""torpor: checkpoint and restart of running Linux programs.

    torpor.checkpoint(pid, "run.torpor")         save a process and all its descendants
    torpor.restart("run.torpor").wait()          make it go on
    torpor.checkpoint_self("me.torpor")          save the caller: > 0 in the program that goes on, 0 in the restarted one
    torpor.open_image("run.torpor")              look into an image

Each raises a `TorporError`, whose subclass tells the kind and whose `obstacles` tell every reason. Modules are loaded when they
are first used: `import torpor` itself costs next to nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.checkpoint import checkpoint as checkpoint
    from torpor.errors import BadImage as BadImage
    from torpor.errors import NoPermission as NoPermission
    from torpor.errors import Obstacle as Obstacle
    from torpor.errors import TorporError as TorporError
    from torpor.errors import Unsupported as Unsupported
    from torpor.errors import UsageError as UsageError
    from torpor.image.reader import Image
    from torpor.restart import Restarted as Restarted
    from torpor.restart import restart as restart
    from torpor.selfsave import checkpoint_self as checkpoint_self

    open_image = Image.open

__version__ = "0.1.0"

__all__ = [
    "BadImage",
    "NoPermission",
    "Obstacle",
    "Restarted",
    "TorporError",
    "Unsupported",
    "UsageError",
    "checkpoint",
    "checkpoint_self",
    "open_image",
    "restart",
]

_WHERE = {"checkpoint": "checkpoint", "checkpoint_self": "selfsave", "restart": "restart", "Restarted": "restart"}


class _Package(type(sys)):  # type: ignore[misc]
    """This module, in which `checkpoint` and `restart` are the functions, also after the modules of that name were imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _WHERE and isinstance(value, type(sys)):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    """Load a public name from its module (PEP 562)."""
    if name == "open_image":
        from torpor.image.reader import Image

        return Image.open
    if name in __all__:
        import importlib

        found = getattr(importlib.import_module(f"torpor.{_WHERE.get(name, 'errors')}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'torpor' has no attribute {name!r}")
