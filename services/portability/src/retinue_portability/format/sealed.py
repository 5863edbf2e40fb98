"""Bundles as a whole: what is sealed here is opened here, byte for byte, and nothing else is.

The outer message is read by hand. Its manifest comes first and its signature is its last 66 bytes, so that this is
checked before anything is believed; and as the manifest then says what each part must look like, down to its length,
any byte that is not as it was is found in the part to which it belongs.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from retinue.portability.v1 import bundle_pb2 as pb

from retinue_portability.domain.content import Bundle
from retinue_portability.domain.content import cursor_of as read_cursor
from retinue_portability.domain.losses import item_counts
from retinue_portability.format import canonical, parts
from retinue_portability.format.signing import SIGNATURE_BYTES, Signer

SCHEMA_VERSION = 1
"""Version that is written. A reader of it stays for ever; see READERS."""

SIZE_MAX_BYTES = 3 * 1024 * 1024
"""Of a bundle, as the contract says."""

_MANIFEST, _PART, _SIGNATURE, _NAME, _CONTENT = b"\x0a", b"\x12", b"\x1a", b"\x0a", b"\x12"
"""Tags of the outer message's fields, all of them bytes or text."""

_VARINT_BYTES_MAX = 5
_TAIL = _SIGNATURE + bytes([SIGNATURE_BYTES])
_TAIL_BYTES = len(_TAIL) + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle that is whole and ours."""

    data: bytes
    manifest: pb.Manifest
    bundle: Bundle

    @property
    def digest(self) -> str:
        """SHA-256 of the whole, in hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    def facts(self) -> pb.BundleFacts:
        """It in figures."""
        return pb.BundleFacts(
            digest=self.digest,
            size_bytes=len(self.data),
            token_count=self.bundle.content.token_count(),
            manifest=self.manifest,
        )


def seal(bundle: Bundle, signer: Signer) -> Sealed:
    """Write and sign a bundle: the same bytes for the same bundle and key."""
    contents = parts.write(bundle.content)
    counts = item_counts(bundle.content)
    manifest = pb.Manifest(
        schema_version=SCHEMA_VERSION,
        through_cursor=str(bundle.through),
        token_budget=bundle.token_budget,
        parts=[
            pb.PartDigest(
                name=name, sha256=hashlib.sha256(data).digest(), size_bytes=len(data), item_count=counts[name]
            )
            for name, data in contents.items()
        ],
        redactions=[
            pb.Redaction(part=part, rule=rule, count=count)
            for (part, rule), count in sorted(bundle.taken.items())
            if count
        ],
        key_id=signer.key_id,
    )
    head = canonical.write(manifest)
    pieces = [_MANIFEST, _varint(len(head)), head]
    for name, content in contents.items():
        pieces += [_frame(name, len(content)), content]
    data = b"".join([*pieces, _TAIL, signer.sign(head)])
    return Sealed(data, manifest, bundle)


def open_sealed(data: bytes, signer: Signer) -> Sealed:
    """Read a bundle. Raises BUNDLE_INVALID with the part that is not as it was sealed."""
    if len(data) > SIZE_MAX_BYTES:
        raise canonical.invalid("manifest", f"speaks of more than {SIZE_MAX_BYTES >> 20} MiB")
    head, start = _head(data)
    version, key_id = _version(head)
    if version > SCHEMA_VERSION:
        raise canonical.invalid(
            "manifest", f"is of version {version} of the format, and this deployment reads up to {SCHEMA_VERSION}"
        )
    reader = READERS.get(version)
    if reader is None:
        raise canonical.invalid("manifest", "names no version of the format")
    end = len(data) - _TAIL_BYTES
    if end < start or data[end : end + len(_TAIL)] != _TAIL:
        raise canonical.invalid("signature", "is not where it must be")
    if not signer.knows(key_id):
        raise canonical.invalid("signature", "is by a key that this deployment does not know")
    if not signer.verifies(key_id, data[end + len(_TAIL) :], head):
        raise canonical.invalid("signature", "does not fit its manifest")
    return reader(data, head, start, end)


def _head(data: bytes) -> tuple[bytes, int]:
    """Find the manifest's bytes, and where the parts begin."""
    size, shift, at = 0, 0, 1
    while True:
        if data[:1] != _MANIFEST or at > _VARINT_BYTES_MAX or at >= len(data):
            raise canonical.invalid("manifest", "is not where it must be")
        size |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            break
    head = data[at : at + size]
    if len(head) != size or _varint(size) != data[1:at]:
        raise canonical.invalid("manifest", "is not as long as it says")
    return head, at + size


def _version(head: bytes) -> tuple[int, str]:
    """Read of a manifest of any version what all versions have: which it is, and who has signed it."""
    try:
        found = pb.Manifest.FromString(head)
    except DecodeError:
        raise canonical.invalid("manifest", "cannot be read") from None
    return found.schema_version, found.key_id


def _read_1(data: bytes, head: bytes, start: int, end: int) -> Sealed:
    """Read version 1, whose manifest is signed by a key that is known."""
    manifest = canonical.read(pb.Manifest, head, "manifest")
    through = read_cursor(manifest.through_cursor)
    taken = Counter({(one.part, one.rule): one.count for one in manifest.redactions})
    order = [(one.part, one.rule) for one in manifest.redactions]
    sound = through is not None and order == sorted(taken) and all(count > 0 for count in taken.values())
    if through is None or not sound or tuple(digest.name for digest in manifest.parts) != parts.NAMES:
        raise canonical.invalid("manifest", "does not list what it must, in the order in which it must")
    contents: dict[str, bytes] = {}
    at = start
    for digest in manifest.parts:
        frame = _frame(digest.name, digest.size_bytes)
        begin, at = at + len(frame), at + len(frame) + digest.size_bytes
        content = data[begin:at]
        if data[begin - len(frame) : begin] != frame or at > end:
            raise canonical.invalid(digest.name, "is not where it must be, or not as long as it was")
        if hashlib.sha256(content).digest() != digest.sha256:
            raise canonical.invalid(digest.name, "is not what it was when it was sealed")
        contents[digest.name] = content
    if at != end:
        raise canonical.invalid("manifest", "does not speak of all that there is")
    found = parts.read(contents)
    counts = item_counts(found)
    for digest in manifest.parts:
        if digest.item_count != counts[digest.name]:
            raise canonical.invalid(digest.name, "does not hold as much as it says")
    return Sealed(data, manifest, Bundle(found, through, manifest.token_budget, taken))


READERS: dict[int, Callable[[bytes, bytes, int, int], Sealed]] = {1: _read_1}
"""Who reads which version. What was written once can be read for ever: a reader is added, and none taken away."""


def _frame(name: str, size: int) -> bytes:
    """What stands before the content of a part: the tags and lengths of the part, its name and its content."""
    title = name.encode()
    inner = _NAME + _varint(len(title)) + title + (_CONTENT + _varint(size) if size else b"")
    return _PART + _varint(len(inner) + size) + inner


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
