"""What the kernel knows of this process's TCP connections, and how one of them is ended.

ZeroMQ owns its descriptors and has no call to evict a peer.  The kernel counts every connection's
bytes, though, and lets its process end a connection beside ZeroMQ's back: ZeroMQ sees an error on
its descriptor, as if the network had failed, and frees what it has buffered for the peer.

A descriptor may be closed and used again by ZeroMQ's thread at any moment.  So whatever changes a
connection does it through a duplicate whose inode was compared first; what only reads may
read of a wrong one, and the next survey puts it right.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import sys

from meterd.actors.listening.quiet_wait import STATM_SIZE, QuietWait

# Where `struct tcp_info` has tcpi_bytes_acked and tcpi_bytes_received (Linux 4.1 and later).
TCP_INFO_SIZE = 136
TCP_INFO_TOTALS = struct.Struct("=QQ")
TCP_INFO_TOTALS_AT = 120
TCP_LISTEN = 10
# `struct sockaddr_in` and `sockaddr_in6` both begin with family and port.
ADDRESS_SIZE = 28
ADDRESS_START = struct.Struct("!2sH")
TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)
FIONREAD = 0x541B
# Connecting to no address family at all resets a TCP connection and empties its buffers at once;
# `shutdown` would still deliver what the kernel has buffered.
NO_ADDRESS = struct.pack("=H14x", socket.AF_UNSPEC)

_libc = ctypes.CDLL(None)
_info = ctypes.create_string_buffer(TCP_INFO_SIZE)
_info_size = ctypes.c_uint32()
_waiting = ctypes.c_int()
_size = ctypes.c_int()
_address = ctypes.create_string_buffer(ADDRESS_SIZE)
_address_size = ctypes.c_uint32()


def descriptors() -> list[int]:
    """Return the open descriptors of this process."""
    return [int(name) for name in os.listdir("/proc/self/fd")]


def inode(descriptor: int) -> int:
    """Return the number that names what is open here, 0 when nothing is."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0


def is_client(descriptor: int, port: int) -> bool:
    """Is this a TCP connection that was accepted on `port`?"""
    _address_size.value = ADDRESS_SIZE
    if _libc.getsockname(descriptor, _address, ctypes.byref(_address_size)):
        return False
    family, own_port = ADDRESS_START.unpack_from(_address)
    if own_port != port or int.from_bytes(family, sys.byteorder) not in TCP_FAMILIES:
        return False
    _info_size.value = TCP_INFO_SIZE
    failed = _libc.getsockopt(
        descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, _info, ctypes.byref(_info_size)
    )
    return not failed and _info.raw[0] != TCP_LISTEN


def totals(descriptor: int) -> tuple[int, int]:
    """Return the bytes received on a connection and the bytes its peer has acknowledged."""
    _info_size.value = TCP_INFO_SIZE
    failed = _libc.getsockopt(
        descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, _info, ctypes.byref(_info_size)
    )
    if failed or _info_size.value < TCP_INFO_SIZE:
        return 0, 0
    acknowledged, received = TCP_INFO_TOTALS.unpack_from(_info, TCP_INFO_TOTALS_AT)
    return received, acknowledged


def waiting(descriptor: int) -> int:
    """Return the received bytes that are still in the kernel."""
    if _libc.ioctl(descriptor, FIONREAD, ctypes.byref(_waiting)):
        return 0
    return _waiting.value


def widen(descriptor: int, size: int) -> None:
    """Let the kernel take up to `size` bytes ahead of the process."""
    _size.value = size
    for level, option in (
        (socket.SOL_SOCKET, socket.SO_RCVBUF),
        (socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP),
    ):
        _libc.setsockopt(descriptor, level, option, ctypes.byref(_size), ctypes.sizeof(_size))


def reset(descriptor: int, key: int, port: int) -> bool:
    """End the connection on `port` with inode `key`; return whether it was still there."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return False
    try:
        if os.fstat(duplicate).st_ino != key or not is_client(duplicate, port):
            return False
        return _libc.connect(duplicate, NO_ADDRESS, len(NO_ADDRESS)) == 0
    finally:
        os.close(duplicate)


class ProcessMemory:
    """The resident memory of this process."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._last = b""
        self._wait: QuietWait | None = None
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        # The C library keeps what was freed, in pages between those still used; not every one can
        # give them back on demand.
        self._trim = getattr(_libc, "malloc_trim", None)

    def resident(self) -> int:
        """Return the resident bytes; a few microseconds."""
        self._last = os.pread(self._statm, STATM_SIZE, 0)
        return int(self._last.split(None, 2)[1]) * self._page_size

    def wait_unchanged(self, epoll: select.epoll, seconds: float, look_seconds: float) -> bool:
        """Wait for news at `epoll`, and look so often; False when `resident` is to be asked anew.

        The wait is at most `look_seconds` longer.
        """
        if self._wait is None:
            self._wait = QuietWait(epoll, self._statm)
        return self._wait.wait(self._last, seconds, look_seconds)

    def trim(self) -> None:
        """Give freed memory back to the system; milliseconds."""
        if self._trim is not None:
            self._trim(0)

    def close(self) -> None:
        os.close(self._statm)
