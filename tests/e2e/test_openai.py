"""The `openai` package as anyone installs it, with nothing changed but the address and the key."""

import openai
import pytest
import pytest_asyncio

MODEL = "retinue"


@pytest_asyncio.fixture
async def ai(mesh):
    """A client of the tenant `e2e` that shows each refusal at once."""
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.token(), max_retries=0) as connected:
        yield connected


@pytest.fixture
def say(ai):
    """Say something and answer what is said back; other arguments go to the package as they are."""

    async def ask(text, **more):
        completion = await ai.chat.completions.create(model=MODEL, messages=user(text), **more)
        return completion.choices[0].message.content

    return ask


def user(text):
    return [{"role": "user", "content": text}]


async def chunks_of(stream):
    return [chunk async for chunk in stream]


async def test_models_are_listed(ai):
    models = [model async for model in ai.models.list()]
    assert [model.id for model in models] == ["retinue", "retinue/light"]
    assert {model.object for model in models} == {"model"}


@pytest.mark.parametrize("model", ["retinue", "retinue/light"])
async def test_a_completion_is_answered_whole(ai, client, model):
    completion = await ai.chat.completions.create(model=model, messages=user("#tokens=5"))
    assert completion.object == "chat.completion"
    assert completion.model == model
    assert completion.created > 1_700_000_000
    [choice] = completion.choices
    assert choice.message.role == "assistant"
    assert choice.message.content.split() == ["t0", "t1", "t2", "t3", "t4"]
    assert choice.finish_reason == "stop"
    assert completion.usage.completion_tokens == 5
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 5
    run = (await client.get(f"/v1/runs/{completion.id.removeprefix('chatcmpl-')}")).json()["run"]
    assert (run["state"], run["output"]["text"]) == ("succeeded", choice.message.content)


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_completion_is_streamed(ai, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    stream = await ai.chat.completions.create(model=MODEL, messages=user("#tokens=20 #delay=2"), stream=True, **options)
    chunks = await chunks_of(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {(chunk.object, chunk.model) for chunk in chunks} == {("chat.completion.chunk", MODEL)}
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage.completion_tokens == 20
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == " ".join(f"t{n}" for n in range(20))
    assert len(chunks) > 3


async def test_the_packages_own_helper_accumulates_the_stream(ai):
    async with ai.chat.completions.stream(model=MODEL, messages=user("#tokens=8 #delay=1")) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == " ".join(f"t{n}" for n in range(8))


async def test_a_named_contacts_history_is_kept_by_the_mesh(ai, say, client, contact):
    await say("my cat is called Tom", user=contact)
    assert await say("#recall", user=contact) == "my cat is called Tom"
    # What such a client repeats of the conversation is known already; only its last message is new.
    repeated = [*user("my dog is called Rex"), {"role": "assistant", "content": "Nice."}, *user("#recall")]
    completion = await ai.chat.completions.create(model=MODEL, messages=repeated, user=contact)
    assert completion.choices[0].message.content == "my cat is called Tom | #recall"
    kept = (await client.get(f"/v1/contacts/{contact}/messages")).json()["messages"]
    assert [m["text"] for m in kept if m["role"] == "user"] == ["my cat is called Tom", "#recall", "#recall"]


async def test_the_contact_may_be_named_by_a_header(say, client, contact):
    await say("my cat is called Tom", extra_headers={"x-contact": contact})
    assert await say("#recall", user=contact) == "my cat is called Tom"
    assert (await client.get(f"/v1/contacts/{contact}")).status_code == 200


async def test_without_a_contact_the_requests_own_history_counts(ai, say):
    await say("my cat is called Tom")
    assert await say("#recall") == ""
    history = [
        {"role": "system", "content": "Be brief."},
        *user("my dog is called Rex"),
        {"role": "assistant", "content": "Nice."},
        {"role": "user", "content": [{"type": "text", "text": "#rec"}, {"type": "text", "text": "all"}]},
    ]
    completion = await ai.chat.completions.create(model=MODEL, messages=history)
    assert completion.choices[0].message.content == "my dog is called Rex"


async def test_same_key_same_answer(ai, contact):
    headers = {"Idempotency-Key": f"k-{contact}"}
    ask = {"model": MODEL, "messages": user("#tokens=3"), "extra_headers": headers}
    first = await ai.chat.completions.create(**ask)
    second = await ai.chat.completions.create(**ask)
    assert second == first
    chunks = await chunks_of(await ai.chat.completions.create(**ask, stream=True))
    assert {chunk.id for chunk in chunks} == {first.id}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == first.choices[0].message.content
    with pytest.raises(openai.ConflictError) as refused:
        await ai.chat.completions.create(**{**ask, "messages": user("something else")})
    assert refused.value.code == "IDEMPOTENCY_KEY_REUSED"


async def test_parameters_reach_the_model(say, contact, model_requests):
    await say(f"hello {contact}", temperature=0.5, max_tokens=7, stop=["x"], seed=3)
    [asked] = [r["body"] for r in await model_requests() if contact in r["body"]["messages"][-1]["content"]]
    assert (asked["temperature"], asked["max_tokens"], asked["stop"], asked["seed"]) == (0.5, 7, ["x"], 3)


@pytest.fixture
def model_requests(mesh, client):
    """Show what the model was asked of late."""

    async def read():
        return (await client.get(mesh.model.removesuffix("/v1") + "/_requests", headers={"authorization": ""})).json()

    return read


async def test_an_unknown_model_is_not_found(ai):
    for model in ("gpt-4o", "retinue/nothing", "retinue/"):
        with pytest.raises(openai.NotFoundError) as refused:
            await ai.chat.completions.create(model=model, messages=user("x"))
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


async def test_a_bad_key_is_an_authentication_error(mesh):
    for key in ("nonsense", mesh.token()[:-8] + "AAAAAAAA"):
        async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=key, max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
            with pytest.raises(openai.AuthenticationError) as refused:
                await stranger.chat.completions.create(model=MODEL, messages=user("x"))
            assert refused.value.status_code == 401


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": user("")}, "messages"),
        ({"messages": user("x" * 100_001)}, "messages"),
        ({"messages": user([{"type": "image_url", "image_url": {"url": "a"}}])}, "messages[0].content"),
        ({"temperature": 9}, "temperature"),
        ({"n": 2}, "n"),
        ({"user": "a/b"}, "user"),
        ({"stream_options": 7}, "stream_options"),
    ],
)
async def test_a_bad_request_is_refused_in_openais_shape(ai, change, param):
    with pytest.raises(openai.BadRequestError) as refused:
        await ai.chat.completions.create(**{"model": MODEL, "messages": user("x"), **change})
    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == param
    assert refused.value.body["message"]


@pytest.mark.parametrize(
    ("text", "error", "code"),
    [
        ("#status=400", openai.BadRequestError, "MODEL_REQUEST_REFUSED"),
        ("#status=401", openai.BadRequestError, "MODEL_AUTH"),
        ("#status=429,code=insufficient_quota", openai.RateLimitError, "MODEL_QUOTA"),
    ],
)
async def test_a_model_in_trouble_is_told_and_the_contact_is_served_again(ai, say, contact, text, error, code):
    with pytest.raises(error) as failed:
        await say(text, user=contact)
    assert failed.value.code == code
    assert failed.value.response.headers["x-should-retry"] == "false"
    stream = await ai.chat.completions.create(model=MODEL, messages=user(text), user=contact, stream=True)
    with pytest.raises(openai.APIError) as told:
        await chunks_of(stream)
    assert told.value.code == code
    assert await say("#echo=fine", user=contact) == "fine"


async def test_a_model_that_is_cut_off_once_is_seen_by_nobody(ai, contact):
    text = f"#tokens=10 #fail_times=1,cut=4,key=o-{contact}"
    chunks = await chunks_of(await ai.chat.completions.create(model=MODEL, messages=user(text), stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == " ".join(f"t{n}" for n in range(10))


async def test_a_client_that_leaves_does_not_stop_its_run(ai, client, eventually):
    stream = await ai.chat.completions.create(model=MODEL, messages=user("#tokens=30 #delay=20"), stream=True)
    chunk = await anext(aiter(stream))
    await stream.close()

    async def over():
        return (await client.get(f"/v1/runs/{chunk.id.removeprefix('chatcmpl-')}")).json()["run"][
            "state"
        ] == "succeeded"

    assert await eventually(over)
