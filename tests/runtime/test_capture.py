"""Captured calls: what each kernel was given and wrote, and the same again."""

import itertools

import numpy as np
import pytest

from leakyforge.errors import InputError
from leakyforge.runtime import Session, read_artifact
from leakyforge.runtime.capture import capture_calls


@pytest.fixture
def captured(digits):
    artifact = read_artifact(digits)
    feeds = {"image": np.random.default_rng(2).standard_normal((1, 1, 8, 8)).astype(np.float32)}
    session = Session(artifact, threads=1)
    return session, feeds, capture_calls(session, artifact.variant.kernels, feeds)


def test_calls_are_those_of_a_run(captured, digits):
    session, feeds, calls = captured
    assert [call.kernel for call in calls] == list(read_artifact(digits).variant.kernels)
    first, last = calls[0], calls[-1]
    np.testing.assert_array_equal(first.inputs[0], feeds["image"])
    (logits,) = last.outputs.values()
    (output,) = session.run(None, feeds)
    np.testing.assert_array_equal(logits, output)
    # Image, weights and bias; the output is not among them.
    assert {at: array.shape for at, array in first.inputs.items()} == {
        0: (1, 1, 8, 8),
        1: (1, 3, 3, 1, 16),
        2: (1, 1, 1, 16),
    }


def test_inputs_survive_the_run(captured):
    """Activations share memory, which later kernels overwrite."""
    _, _, calls = captured
    for before, after in itertools.pairwise(calls):
        (written,) = before.outputs.values()
        np.testing.assert_array_equal(after.inputs[0], written)


def test_replayed_calls_write_the_same(captured):
    _, _, calls = captured
    for call in calls:
        for at, array in call.replay({}).items():
            np.testing.assert_array_equal(array, call.outputs[at])


def test_replay_on_other_inputs(leaky):
    session = Session(read_artifact(leaky), threads=1)
    feeds = {"x": np.ones((2, 3), np.float32)}
    (call,) = capture_calls(session, read_artifact(leaky).variant.kernels, feeds)
    (result,) = call.replay({0: np.full((2, 3), -3.0, np.float32)}).values()
    np.testing.assert_array_equal(result, np.full((2, 3), np.float32(0.2) * np.float32(-3.0)))


def test_the_instrument_is_taken_away_after_an_error(digits):
    artifact = read_artifact(digits)
    session = Session(artifact, threads=1)
    with pytest.raises(InputError, match="dtype"):
        capture_calls(session, artifact.variant.kernels, {"image": np.zeros((1, 1, 8, 8))})
    assert session.run(None, {"image": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)
