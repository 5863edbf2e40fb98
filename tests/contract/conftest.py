"""Fixtures of the contract tests."""

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "plugins" / "offline_model.py"
_spec = importlib.util.spec_from_file_location("offline_model_fixtures", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

offline_model = _module.offline_model
