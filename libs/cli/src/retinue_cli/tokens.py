"""What stands in a token, read without checking it: only the mesh can say whether it is good."""

import base64
import json
from typing import Any

from retinue_cli.failures import CommandError


def claims(token: str) -> dict[str, Any]:
    """Read a token's claims. CommandError if it is not a token."""
    parts = token.strip().split(".")
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (IndexError, ValueError):
        found = None
    if not isinstance(found, dict) or len(parts) != 3:
        raise CommandError("That is not a token.")
    return found
