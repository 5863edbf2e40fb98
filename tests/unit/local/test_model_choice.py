"""Which model answers where nothing is set: an Ollama on this machine, else the offline model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from retinue_local import model_choice


@pytest.fixture
def ollama(monkeypatch):
    """A server that answers as an Ollama does, with the models that a test puts into it."""
    answer = {"models": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(answer).encode()
            self.send_response(200 if self.path == "/api/tags" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(model_choice, "OLLAMA_URL", f"http://127.0.0.1:{server.server_port}")
        yield answer
        server.shutdown()
        thread.join()


async def test_with_nothing_set_an_ollama_on_this_machine_is_used_if_it_has_a_model(ollama):
    assert await model_choice.complete(None) == model_choice.OFFLINE
    ollama["models"] = [{"name": "llama3.2"}, {"name": "other"}]
    found = await model_choice.complete(None)
    assert (found.base_url, found.model) == (f"{model_choice.OLLAMA_URL}/v1", "llama3.2")
    assert "Ollama" in found.note
    assert not found.is_offline


async def test_with_nothing_set_and_no_ollama_the_start_says_that_the_model_is_the_offline_one(monkeypatch):
    monkeypatch.setattr(model_choice, "OLLAMA_URL", "http://127.0.0.1:1")
    found = await model_choice.complete(None)
    assert found.is_offline
    assert "offline model" in found.note
