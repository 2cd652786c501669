"""Small RAR archives for tests, of stored members only: RAR5 and RAR3 (the format of RAR 2.9 to 4).

In: members. Out: the archive's bytes. Written from the published description of RAR5
(https://www.rarlab.com/technote.htm) and, for RAR3, from `technote.txt` of RAR 4.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import struct
import zlib

_RAR5_START = b"Rar!\x1a\x07\x01\x00"
_RAR3_START = b"Rar!\x1a\x07\x00"
_RAR3_END = b"\xc4\x3d\x7b\x00\x40\x07\x00"


@dataclasses.dataclass(frozen=True)
class Member:
  """One file, or what claims to be one.

  Attributes:
    name: its path in the archive.
    content: its bytes.
    method: 0 stored; 1 to 5 only claims to be compressed.
    link: where a symbolic link points to; None for a file (RAR5).
    encrypted: claims to be (RAR5).
  """

  name: str
  content: bytes = b""
  method: int = 0
  link: str | None = None
  encrypted: bool = False


def archive(
  members: Mapping[str, bytes] | Iterable[Member],
  *,
  version: int = 5,
  more_volumes: bool = False,
  locked: bool = False,
) -> bytes:
  """A RAR archive.

  Args:
    members: names to contents, or members.
    version: 5 or 3.
    more_volumes: whether it says that another volume follows (RAR5).
    locked: whether its headers claim to be encrypted (RAR5).
  """
  if isinstance(members, Mapping):
    members = [Member(name, content) for name, content in members.items()]
  if version == 3:
    start = _RAR3_START + _rar3_block(0x73, 0, bytes(6))
    return start + b"".join(map(_rar3_file, members)) + _RAR3_END
  blocks = [_RAR5_START]
  if locked:
    blocks.append(_rar5_block(4, _number(0) + _number(0) + b"\x0f" + bytes(16)))
  blocks.append(_rar5_block(1, _number(1 if more_volumes else 0)))
  blocks += map(_rar5_file, members)
  blocks.append(_rar5_block(5, _number(1 if more_volumes else 0)))
  return b"".join(blocks)


def _number(value: int) -> bytes:
  """RAR5's integers: seven bits a byte, the lowest first."""
  out = bytearray()
  while value >= 0x80:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*out, value])


def _text(value: str) -> bytes:
  encoded = value.encode()
  return _number(len(encoded)) + encoded


def _rar5_block(kind: int, fields: bytes, extra: bytes = b"", data: bytes | None = None) -> bytes:
  flags = (1 if extra else 0) | (0 if data is None else 2)
  header = _number(kind) + _number(flags)
  header += _number(len(extra)) if extra else b""
  header += b"" if data is None else _number(len(data))
  header += fields + extra
  sized = _number(len(header)) + header
  return struct.pack("<L", zlib.crc32(sized)) + sized + (data or b"")


def _rar5_file(member: Member) -> bytes:
  has_crc32, unix = 4, 1
  fields = _number(has_crc32) + _number(len(member.content)) + _number(0o644)
  fields += struct.pack("<L", zlib.crc32(member.content))
  fields += _number(member.method << 7) + _number(unix) + _text(member.name)
  records = b""
  if member.link is not None:
    records += _sized(_number(5) + _number(1) + _number(0) + _text(member.link))
  if member.encrypted:
    records += _sized(_number(1) + _number(0) + _number(0) + b"\x0f" + bytes(32))
  return _rar5_block(2, fields, records, member.content)


def _sized(record: bytes) -> bytes:
  return _number(len(record)) + record


def _rar3_block(kind: int, flags: int, fields: bytes) -> bytes:
  header = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
  return struct.pack("<H", zlib.crc32(header) & 0xFFFF) + header


def _rar3_file(member: Member) -> bytes:
  long_block, utf8_name, unix = 0x8000, 0x200, 3
  name = member.name.encode()
  size = len(member.content)
  fields = struct.pack(
    "<LLBLLBBHL",
    size,
    size,
    unix,
    zlib.crc32(member.content),
    0x21,  # the first day that DOS knows
    29,
    0x30 + member.method,
    len(name),
    0o100644,
  )
  return _rar3_block(0x74, long_block | utf8_name, fields + name) + member.content
