"""Checks of the options that builders of models take; every refusal is an `ExportError`."""

import math
from numbers import Integral, Real
from typing import Any

from leakyforge.errors import ExportError

OPSET_MIN = 13
OPSET_MAX = 23
DEFAULT_OPSET = 18


def checked_int(name: str, value: Any, *, minimum: int) -> int:
    """Return `value` as an int, or raise `ExportError` if it is none or below `minimum`."""
    # bool is a number in Python, and never what a caller means here.
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ExportError(f"{name}={value!r} is not an integer of {minimum} or more")
    return int(value)


def checked_float(name: str, value: Any) -> float:
    """Return `value` as a float, or raise `ExportError` if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ExportError(f"{name}={value!r} is not a finite number")
    return float(value)


def checked_batch(value: Any) -> int | str:
    """Return the batch dimension: an int of 1 or more, or a name that makes it symbolic.

    Raises:
        ExportError: It is neither.
    """
    return checked_size("batch", value)


def checked_size(name: str, value: Any) -> int | str:
    """Return a dimension: an int of 1 or more, or a name that makes it symbolic.

    Raises:
        ExportError: It is neither.
    """
    if isinstance(value, str):
        # A name that looks like a number would read as a fixed dimension in every viewer.
        if not value.isidentifier():
            raise ExportError(f"{name}={value!r} is not a name for a dimension; use one like 'N'")
        return value
    return checked_int(name, value, minimum=1)


def checked_opset(value: Any) -> int:
    """Return the version of the ONNX operator set, or raise `ExportError` outside 13 to 23."""
    opset = checked_int("opset", value, minimum=1)
    if not OPSET_MIN <= opset <= OPSET_MAX:
        raise ExportError(
            f"opset={opset} is not supported; use {OPSET_MIN} to {OPSET_MAX} "
            f"(the default is {DEFAULT_OPSET})"
        )
    return opset
