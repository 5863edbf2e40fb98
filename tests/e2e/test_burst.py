"""`bounded` and `session_order`: ten times what is usual at once costs nobody an answer, a run or its place."""

import asyncio

import httpx
from talking import TRY_AGAIN, patiently
from whole_mesh import CALL_TIMEOUT_S

CONNECTIONS = 64
MESSAGES = 10
"""By each connection: 640 within a second or two, where one mesh on two cores answers some hundred a second."""


async def test_a_burst_is_accepted_at_once_and_each_message_answered_in_its_order(mesh, eventually):
    refused = []

    async def talk(client, number):
        path = f"/v1/contacts/burst-{number}/messages"
        for n in range(MESSAGES):
            key = {"idempotency-key": f"burst-{number}-{n}"}

            async def send(text=f"#echo={n}", headers=key):
                answer = await client.post(path, json={"text": text}, headers=headers)
                if answer.status_code in TRY_AGAIN:
                    refused.append(answer)
                return answer

            answer = await patiently(send)
            assert answer.status_code == 200, answer.text

    async def said(client, number):
        answer = (await client.get(f"/v1/contacts/burst-{number}/messages", params={"page_size": 200})).json()
        return [(message["role"], message["text"]) for message in answer["messages"]]

    limits = httpx.Limits(max_connections=CONNECTIONS)
    headers = {"authorization": f"Bearer {mesh.token('burst')}"}
    async with httpx.AsyncClient(
        base_url=mesh.url, headers=headers, limits=limits, timeout=2 * CALL_TIMEOUT_S, verify=False, trust_env=False
    ) as client:
        await asyncio.gather(*(talk(client, number) for number in range(CONNECTIONS)))
        assert {answer.status_code for answer in refused} <= {429, 503}
        assert all(answer.headers["retry-after"] for answer in refused)
        for number in range(CONNECTIONS):

            async def answered(number=number):
                return len(await said(client, number)) == 2 * MESSAGES

            await eventually(answered, 4 * CALL_TIMEOUT_S)
            told = await said(client, number)
            assert [text for role, text in told if role == "user"] == [f"#echo={n}" for n in range(MESSAGES)]
            assert [text for role, text in told if role == "assistant"] == [str(n) for n in range(MESSAGES)]
