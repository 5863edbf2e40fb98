"""Vectors of a model: facts are found by meaning too, and by words alone while the model is away or talks nonsense."""

import pytest
from retinue.runtime_adapter.v1 import model_service_pb2 as wire
from retinue.runtime_adapter.v1 import model_service_pb2_grpc as wire_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_router.embedding import REST_S, ModelEmbedder
from retinue_router.operations.memory import Memory
from retinue_router.store.facts import FactStore


class Model(wire_grpc.ModelServiceServicer):
    """Thinks of cats, or of anything else."""

    def __init__(self):
        self.asked = 0
        self.trouble = None
        self.sizes = (2,)
        self.first = 1.0

    async def Embed(self, request, context):
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        answer = wire.EmbedResponse(model="small")
        for place, text in enumerate(request.texts):
            size = self.sizes[place % len(self.sizes)]
            is_cat = any(word in text for word in ("cat", "pet", "Mochi"))
            answer.vectors.add(
                values=[self.first if is_cat else 0.0, 0.0 if is_cat else 1.0][:size] + [0.0] * (size - 2)
            )
        return answer


class Clock:
    """Stands still until it is moved."""

    def __init__(self):
        self.time = 0.0

    def monotonic(self):
        return self.time


@pytest.fixture
async def model(serve):
    """Answer the model, and where it is."""
    made = Model()
    add = wire_grpc.add_ModelServiceServicer_to_server
    made.address = await serve([Service(add, made, "retinue.runtime_adapter.v1.ModelService")])
    return made


class Nobody:
    """Writes no file."""

    def project(self, tenant_id, contact):
        pass


async def test_what_means_the_same_is_found_before_what_shares_as_many_words(core, model, peer):
    """The store compares vectors of one model only."""
    embedder = ModelEmbedder(peer("runtime-adapter", model.address), Clock())
    memory = Memory(FactStore(core.pool), embedder, Nobody())
    for text in ("Her Mochi is ill.", "Her boss is ill."):
        await memory.remember("ten_a", "anna", "", await memory.fresh("ten_a", [("", "", 0, text)]))

    async def found():
        return [row["text"] for row in await memory.search("ten_a", "anna", "is her pet ill", 5)]

    assert await found() == ["Her Mochi is ill.", "Her boss is ill."]
    rows = await core.seen("select distinct embedding_model from router.facts")
    assert [tuple(row) for row in rows] == [("small/2",)]
    # A model of the same name that answers otherwise, and one that is away, leave the words.
    model.sizes = (3,)
    assert len(await found()) == 2
    model.trouble = RetinueError(Reason.CAPABILITY_MISSING, "There is no such model.", capability="embeddings")
    assert len(await found()) == 2
    await memory.remember("ten_a", "anna", "", await memory.fresh("ten_a", [("", "", 0, "She rows.")]))
    rows = await core.seen("select embedding_model from router.facts where text = 'She rows.'")
    assert [tuple(row) for row in rows] == [("lexical-1",)]


async def test_bounded_a_model_that_failed_is_not_asked_again_for_a_while(model, peer):
    clock = Clock()
    embedder = ModelEmbedder(peer("runtime-adapter", model.address), clock)
    assert [list(vector.values) for vector in await embedder.embed("ten_a", ["cat", "dog"])] == [[1.0, 0.0], [0.0, 1.0]]
    for sizes, first in (((2, 3), 1.0), ((2,), float("nan")), ((0,), 1.0)):
        model.sizes, model.first = sizes, first
        for _ in range(3):
            with pytest.raises(RetinueError) as caught:
                await embedder.embed("ten_a", ["cat", "dog"])
            assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        clock.time += REST_S
    assert model.asked == 4
