"""torpor.linux.kcmp against processes that do and do not share."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from torpor.linux import kcmp

if TYPE_CHECKING:
    from tests.linux.conftest import Child

Start = Callable[..., "Child"]


@pytest.fixture(autouse=True)
def there() -> None:
    try:
        kcmp.same(os.getpid(), os.getpid(), kcmp.VM)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        pytest.skip("no kcmp(2) here")


FILES = """
a = os.open("/dev/null", os.O_RDONLY)
b = os.open("/dev/null", os.O_RDONLY)
c = os.dup(a)
pid = os.fork()
if not pid:
    os.read(0, 1)
    os._exit(0)
say(a=a, b=b, c=c, pid=pid)
"""


def test_files(start: Start) -> None:
    child = start(FILES)
    a, b, c, pid = (child.facts[key] for key in ("a", "b", "c", "pid"))
    assert kcmp.same_file(child.pid, a, child.pid, c)
    assert not kcmp.same_file(child.pid, a, child.pid, b)
    assert kcmp.same_file(child.pid, b, pid, b) and not kcmp.same_file(child.pid, a, pid, b)
    assert kcmp.order_files(child.pid, a, pid, c) == 0
    forth, back = kcmp.order_files(child.pid, a, child.pid, b), kcmp.order_files(child.pid, b, child.pid, a)
    assert {forth, back} == {-1, 1}
    with pytest.raises(OSError) as caught:
        kcmp.same_file(child.pid, 999, child.pid, a)
    assert caught.value.errno == errno.EBADF


def test_order_sorts(start: Start) -> None:
    child = start("""
made = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
made += [os.dup(fd) for fd in made]
say(made=made)
""")
    made: list[int] = child.facts["made"]

    def order(x: int, y: int) -> int:
        return kcmp.order_files(child.pid, x, child.pid, y)

    ordered = sorted(made, key=functools.cmp_to_key(order))
    twin = {fd: made[(i + 20) % 40] for i, fd in enumerate(made)}
    assert all(twin[x] == y for x, y in zip(ordered[::2], ordered[1::2], strict=True))


def test_tasks(start: Start) -> None:
    child = start("""
hold = threading.Event()
t = threading.Thread(target=hold.wait, daemon=True)
t.start()
pid = os.fork()
if not pid:
    os.read(0, 1)
    os._exit(0)
say(tid=t.native_id, pid=pid)
""")
    for kind in (kcmp.VM, kcmp.FILES, kcmp.FS, kcmp.SIGHAND):
        assert kcmp.same(child.pid, child.facts["tid"], kind)
        assert not kcmp.same(child.pid, child.facts["pid"], kind)
        assert kcmp.order(child.pid, child.facts["tid"], kind) == 0
        assert kcmp.order(child.pid, child.facts["pid"], kind) == -kcmp.order(child.facts["pid"], child.pid, kind) != 0
    # A thread shares its leader's undo list, a child begins without one, and "none" is the same as "none".
    assert kcmp.same(child.pid, child.facts["tid"], kcmp.SYSVSEM)
    assert not kcmp.same(child.pid, child.facts["pid"], kcmp.SYSVSEM)
    assert kcmp.same(start("say()").pid, child.facts["pid"], kcmp.SYSVSEM)
    with pytest.raises(ProcessLookupError):
        kcmp.same(child.pid, 2**22 + 1, kcmp.VM)


def test_epoll_target_whose_descriptor_is_closed(start: Start) -> None:
    child = start("""
import select
a, b = os.eventfd(0), os.eventfd(0)
keep = os.dup(a)
e = select.epoll()
e.register(a, 1)
os.close(a)
say(a=a, b=b, keep=keep, e=e.fileno())
""")
    facts = child.facts
    assert kcmp.same_epoll_target(child.pid, facts["keep"], child.pid, facts["e"], facts["a"])
    assert not kcmp.same_epoll_target(child.pid, facts["b"], child.pid, facts["e"], facts["a"])
    with pytest.raises(FileNotFoundError):
        kcmp.same_epoll_target(child.pid, facts["b"], child.pid, facts["e"], facts["b"])
    with pytest.raises(FileNotFoundError):
        kcmp.same_epoll_target(child.pid, facts["keep"], child.pid, facts["e"], facts["a"], 1)
