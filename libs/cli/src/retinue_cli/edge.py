"""The public API as a client sees it: messages, streams that are taken up again after a cut, errors as sentences."""

import json
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import httpx_sse

from retinue_cli.failures import CommandError
from retinue_cli.transcript import TERMINAL

Event = Mapping[str, Any]

ANSWER_TIMEOUT_S = 30.0
SILENCE_MAX_S = 40.0
"""A stream says something every 15 s, if only that it is alive; twice that and a little is a cut."""

CONNECT_TIMEOUT_S = 5.0

RESUMES_MAX = 30
"""Attempts in a row that bring no event before a stream is given up: half a minute, a restart of every process."""

RESUME_PAUSE_S = 1.0
PAGE_SIZE = 200
PAGES_MAX = 50
"""Pages read to find the latest messages: ten thousand, more than one reads back in a terminal."""

STREAM_TIMEOUT = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=SILENCE_MAX_S)

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts at which a certificate that is named is trusted whatever host it is for: it is this machine's own mesh."""

AGAIN = frozenset({429, 502, 503, 504})
"""Statuses at which the same request may succeed a moment later."""


class RefusedError(CommandError):
    """The edge answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Edge:
    """A client of one mesh with one token. Use it with `with`."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        certificate: str = "",
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._pause = pause
        # A certificate of one's own is trusted by being named, as the mesh was started with it.
        trusted = _trusting(certificate, httpx.URL(self.url).host) if certificate else True
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            verify=trusted,
            trust_env=False,
        )

    def __enter__(self) -> "Edge":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def messages(self, contact: str, count: int) -> list[dict[str, Any]]:
        """Read the latest messages with a contact, oldest first; none if the contact is new."""
        found: list[dict[str, Any]] = []
        page_token = ""
        for _ in range(PAGES_MAX):
            query = {"page_size": str(PAGE_SIZE), "page_token": page_token}
            try:
                page = self._ask("GET", f"{_path(contact)}/messages", params=query)
            except RefusedError as refused:
                if refused.status == httpx.codes.NOT_FOUND:
                    return []
                raise
            found = [*found, *page.get("messages", [])][-count:]
            page_token = page.get("next_page_token", "")
            if not page_token:
                break
        return found

    def reset(self, contact: str) -> None:
        """Begin a fresh session; a contact that is new has one already."""
        try:
            self._ask("POST", f"{_path(contact)}:reset", json={})
        except RefusedError as refused:
            if refused.status != httpx.codes.NOT_FOUND:
                raise

    def cancel(self, run_id: str) -> None:
        """Ask a run to stop."""
        self._ask("POST", f"/v1/runs/{run_id}:cancel", json={})

    def decision(self, run_id: str) -> dict[str, Any]:
        """Read what policy decided for a run, and why."""
        return self._ask("GET", f"/v1/runs/{quote(run_id, safe='')}/decision")

    def send(self, contact: str, text: str) -> Iterator[Event]:
        """Send a message and tell its run's events to the end, whatever is cut on the way; each comes once."""
        first = self._http.build_request(
            "POST",
            f"{_path(contact)}/messages:stream",
            json={"text": text},
            headers={"idempotency-key": str(uuid.uuid4())},
            timeout=STREAM_TIMEOUT,
        )
        return self._tell(first, "", "")

    def follow(self, run_id: str, cursor: str) -> Iterator[Event]:
        """Tell a run's events after a cursor, to the end."""
        return self._tell(None, run_id, cursor)

    def _tell(self, first: httpx.Request | None, run_id: str, cursor: str) -> Iterator[Event]:
        failures = 0
        while True:
            request = first if first is not None and not run_id else self._resumption(run_id, cursor)
            trouble: CommandError | None = None
            try:
                for event in self._events(request):
                    failures = 0
                    run_id = run_id or str(event.get("run_id") or "")
                    cursor = str(event.get("cursor") or "") or cursor
                    yield event
                    if event.get("type") in TERMINAL:
                        return
            except RefusedError as refused:
                trouble = refused
                if refused.status not in AGAIN:
                    raise
            except httpx.HTTPError as error:
                trouble = CommandError(f"{self.url} does not answer: {_why(error)}.")
            failures += 1
            if failures > RESUMES_MAX:
                raise trouble or CommandError(f"{self.url} ends the stream again and again; the run goes on: {run_id}.")
            if failures > 1:  # a stream that was cut is taken up at once
                self._pause(RESUME_PAUSE_S)

    def _resumption(self, run_id: str, cursor: str) -> httpx.Request:
        headers = {"last-event-id": cursor} if cursor else {}
        return self._http.build_request("GET", f"/v1/runs/{run_id}/events", headers=headers, timeout=STREAM_TIMEOUT)

    def _events(self, request: httpx.Request) -> Iterator[Event]:
        request.headers["accept"] = "text/event-stream"
        answer = self._http.send(request, stream=True)
        try:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise _refusal(answer)
            for frame in httpx_sse.EventSource(answer).iter_sse():
                if frame.event == "error":
                    raise RefusedError(httpx.codes.SERVICE_UNAVAILABLE, _message(frame.data) or "The stream broke off.")
                if frame.data:  # a comment in a long silence comes as a frame without any
                    yield json.loads(frame.data)
        finally:
            answer.close()

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise CommandError(f"{self.url} does not answer: {_why(error)}.") from None
        if answer.status_code != httpx.codes.OK:
            raise _refusal(answer)
        found: dict[str, Any] = answer.json()
        return found


def _trusting(certificate: str, host: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=certificate)
    except (OSError, ssl.SSLError) as error:
        raise CommandError(f"The certificate {certificate} cannot be used: {error.strerror or error}.") from None
    # It may come from an authority that is not in the file, and it names the host that others use.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = host not in LOOPBACK
    return context


def _path(contact: str) -> str:
    return f"/v1/contacts/{quote(contact, safe='@+')}"


def _why(error: httpx.HTTPError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"{error}; name the certificate to trust with --certificate"
    return str(error).rstrip(".") or type(error).__name__


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _refusal(answer: httpx.Response) -> RefusedError:
    return RefusedError(
        answer.status_code, _message(answer.text) or f"The mesh answered with status {answer.status_code}."
    )
