"""Bundles as bytes: one way to write them, and no byte that may change."""

import base64
import hashlib
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from conversations import KEY, SIGNER, bundle_of, chatter, composed, content, everything, fact, message
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from retinue.portability.v1 import bundle_pb2 as pb
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason, RetinueError
from retinue_portability.domain import budget
from retinue_portability.domain.content import Attachment, Bundle, Cursor, Summary
from retinue_portability.format import parts, sealed
from retinue_portability.format.signing import FORMER_KEYS_MAX, Signer, key_id_of, new_key

GOLDEN = Path(__file__).parents[2] / "fixtures/portability/v1.binpb"
GOLDEN_DIGEST = "af101156aad82e269d3e4c4d817738fb02ce783f8ebee5bb6e6cebf5eecd60a1"
"""What `everything` was written as in the first release of the format. It must never be another."""

OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def refused(data, signer=SIGNER):
    """Why a bundle is refused: the part, and the sentence."""
    with pytest.raises(RetinueError) as caught:
        sealed.open_sealed(data, signer)
    assert caught.value.reason is Reason.BUNDLE_INVALID
    return caught.value.metadata["part"], caught.value.message


def regions(data):
    """Name for each byte the parts that may be named when it changes."""
    message = pb.Bundle.FromString(data)
    sizes = [({"manifest", "signature"}, pb.Bundle(manifest=message.manifest).ByteSize())]
    sizes += [({part.name}, pb.Bundle(parts=[part]).ByteSize()) for part in message.parts]
    sizes.append(({"signature"}, pb.Bundle(signature=message.signature).ByteSize()))
    named = [names for names, size in sizes for _ in range(size)]
    assert len(named) == len(data)
    return named


def resealed(of, change_parts=None, change_manifest=None, signer=SIGNER):
    """Write a bundle as another writer with the right key might."""
    message = pb.Bundle.FromString(of.data)
    contents = {part.name: part.content for part in message.parts} | (change_parts or {})
    manifest = pb.Manifest.FromString(message.manifest)
    for digest in manifest.parts:
        digest.sha256 = hashlib.sha256(contents[digest.name]).digest()
        digest.size_bytes = len(contents[digest.name])
    if change_manifest:
        change_manifest(manifest)
    head = manifest.SerializeToString(deterministic=True)
    listed = [pb.Part(name=name, content=content) for name, content in contents.items()]
    return pb.Bundle(manifest=head, parts=listed, signature=signer.sign(head)).SerializeToString()


def test_what_is_sealed_is_opened_byte_for_byte_and_is_what_protobuf_would_write():
    made = everything()
    assert pb.Bundle.FromString(made.data).SerializeToString(deterministic=True) == made.data
    opened = sealed.open_sealed(made.data, SIGNER)
    assert (opened.bundle, opened.manifest) == (made.bundle, made.manifest)
    assert sealed.seal(opened.bundle, SIGNER).data == made.data
    facts = made.facts()
    assert facts.digest == hashlib.sha256(made.data).hexdigest()
    assert (facts.size_bytes, facts.token_count) == (len(made.data), made.bundle.content.token_count())
    assert [digest.name for digest in facts.manifest.parts] == list(parts.NAMES)


def test_a_bundle_of_the_first_release_is_read_for_ever_and_still_written_so():
    data = GOLDEN.read_bytes()
    assert sealed.open_sealed(data, SIGNER).bundle == everything().bundle
    assert everything().data == data
    assert hashlib.sha256(data).hexdigest() == GOLDEN_DIGEST


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=40)), max_size=6), st.integers(0, 2000)
)
def test_the_same_context_makes_the_same_bytes(said, room):
    messages = tuple(message(at, text, role) for at, (role, text) in enumerate(said, 1))
    bundle = Bundle(content(messages=messages), Cursor(9, 9), room)
    made = sealed.seal(bundle, SIGNER)
    assert sealed.seal(replace(bundle), SIGNER).data == made.data
    assert sealed.open_sealed(made.data, SIGNER).bundle == bundle
    assert pb.Bundle.FromString(made.data).SerializeToString(deterministic=True) == made.data


def test_an_empty_context_can_be_sealed():
    made = bundle_of([])
    assert sealed.open_sealed(made.data, SIGNER).bundle == composed([])


def test_any_byte_that_changes_is_refused_with_its_part():
    data = everything().data
    for at, names in enumerate(regions(data)):
        for bit in (0x01, 0x80):
            changed = bytearray(data)
            changed[at] ^= bit
            part, _ = refused(bytes(changed))
            assert part in names, (at, part, names)


def test_what_is_cut_off_or_appended_is_refused():
    data = everything().data
    for size in range(0, len(data), 7):
        refused(data[:size])
        refused(data[size:] if size else b"")
    assert refused(data + b"\0")[0] == "signature"
    assert refused(data + data)[0] == "manifest"
    assert refused(b"\x0a" + b"\xff" * 40)[0] == "manifest"
    assert "3 MiB" in refused(bytes(sealed.SIZE_MAX_BYTES + 1))[1]


def test_parts_of_two_bundles_cannot_be_mixed():
    one, other = pb.Bundle.FromString(everything().data), pb.Bundle.FromString(bundle_of(chatter(1, 2)).data)
    for at, part in enumerate(other.parts):
        if part.content != one.parts[at].content:
            mixed = pb.Bundle()
            mixed.CopyFrom(one)
            mixed.parts[at].CopyFrom(part)
            assert refused(mixed.SerializeToString())[0] == part.name
    swapped = pb.Bundle(manifest=one.manifest, parts=reversed(one.parts), signature=one.signature)
    assert refused(swapped.SerializeToString())[0] == parts.NAMES[0]


def test_only_a_key_that_is_known_may_have_signed():
    made = everything()
    assert "does not know" in refused(made.data, Signer(OTHER))[1]
    assert sealed.open_sealed(made.data, Signer(OTHER, [KEY.public_key()])).bundle == made.bundle
    forged = resealed(made, signer=Signer(OTHER))
    assert refused(forged) == ("signature", "The bundle cannot be taken: its signature does not fit its manifest.")


def test_a_higher_version_is_refused_with_a_clear_text():
    def higher(manifest):
        manifest.schema_version = 2

    def none(manifest):
        manifest.schema_version = 0

    part, why = refused(resealed(everything(), change_manifest=higher))
    assert part == "manifest"
    assert "version 2 of the format" in why
    assert "reads up to 1" in why
    assert refused(resealed(everything(), change_manifest=none))[0] == "manifest"


def _written(part):
    return part.SerializeToString(deterministic=True)


UNKNOWN = b"\xf8\x01\x01"
"""A field of the number 31."""

ONE, TWO = (
    pb.BundledMessage(message_id="m", role="user", text="a", run_id="r", cursor=cursor) for cursor in ("1-1", "2-1")
)
FACT = pb.BundledFact(fact_id="f", domain="d", kind="note", importance=5, text="x")
WRONG = {
    "settings": [UNKNOWN, b"\x0a\x00", b"\x12\x01a\x0a\x01b", b"\x0a\x01a\x0a\x01b", b"\x0a\x01\xff", b"\x0a\x05a"],
    "identity": [_written(pb.IdentityPart(tenant_id="t")) + UNKNOWN],
    "messages": [
        _written(pb.MessagesPart(messages=[TWO, ONE])),
        _written(pb.MessagesPart(messages=[ONE, ONE])),
        _written(pb.MessagesPart(messages=[pb.BundledMessage(role="system", cursor="1-1")])),
        _written(pb.MessagesPart(messages=[pb.BundledMessage(role="user", cursor="x")])),
    ],
    "facts": [
        _written(pb.FactsPart(facts=[FACT, FACT])),
        _written(pb.FactsPart(facts=[pb.BundledFact(fact_id="f", kind="note", importance=11)])),
        _written(pb.FactsPart(facts=[pb.BundledFact(fact_id="f", kind="rumour", importance=1)])),
    ],
    "summary": [
        _written(pb.SummaryPart(text="x", method="magic")),
        _written(pb.SummaryPart(message_count=-1)),
        _written(pb.SummaryPart(text="x", through_cursor="-")),
    ],
    "attachments": [_written(pb.AttachmentsPart(attachments=[pb.Attachment(path="b"), pb.Attachment(path="a")]))],
    "tool_calls": [_written(pb.ToolCallsPart(tool_calls=[pb.BundledToolCall(cursor="2-1"), pb.BundledToolCall()]))],
}


@pytest.mark.parametrize(("part", "data"), [(part, data) for part, all_of in WRONG.items() for data in all_of])
def test_what_is_not_written_in_the_one_way_is_refused_although_it_is_signed(part, data):
    assert refused(resealed(everything(), {part: data}))[0] == part


def test_a_part_that_holds_less_than_its_manifest_says_is_refused():
    assert refused(resealed(everything(), {"facts": _written(pb.FactsPart(facts=[FACT]))}))[0] == "facts"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.redactions.reverse(),
        lambda manifest: manifest.redactions.extend(list(manifest.redactions)),
        lambda manifest: manifest.parts.pop(),
        lambda manifest: manifest.parts.reverse(),
        lambda manifest: setattr(manifest, "through_cursor", "yesterday"),
    ],
)
def test_a_manifest_that_does_not_list_what_it_must_is_refused_although_it_is_signed(change):
    made = everything()
    made.bundle.taken["facts", "over_budget"] = 2
    again = sealed.seal(made.bundle, SIGNER)
    assert len(again.manifest.redactions) == 2
    assert refused(resealed(again, change_manifest=change))[0] == "manifest"


def test_bounded_the_largest_context_makes_less_than_what_a_bundle_may_have():
    names = count(1)
    messages = [message(at, "麻" * 60) for at in range(1, 5001)]
    messages += [message(at, "w" * 400_000) for at in range(5001, 5006)]
    whole = content(
        messages=tuple(messages), summary=Summary("s" * 900_000, Cursor(0, 1), 9, "model"),
        facts=tuple(fact(next(names), "f" * 150) for _ in range(2000)),
        attachments=tuple(Attachment(f"{at:04}" + "p" * 30, "r") for at in range(500)),
    )  # fmt: skip
    small, _ = budget.fit(whole, budget.TOKENS_MAX)
    assert 1_000_000 < len(sealed.seal(Bundle(small, Cursor(9, 9), 500_000), SIGNER).data) < sealed.SIZE_MAX_BYTES


def test_a_key_is_read_from_its_file_and_a_bad_one_named_in_one_line(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(new_key())
    former = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
    signer = Signer.load(path, f" {former}, ")
    assert signer.knows(SIGNER.key_id)
    assert signer.knows(signer.key_id)
    assert signer.key_id == key_id_of(signer._key.public_key())
    with pytest.raises(SettingError, match="cannot be read"):
        Signer.load(tmp_path / "absent")
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for wrong in (b"", b"nonsense", other):
        (tmp_path / "wrong").write_bytes(wrong)
        with pytest.raises(SettingError, match="must be an Ed25519 private key"):
            Signer.load(tmp_path / "wrong")
    for wrong in ("x", base64.b64encode(b"short").decode(), ",".join([former] * (FORMER_KEYS_MAX + 1))):
        with pytest.raises(SettingError, match="former key"):
            Signer.load(path, wrong)
