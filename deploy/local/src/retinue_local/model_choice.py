"""Which model endpoint the mesh talks to: the one that is set, else a local Ollama, else the bundled offline model."""

import asyncio
import json
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from retinue_kit.config import SettingError

OPENAI_BASE_URL = "https://api.openai.com/v1"
OLLAMA_URL = "http://127.0.0.1:11434"
OFFLINE_MODEL = "offline"

OLLAMA_TIMEOUT_S = 0.3
"""A server on this machine answers in milliseconds; nobody shall wait for one that is not there."""

MODELS_TIMEOUT_S = 5.0
"""For asking a remote endpoint once, at start, what it calls its models."""

ANSWER_SIZE_MAX_BYTES = 4 * 1024 * 1024
"""A list of models is some hundred kilobytes where it is long."""


class ModelChoice(NamedTuple):
    """An endpoint and how to speak to it."""

    base_url: str
    model: str
    """What the endpoint calls the model; empty if it is to be asked."""
    api_key: str
    note: str
    """One plain sentence for whoever starts the mesh."""

    @property
    def is_offline(self) -> bool:
        """Whether this is the bundled model, which has to be started."""
        return not self.base_url


OFFLINE = ModelChoice(
    "",
    OFFLINE_MODEL,
    "",
    "the bundled offline model, which repeats and does not think (RETINUE_MODEL_BASE_URL is not set)",
)


def from_settings(environ: Mapping[str, str]) -> ModelChoice | None:
    """Read what is set, without asking anybody; None if nothing is. Raises SettingError for what cannot be right.

    A key belongs to its address: OPENAI_API_KEY is never sent to RETINUE_MODEL_BASE_URL.
    """
    base_url, key, model = (environ.get(f"RETINUE_{name}", "") for name in ("MODEL_BASE_URL", "MODEL_API_KEY", "MODEL"))
    if base_url:
        return _checked("RETINUE_MODEL_BASE_URL", base_url, model, key)
    if environ.get("RETINUE_MODELS_FILE"):
        return ModelChoice("file", model, key, f"as {environ['RETINUE_MODELS_FILE']} says")
    openai_url, openai_key = environ.get("OPENAI_BASE_URL", ""), environ.get("OPENAI_API_KEY", "")
    if openai_url or openai_key:
        model = model or environ.get("OPENAI_MODEL", "")
        return _checked("OPENAI_BASE_URL", openai_url or OPENAI_BASE_URL, model, key or openai_key)
    for name, value in (("RETINUE_MODEL", model), ("RETINUE_MODEL_API_KEY", key)):
        if value:
            raise SettingError(f"RETINUE_MODEL_BASE_URL is not set, but {name} is.")
    return None


def _checked(name: str, base_url: str, model: str, key: str) -> ModelChoice:
    base_url = base_url.rstrip("/")
    try:
        parts = urlsplit(base_url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise SettingError(f"{name}={base_url!r} is not an http:// or https:// address.")
    if not parts.path.endswith("/v1") or parts.query or parts.fragment:
        raise SettingError(f"{name}={base_url!r} must end in /v1.")
    return ModelChoice(base_url, model, key, f"{model} at {base_url}")


async def complete(choice: ModelChoice | None) -> ModelChoice:
    """Fill in what was left open by asking: an Ollama on this machine, or the endpoint for the name of its model.

    Raises SettingError if a name is needed and the endpoint does not tell one.
    """
    if choice is None:
        name = await asyncio.to_thread(_first_model, f"{OLLAMA_URL}/api/tags", "models", "name", "", OLLAMA_TIMEOUT_S)
        if not name:
            return OFFLINE
        return ModelChoice(f"{OLLAMA_URL}/v1", name, "", f"{name} of the Ollama at {OLLAMA_URL}")
    if choice.model or choice.base_url == "file":
        return choice
    url, key = f"{choice.base_url}/models", choice.api_key.partition(",")[0].strip()
    name = await asyncio.to_thread(_first_model, url, "data", "id", key, MODELS_TIMEOUT_S)
    if not name:
        raise SettingError(f"RETINUE_MODEL is not set, and {url} names none: is it up, and the key right?")
    return choice._replace(
        model=name, note=f"{name} at {choice.base_url}, the first it names (RETINUE_MODEL is not set)"
    )


def _first_model(url: str, listed: str, named: str, api_key: str, timeout_s: float) -> str:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    proxies = [urllib.request.ProxyHandler({})] if local else []
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
        with urllib.request.build_opener(*proxies).open(request, timeout=timeout_s) as answer:
            found = json.loads(answer.read(ANSWER_SIZE_MAX_BYTES))
        return str(found[listed][0][named])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""
