"""From an OSError to a sentence with a remedy, for both directions."""

from __future__ import annotations

import errno
import os

from torpor.errors import NoPermission, Obstacle, TorporError

# What to do about it, where the kernel's own words leave that open.
REMEDIES = {
    errno.ENOSPC: "make room, or write the image elsewhere",
    errno.EDQUOT: "make room, or write the image elsewhere",
    errno.EFBIG: "raise `ulimit -f`, or write to a file system that takes larger files",
    errno.EROFS: "write the image elsewhere",
    errno.EACCES: "choose another place, or run as a user who may use it",
    errno.EPERM: "choose another place, or run as a user who may use it",
    errno.EPIPE: "look at the program that was to read it: it ended first",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
}


def failure(what: str, doing: str, error: OSError) -> TorporError:
    """The sentence for an OSError: `what` is the path or stream, `doing` what was to be done with it."""
    kind = NoPermission if error.errno in (errno.EACCES, errno.EPERM) else TorporError
    reason = os.strerror(error.errno or 0)
    return kind(Obstacle(what, f"cannot {doing}: {reason}", REMEDIES.get(error.errno or 0, "")))
