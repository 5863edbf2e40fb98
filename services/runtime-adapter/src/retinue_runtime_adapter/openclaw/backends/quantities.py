"""Kubernetes' way to write an amount: a number and a suffix."""

import re
from decimal import Decimal

_FORM = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d{1,2})?")

_FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}


def quantity(text: str) -> int:
    """Read an amount, rounded down; 0 for what is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        return 0
    suffix = found[2] or ""
    factor = _FACTORS[suffix] if suffix in _FACTORS else Decimal(f"1{suffix}")
    return int(Decimal(found[1]) * factor)
