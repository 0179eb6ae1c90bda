"""The XSAVE area, in whatever layout a CPU gives it: from register records to bytes and back.

The first 512 bytes are FXSAVE's on every CPU, the header of 64 follows, and then come the components that XCR0 enables,
where CPUID leaf 0xD says (Intel SDM vol. 1, 13.4; `cpu.host()` asks it). Linux shows a task's state in this standard
format, never compacted and always the whole of it (arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf).

A component whose XSTATE_BV bit is clear is in its initial state. One that holds its initial values counts as such as
well: then the bit only says that the hardware did not notice. MXCSR belongs to no component, but the kernel loads it
only together with SSE or AVX, so a record with either sets the SSE bit.
"""

from __future__ import annotations

import struct

from torpor.arch.x86.state import (
    STATE_OF,
    X87,
    X86Apx,
    X86Avx,
    X86BoundConfig,
    X86BoundRegisters,
    X86Opmask,
    X86Pkru,
    X86Sse,
    X86TileConfig,
    X86TileData,
    X86Zmm,
    X86ZmmHigh,
)
from torpor.errors import Obstacle, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from torpor.image.record import Record


FXSAVE_SIZE = 512
HEADER = 512
XCR0_AT = 464
"""Where Linux writes XCR0 into the bytes that FXSAVE leaves to software (struct _fpx_sw_bytes, asm/sigcontext.h)."""

FCW_AT_REST, MXCSR_AT_REST = 0x37F, 0x1F80
PKRU_AT_REST = 0x55555554
"""What Linux gives to every new program (arch/x86/mm/pkeys.c, init_pkru_value): only key 0 may be used."""
_MXCSR_MASK = 0xFFFF

_FX_WIDE = struct.Struct("<HHBxHQQ")  # fcw fsw ftw fop fip fdp: FXSAVE64, what a 64-bit kernel uses for every task
_FX_NARROW = struct.Struct("<HHBxHIHxxIHxx")  # fcw fsw ftw fop fip fcs fdp fds
_ST = struct.Struct("<" + "10s6x" * 8)
_ST_AT, _XMM_AT, _XMM_END = 32, 160, 416
_X87_AT_REST = struct.pack("<H22x", FCW_AT_REST)


class Component:
    """One extended component: its bytes, and how they become a record's fields."""

    __slots__ = ("narrow", "number", "put", "record", "size", "take")

    def __init__(
        self,
        record: type[Record],
        size: int,
        take: Callable[[bytes], Record],
        put: Callable[[Any], bytes],
        narrow: int = 0,
    ) -> None:
        self.number, self.record, self.size, self.take, self.put = STATE_OF[record].component, record, size, take, put
        self.narrow = narrow or size
        """How many of the bytes a 32-bit kernel saves: its XSAVE knows half of the registers."""


_TILE_CONFIG = struct.Struct("<BB14x8H16x8B8x")


def _tile_config(data: bytes) -> X86TileConfig:
    palette, start_row, *shapes = _TILE_CONFIG.unpack(data)
    return X86TileConfig(palette=palette, start_row=start_row, columns=shapes[:8], rows=shapes[8:])


EXTENDED: tuple[Component, ...] = (
    Component(X86Avx, 256, lambda b: X86Avx(ymm_high=b), lambda r: r.ymm_high, narrow=128),
    Component(X86Opmask, 64, lambda b: X86Opmask(k=list(struct.unpack("<8Q", b))), lambda r: struct.pack("<8Q", *r.k)),
    Component(X86ZmmHigh, 512, lambda b: X86ZmmHigh(zmm_high=b), lambda r: r.zmm_high, narrow=256),
    Component(X86Zmm, 1024, lambda b: X86Zmm(zmm=b), lambda r: r.zmm),
    Component(X86Pkru, 4, lambda b: X86Pkru(pkru=int.from_bytes(b, "little")), lambda r: r.pkru.to_bytes(4, "little")),
    Component(X86TileConfig, 64, _tile_config, lambda r: _TILE_CONFIG.pack(r.palette, r.start_row, *r.columns, *r.rows)),
    Component(X86TileData, 8192, lambda b: X86TileData(tiles=b), lambda r: r.tiles),
    Component(X86BoundRegisters, 64, lambda b: X86BoundRegisters(bounds=b), lambda r: r.bounds),
    Component(
        X86BoundConfig,
        16,
        lambda b: X86BoundConfig(bndcfgu=int.from_bytes(b[:8], "little"), bndstatus=int.from_bytes(b[8:], "little")),
        lambda r: struct.pack("<QQ", r.bndcfgu, r.bndstatus),
    ),
    Component(X86Apx, 128, lambda b: X86Apx(r=list(struct.unpack("<16Q", b))), lambda r: struct.pack("<16Q", *r.r)),
)
"""All of them start as zeros (Intel SDM vol. 1, 13.6), in ascending order of their record bits."""

_AT_REST = {part.record: bytes(part.size) for part in EXTENDED} | {X86Pkru: PKRU_AT_REST.to_bytes(4, "little")}
_KNOWN = 3 | sum(1 << part.number for part in EXTENDED)


class Layout:
    """How a CPU lays out the area: its size, the components that XCR0 enables, and offset and size of those in use.

    `wide`: the kernel is a 64-bit one; a 32-bit one saves the pointers of the x87 in another form, and 8 registers of
    16. A CPU without XSAVE has 512 bytes, components 0 and 1, and no header.
    """

    __slots__ = ("places", "size", "wide", "xcr0")

    def __init__(self, size: int, xcr0: int, places: Mapping[int, tuple[int, int]], *, wide: bool = True) -> None:
        self.size, self.xcr0, self.places, self.wide = size, xcr0, dict(places), wide

    def misfit(self, area: bytes) -> str | None:
        """Why `area`, as the kernel gave it, cannot be of this layout; None when it can."""
        if len(area) != self.size:
            return f"the kernel saves {len(area)} bytes of extended registers, the CPU's layout has {self.size}"
        xcr0 = int.from_bytes(area[XCR0_AT : XCR0_AT + 8], "little")
        if len(area) > FXSAVE_SIZE and xcr0 != self.xcr0:
            return f"the kernel saves the register components {xcr0:#x}, the CPU's layout has {self.xcr0:#x}"
        return None


def decode(area: bytes, layout: Layout) -> list[Record]:
    """The records of all components that are not at rest, in ascending bit order.

    Raises Unsupported for state in use of a kind that this version has no record for.
    """
    used = int.from_bytes(area[HEADER : HEADER + 8], "little") if layout.size > FXSAVE_SIZE else 3
    records: list[Record] = []
    if used & 1 and (area[:24] != _X87_AT_REST or area[_ST_AT:_XMM_AT].count(0) != _XMM_AT - _ST_AT):
        st = b"".join(_ST.unpack_from(area, _ST_AT))
        fcs = fds = 0
        if layout.wide:
            fcw, fsw, ftw, fop, fip, fdp = _FX_WIDE.unpack_from(area)
        else:
            fcw, fsw, ftw, fop, fip, fcs, fdp, fds = _FX_NARROW.unpack_from(area)
        records.append(X87(fcw=fcw, fsw=fsw, ftw=ftw, fop=fop, fcs=fcs, fds=fds, fip=fip, fdp=fdp, st=st))
    if used & 6:
        mxcsr = int.from_bytes(area[24:28], "little")
        registers = 256 if layout.wide else 128
        xmm = area[_XMM_AT : _XMM_AT + registers] if used & 2 else b""
        if mxcsr != MXCSR_AT_REST or xmm.count(0) != len(xmm):
            records.append(X86Sse(mxcsr=mxcsr, xmm=xmm.ljust(256, b"\0")))
    if used & ~_KNOWN:
        number = (used & ~_KNOWN).bit_length() - 1
        raise Unsupported(
            Obstacle("extended registers", f"state component {number} of the CPU is in use, which torpor cannot save")
        )
    for part in EXTENDED:
        if part.number in layout.places:
            start = layout.places[part.number][0]
            held = part.size if layout.wide else part.narrow
            data = area[start : start + held].ljust(part.size, b"\0") if used >> part.number & 1 else bytes(part.size)
            if data != _AT_REST[part.record]:
                records.append(part.take(data))
    return records


def encode(records: Sequence[Record], layout: Layout) -> bytes:
    """The area, in `layout`, that puts a task into the state of `records`, and at rest in everything else.

    Records that do not lie in the area (general registers, TLS ...) are passed over. Raises Unsupported for a component
    that `layout` has no place for.
    """
    area = bytearray(layout.size)
    given = {type(record): record for record in records}
    used, mxcsr = 0, MXCSR_AT_REST
    area[:24] = _X87_AT_REST
    x87, sse = given.get(X87), given.get(X86Sse)
    if isinstance(x87, X87):
        used |= 1
        front = (x87.fcw, x87.fsw, x87.ftw, x87.fop)
        if layout.wide:
            _FX_WIDE.pack_into(area, 0, *front, x87.fip, x87.fdp)
        else:
            _FX_NARROW.pack_into(area, 0, *front, x87.fip, x87.fcs, x87.fdp, x87.fds)
        _ST.pack_into(area, _ST_AT, *[x87.st[at : at + 10] for at in range(0, 80, 10)])
    if isinstance(sse, X86Sse):
        used |= 2
        mxcsr = sse.mxcsr
        area[_XMM_AT:_XMM_END] = sse.xmm
    struct.pack_into("<II", area, 24, mxcsr, _MXCSR_MASK)
    for part in EXTENDED:
        place, record = layout.places.get(part.number), given.get(part.record)
        if record is None and not (place and any(_AT_REST[part.record])):
            continue
        if place is None or place[1] < part.size:
            state = STATE_OF[part.record]
            raise Unsupported(Obstacle(state.title, f"this CPU or kernel does not offer {state.feature}"))
        used |= 1 << part.number
        area[place[0] : place[0] + part.size] = _AT_REST[part.record] if record is None else part.put(record)
    if layout.size > FXSAVE_SIZE:
        struct.pack_into("<Q", area, HEADER, used)
    return bytes(area)
