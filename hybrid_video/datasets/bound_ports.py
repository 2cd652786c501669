"""Ports that are reached by one address of this machine alone, for servers that listen on all of them.

In: the port that a library's server in this process has opened. Out: the same port, where the kernel drops
whatever comes for another address.

TensorFlow's servers cannot be told where to listen. A filter on their sockets does what binding would: it
looks at the address that a packet came for (Linux: `SO_ATTACH_FILTER`, socket(7); no rights are needed).
"""

from collections.abc import Iterator
import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import sys

_SO_ATTACH_FILTER, _SO_LOCK_FILTER = 26, 44
# Where a filter finds the packet's own header, linux/filter.h.
_NETWORK_HEADER = 0xFFF00000
_LOAD_BYTE, _LOAD_WORD, _AND, _RIGHT_SHIFT, _JUMP_IF_EQUAL, _RETURN = (
  0x30,
  0x20,
  0x54,
  0x74,
  0x15,
  0x06,
)
_TAKE, _DROP = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)
# Where the address that a packet goes to begins in its header.
_AT = {4: 16, 6: 24}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Instruction = tuple[int, int, int, int]


def restrict(port: int, address: Address) -> None:
  """Has the kernel drop what does not come for an address, or for loopback.

  Call it right after the port was opened: who connects in the milliseconds between stays connected.

  Args:
    port: that this process listens on.
    address: of this machine.

  Raises:
    OSError: the system cannot, or the process does not listen there.
  """
  program = _program(address)
  packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
  buffer = ctypes.create_string_buffer(packed, len(packed))
  described = struct.pack("@HP", len(program), ctypes.addressof(buffer))
  if not sys.platform.startswith("linux"):
    raise OSError("only Linux filters packets by socket")
  count = 0
  for listening in _listening(port):
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    listening.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
    count += 1
  if not count:
    raise OSError(f"this process does not listen on port {port}")


def _listening(port: int) -> Iterator[socket.socket]:
  """The sockets of this process that listen on a port; a library's server may have several."""
  for name in os.listdir("/proc/self/fd"):
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as opened:
      is_listening = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
      if is_listening and opened.getsockname()[1] == port:
        yield opened


def _program(address: Address) -> list[Instruction]:
  """A filter that lets through what comes for loopback or for an address, by either protocol."""
  program: list[Instruction] = []
  loopback = ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")
  for network in (*loopback, ipaddress.ip_network(f"{address}/{address.max_prefixlen}")):
    program += _take_if_for(network)
  return [*program, _DROP]


def _take_if_for(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[Instruction]:
  """Takes a packet that comes for a network, and otherwise goes on to what follows."""
  instructions: list[Instruction] = [
    (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
    (_RIGHT_SHIFT, 0, 0, 4),
    (_JUMP_IF_EQUAL, 0, 0, network.version),
  ]
  address, mask = network.network_address.packed, network.netmask.packed
  for at in range(0, len(address), 4):
    instructions += [
      (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _AT[network.version] + at),
      (_AND, 0, 0, int.from_bytes(mask[at : at + 4])),
      (_JUMP_IF_EQUAL, 0, 0, int.from_bytes(address[at : at + 4])),
    ]
  # A comparison that fails leaps over the rest, its `_TAKE` included.
  after = len(instructions) + 1
  return [
    (code, 0, after - at - 1 if code == _JUMP_IF_EQUAL else 0, value)
    for at, (code, _, _, value) in enumerate(instructions)
  ] + [_TAKE]
