"""Compressed chunks (zstd, RFC 8878), with what there is: Python's own module (3.14), or the library `zstandard`.

Neither is needed by an image without compressed chunks.
"""

from __future__ import annotations

from torpor.errors import Obstacle, Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = range(1, 20)
"""Above 19, zstd takes more memory than all else that torpor does."""

USUAL = 3

_MISSING = Obstacle("zstd", "this Python has no module for it", "pip install zstandard (or apt install python3-zstandard)")


def level_of(text: str) -> int:
    """The level that "zstd" or "zstd:LEVEL" asks for; 0 for "". Raises UsageError."""
    if not text:
        return 0
    method, colon, level = text.partition(":")
    if method != "zstd" or (colon and not (level.isascii() and level.isdigit() and int(level) in LEVELS)):
        remedy = f"say zstd, or zstd:LEVEL, from {LEVELS[0]} (quick) to {LEVELS[-1]} (small)"
        raise UsageError(Obstacle("compression", f"{text!r} is none that is known", remedy))
    return int(level) if colon else USUAL


def missing() -> Obstacle | None:
    """Why nothing can be compressed or decompressed here, or None."""
    try:
        compressor(USUAL)
    except Unsupported as error:
        return error.obstacles[0]
    return None


def compressor(level: int) -> Callable[[bytes | memoryview], bytes]:
    """A function that compresses, in the thread it is made for. Raises Unsupported where there is no library."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]

        made: Callable[[bytes | memoryview], bytes] = zstd.ZstdCompressor(level).compress
        flush = zstd.ZstdCompressor.FLUSH_FRAME
        return lambda data: made(data, flush)  # type: ignore[call-arg]
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise Unsupported(_MISSING) from None
    return zstandard.ZstdCompressor(level=level).compress


def decompress(data: bytes, length: int) -> bytes:
    """The `length` bytes that were compressed to `data`. ValueError if it is not so; Unsupported without library."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]

        decompressor = zstd.ZstdDecompressor()
        try:
            result: bytes = decompressor.decompress(data, length)
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from None
        whole = decompressor.eof and not decompressor.unused_data
    except ImportError:
        try:
            import zstandard
        except ImportError:
            raise Unsupported(_MISSING) from None
        try:
            if zstandard.frame_content_size(data) != length:  # as much memory is taken
                raise ValueError("its length is another than the record says")
            result = zstandard.ZstdDecompressor().decompress(data, length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
        whole = True
    if len(result) != length or not whole:
        raise ValueError(f"{len(result)} bytes instead of {length}")
    return result
