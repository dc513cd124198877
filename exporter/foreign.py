"""Calling the exporters of other packages: kept quiet, and their errors on one line."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from leakyforge.exporter.check import one_line


@contextlib.contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keep what they log, warn and print from the user; yield the warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            # torch.export prints the graph up to a branch that it cannot take.
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield caught
    finally:
        logging.disable(disabled)


def reason(error: BaseException) -> str:
    """The first paragraph of the error at the root: those above it only say which step failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(str(error).strip().split(chr(10) * 2)[0])}"
