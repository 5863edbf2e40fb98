"""Bundles as clients get them, and what a model was told of them."""

from typing import Any

import httpx
from retinue.portability.v1 import bundle_pb2 as pb
from retinue.portability.v1 import portability_service_pb2 as portability_pb
from retinue.portability.v1 import portability_service_pb2_grpc as portability_grpc
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError

Line = tuple[str, str]


async def exported(client: httpx.AsyncClient, contact: str) -> bytes:
    """Download a contact's bundle."""
    answer = await client.get(f"/v1/contacts/{contact}/bundle")
    assert answer.status_code == 200, answer.text
    return answer.content


def parts_of(bundle: bytes) -> dict[str, bytes]:
    """A bundle's parts, by name."""
    return {part.name: part.content for part in pb.Bundle.FromString(bundle).parts}


def manifest_of(bundle: bytes) -> pb.Manifest:
    """What it says of itself."""
    return pb.Manifest.FromString(pb.Bundle.FromString(bundle).manifest)


def said_in(bundle: bytes) -> list[Line]:
    """The messages that it holds as they were said: role and text, oldest first."""
    found = pb.MessagesPart.FromString(parts_of(bundle)["messages"])
    return [(message.role, message.text) for message in found.messages]


def identity_of(bundle: bytes) -> pb.IdentityPart:
    """Whose it is."""
    return pb.IdentityPart.FromString(parts_of(bundle)["identity"])


async def built_again(peer: Peer, bundle: bytes) -> bytes:
    """Build the bundle of the same context: of its session, through its cursor, with its budget."""
    identity, manifest = identity_of(bundle), manifest_of(bundle)
    request = portability_pb.BuildBundleRequest(
        tenant_id=identity.tenant_id,
        session_id=identity.session_id,
        contact=identity.contact,
        through_cursor=manifest.through_cursor,
        token_budget=manifest.token_budget,
        allow_open=True,
    )
    stub = portability_grpc.PortabilityServiceStub(peer.channel)
    return (await peer.call(stub.BuildBundle, request)).bundle


async def refused_part(peer: Peer, tenant_id: str, bundle: bytes) -> str:
    """The part for which a bundle is refused; empty if it is not."""
    stub = portability_grpc.PortabilityServiceStub(peer.channel)
    request = portability_pb.VerifyBundleRequest(tenant_id=tenant_id, bundle=bundle)
    try:
        await peer.call(stub.VerifyBundle, request)
    except RetinueError as error:
        return error.metadata["part"] if error.reason is Reason.BUNDLE_INVALID else str(error.reason)
    return ""


def flipped(bundle: bytes, name: str) -> bytes:
    """The bundle with one bit of a part changed, in its middle."""
    content = parts_of(bundle)[name]
    at = bundle.index(content) + len(content) // 2
    return bundle[:at] + bytes([bundle[at] ^ 1]) + bundle[at + 1 :]


async def asked_of_the_model(model_url: str, text: str) -> dict[str, Any]:
    """The body of the latest request whose last user's message is this one."""
    async with httpx.AsyncClient(base_url=model_url.removesuffix("/v1"), trust_env=False) as model:
        requests = (await model.get("/_requests")).json()
    for request in reversed(requests):
        body: dict[str, Any] = request["body"]
        spoken = spoken_in(body)
        if spoken and spoken[-1] == ("user", text):
            return body
    raise AssertionError(f"the model was not asked {text!r}")


def spoken_in(body: dict[str, Any]) -> list[Line]:
    """The conversation of a request, without instructions and without what tools did."""
    found = [(message["role"], words_of(message)) for message in body["messages"]]
    return [(role, text) for role, text in found if role in ("user", "assistant") and text]


def words_of(message: dict[str, Any]) -> str:
    """What a message of a request says."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def all_words(body: dict[str, Any]) -> str:
    """All that a request says."""
    return "\n".join(words_of(message) for message in body["messages"])


def facts_told(count: int, more: str = "") -> list[str]:
    """So many messages, each with a fact of its own; `more` goes behind it."""
    names = ("Ada", "Bo", "Cem", "Dag", "Eva")
    return [f"My friend number {number} is called {names[number % 5]}{number}.{more}" for number in range(count)]


async def tell(client: httpx.AsyncClient, contact: str, texts: list[str], **more: str) -> None:
    """Say one thing after the other, each in a turn of its own."""
    for text in texts:
        answer = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": text, **more})
        assert "event: run.succeeded" in answer.text, answer.text
