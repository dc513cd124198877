"""What a worker process of a test does with a task: crash, hang, fail, or lose its server."""

import os
import time

from leakyforge.kernels.tuning.machine import NoServerError, ServerLostError
from leakyforge.kernels.tuning.records import MEASURED, WRONG
from leakyforge.kernels.tuning.worker import Result


def measure(_tracker, task):
    """By the words in the place of the second candidate's sizes."""
    what = task.configs[1]
    if what == "crash":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    if what == "raise":
        raise ZeroDivisionError("a candidate's fault")
    if what == "lose":
        raise ServerLostError("gone")
    if what == "alone":
        raise NoServerError("nobody there")
    second = Result(WRONG, "differs") if what == "wrong" else Result(MEASURED, "", (0.5, 0.5))
    return [Result(MEASURED, "", (1.0, 1.0)), second]
