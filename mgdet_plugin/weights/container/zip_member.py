"""The one member of a ``.keras`` archive that holds the weights, found without trusting the archive.

``config.json``, from which Keras would build objects, is never opened, and nothing is unpacked to a named file.
"""
from __future__ import annotations

import io
import os
import struct
import tempfile
import zipfile
import zlib

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.file_window import BLOCK_BYTES, FileWindow
from mgdet_plugin.weights.container.stored_array import MAX_EXPANSION, damage_refused

HDF5_MAGIC = b'\x89HDF\r\n\x1a\n'
MEMBER = 'model.weights.h5'
MAX_MEMBER_BYTES = 2 ** 30      # a training checkpoint of the full network with Adam's moments takes 540 MB
MAX_DIRECTORY_BYTES = 2 ** 20
MAX_MEMBERS = 1_000             # a .keras file has three, and more where layers carry assets
END_BYTES = 22                  # of the end record, without a comment
TORCH_HINT = '; it looks like a PyTorch checkpoint, which needs no import'
LOCAL_HEADER = struct.Struct('<4s5H3I2H')


def member_window(whole: FileWindow, name: str) -> FileWindow:
    """The bytes of ``model.weights.h5`` inside a ``.keras`` archive, their checksum verified.

    Args:
        whole: The opened archive.
        name: What to call the file in messages.

    Returns:
        A part of the archive itself where the member is stored as it is (so Keras writes it), else of a nameless
        temporary file with the unpacked member.

    Raises:
        UserError: The archive is damaged, lacks the member, holds it twice, or the member breaks a cap.
    """
    check_directory(whole, name)
    with (damage_refused(name, 'damaged or encrypted .keras archive', 'it'),
          zipfile.ZipFile(whole) as archive):  # type: ignore[type-var, arg-type]
        info = find_member(archive, name)
        start = check_places(whole, archive, info)
        packed = FileWindow(whole.stream, whole.offset + start, info.compress_size)
        if info.compress_type == zipfile.ZIP_STORED:
            window = packed
            verify_checksum(packed, info)
        else:
            window = inflated(packed, info, name)
    window.seek(0)
    if window.read(8) != HDF5_MAGIC:
        raise UserError(f'{name}: {MEMBER} inside it is not HDF5')
    return window


def check_directory(whole: FileWindow, name: str) -> None:
    """Refuse a zip whose table of contents is missing, too large or not the last thing, before it is read whole."""
    whole.seek(max(0, whole.size - END_BYTES - 20))
    tail = whole.read(END_BYTES + 20) or b''
    end, before = tail[-END_BYTES:], tail[:-END_BYTES]
    if len(end) < END_BYTES or end[:4] != b'PK\x05\x06' or end[20:] != b'\0\0':
        raise UserError(f'{name}: truncated .keras archive (no table of contents at its end); copy or download it '
                        'again')
    disk, first_disk, here, members, size, start = struct.unpack('<4H2I', end[4:20])
    if size > MAX_DIRECTORY_BYTES or members > MAX_MEMBERS:
        raise UserError(f'{name}: a table of contents of {size:,} bytes for {members:,} members; a .keras archive has '
                        'three members')
    if before[:4] == b'PK\x06\x07':
        whole.seek(0)
        torch_file = b'data.pkl' in (whole.read(256) or b'')
        raise UserError(f'{name}: a zip archive in the form for more than 4 GB, which Keras does not write'
                        + (TORCH_HINT if torch_file else ''))
    if disk or first_disk or here != members or start + size + END_BYTES != whole.size:
        raise UserError(f'{name}: damaged or encrypted .keras archive (its table of contents does not fit the file); '
                        'copy or download it again')


def find_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The directory's entry of the member, held against the caps."""
    if len(archive.infolist()) > MAX_MEMBERS:
        raise UserError(f'{name}: {len(archive.infolist()):,} members; a .keras archive has three')
    found = [info for info in archive.infolist() if MEMBER in (info.filename, info.orig_filename)]
    if len(found) != 1 or found[0].orig_filename != MEMBER:
        torch_file = any(info.filename.endswith('data.pkl') for info in archive.infolist())
        raise UserError(f'{name}: {len(found)} members named {MEMBER} in this archive, a .keras file has one'
                        + (TORCH_HINT if torch_file else ''))
    info = found[0]
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f'{name}: {MEMBER} is compressed by method {info.compress_type}; only deflate is read')
    cap = min(MAX_MEMBER_BYTES, MAX_EXPANSION * info.compress_size)
    if info.file_size > cap:
        raise UserError(f'{name}: {MEMBER} claims {info.file_size:,} bytes, at most {cap:,} are accepted')
    return info


def check_places(whole: FileWindow, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Where the member's bytes begin, its own header and all members' places held against the directory."""
    starts = sorted((entry.header_offset, entry.compress_size) for entry in archive.infolist())
    ends = [*starts[1:], (archive.start_dir, 0)]
    if starts[0][0] or any(start + LOCAL_HEADER.size + size > following
                           for (start, size), (following, _) in zip(starts, ends, strict=True)):
        raise zipfile.BadZipFile('its members overlap, or something lies before them')
    whole.seek(info.header_offset)
    raw = whole.read(LOCAL_HEADER.size) or b''
    mark, _, flags, method, _, _, crc, packed, size, name_size, extra_size = LOCAL_HEADER.unpack(raw)
    if mark != b'PK\x03\x04' or (flags | info.flag_bits) & 0x2041:  # encrypted, strongly, or the header masked
        raise zipfile.BadZipFile(f'{MEMBER} is encrypted or its header is damaged')
    stored_name, extra = whole.read(name_size) or b'', whole.read(extra_size) or b''
    if (packed, size) == (2 ** 32 - 1,) * 2 and extra[:4] == b'\1\0\x10\0':  # sizes of 64 bits
        size, packed = struct.unpack('<2Q', extra[4:20])
    stated = (info.CRC, info.compress_size, info.file_size)
    later = flags & 8 and not crc | packed | size  # sizes follow the data
    if stored_name != MEMBER.encode() or method != info.compress_type or (not later and (crc, packed, size) != stated):
        raise zipfile.BadZipFile(f'{MEMBER} and the table of contents disagree')
    start = info.header_offset + LOCAL_HEADER.size + name_size + extra_size
    following = min(end for end, _ in ends if end > info.header_offset)
    if start + info.compress_size > following:
        raise zipfile.BadZipFile(f'{MEMBER} reaches into what follows it')
    return start


def verify_checksum(packed: FileWindow, info: zipfile.ZipInfo) -> None:
    """Hold a member stored as it is against its checksum, without keeping it."""
    if info.file_size != info.compress_size:
        raise zipfile.BadZipFile(f'{MEMBER} is stated with two sizes')
    checksum, block = 0, bytearray(BLOCK_BYTES)
    while count := packed.readinto(block):
        checksum = zlib.crc32(memoryview(block)[:count], checksum)
    if checksum != info.CRC:
        raise zipfile.BadZipFile(f'Bad CRC-32 of {MEMBER}')


def inflated(packed: FileWindow, info: zipfile.ZipInfo, name: str) -> FileWindow:
    """Unpack a member into memory, or into a nameless temporary file where the system has no files in memory."""
    inflate, checksum, done = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    if hasattr(os, 'memfd_create'):
        target = io.FileIO(os.memfd_create('keras-member', os.MFD_CLOEXEC), 'r+')
    else:
        target = tempfile.TemporaryFile('w+b', buffering=0)  # type: ignore[assignment]  # noqa: SIM115
    while not inflate.eof:
        block = inflate.unconsumed_tail or packed.read(BLOCK_BYTES) or b''
        out = inflate.decompress(block, BLOCK_BYTES)
        done += len(out)
        if done > info.file_size:
            raise zipfile.BadZipFile(f'{MEMBER} unpacks to more than the {info.file_size:,} bytes stated')
        if not (block or out):
            break
        if not done - len(out) and out[:8] != HDF5_MAGIC[:len(out)]:
            raise UserError(f'{name}: {MEMBER} inside it is not HDF5')
        checksum = zlib.crc32(out, checksum)
        target.write(out)
    if done != info.file_size:
        raise UserError(f'{name}: {MEMBER} is not of the {info.file_size:,} bytes the archive states')
    if not inflate.eof or inflate.unused_data or packed.tell() != packed.size or checksum != info.CRC:
        raise zipfile.BadZipFile(f'Bad CRC-32 of {MEMBER}')
    return FileWindow(target, 0, done)
