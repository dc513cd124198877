"""Comparing arrays: every rule of `compare`, `max_ulp` and the table of tolerances, by hand."""

import json
import math

import ml_dtypes
import numpy as np
import pytest

from leakyforge.runtime.parity import ParityReport, compare, compare_outputs, max_ulp
from leakyforge.runtime.tensors import TensorSpec
from leakyforge.tolerance import (
    LARGEST_SHARE_OF_RANGE,
    QUANTISED_LARGEST_SHARE,
    UNIT_ROUNDOFF,
    Tolerance,
    tolerance,
)

EXACT = Tolerance(0.0, 0.0, "exact")
NAN, INF = math.nan, math.inf
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def f32(*values):
    return np.array(values, np.float32)


def row(actual, desired, limits=EXACT):
    return compare("y", actual, desired, limits, "by hand")


class TestCompare:
    def test_exact(self):
        result = row(f32(1, -2, 0), f32(1, -2, 0))
        assert result.passed
        assert (result.max_abs, result.max_rel, result.max_ulp) == (0, 0, 0)
        assert (result.needed, result.snr_db) == (0, INF)
        assert result.cosine == pytest.approx(1)
        assert (result.output, result.reference, result.problem) == ("y", "by hand", "")

    def test_figures(self):
        """Desired (3, 4, 0), ours (3, 5, 0): every figure by hand."""
        result = row(np.array([3.0, 5, 0]), np.array([3.0, 4, 0]), Tolerance(0.5, 0.25, "hand"))
        assert result.max_abs == 1
        assert result.max_rel == 0.25
        assert result.worst_index == (1,)
        assert result.range == 4
        assert result.atol == 2
        # 1 of the 0.5 * 4 + 0.25 * 4 that are allowed at that place.
        assert result.needed == pytest.approx(1 / 3)
        assert result.cosine == pytest.approx((9 + 20) / (5 * math.sqrt(34)))
        assert result.snr_db == pytest.approx(20 * math.log10(5))
        assert result.origin == "hand"
        assert result.passed

    @pytest.mark.parametrize(("difference", "passed"), [(1.0, True), (1.0 + 2**-40, False)])
    def test_just_within_and_just_outside(self, difference, passed):
        desired = np.array([4.0, -2.0, 0.0])
        actual = desired.copy()
        actual[2] += difference
        result = row(actual, desired, Tolerance(0.25, 0.0, ""))
        assert result.passed is passed
        assert result.worst_index == (2,)
        assert result.problem == ""

    def test_relative_tolerance_is_of_the_desired_value(self):
        limits = Tolerance(0.0, 0.5, "")
        assert row(np.array([3.0]), np.array([2.0]), limits).passed
        assert not row(np.array([2.0]), np.array([1.0]), limits).passed
        assert row(np.array([1.0]), np.array([2.0]), limits).passed
        assert not row(np.array([1e-9]), np.array([0.0]), limits).passed

    def test_range_is_that_of_the_reference(self):
        limits = Tolerance(0.5, 0.0, "")
        assert not row(f32(100, 0), f32(1, 0), limits).passed
        assert row(f32(100, 0), f32(100, 50), limits).passed

    def test_a_small_output_beside_an_infinity_is_still_compared(self):
        limits = Tolerance(0.1, 0.0, "")
        assert row(f32(INF, 1.05), f32(INF, 1.0), limits).passed
        assert not row(f32(INF, 1.5), f32(INF, 1.0), limits).passed

    @pytest.mark.parametrize(
        ("actual", "desired", "problem"),
        [
            (f32(NAN, 1), f32(0, 1), "1 values are NaN or infinite"),
            (f32(0, 1), f32(NAN, 1), "NaN or infinity where the reference has another value"),
            (f32(INF, 1), f32(0, 1), "1 values are NaN or infinite"),
            (f32(0, 1), f32(INF, 1), "NaN or infinity where the reference has another value"),
            (f32(INF, 1), f32(-INF, 1), "NaN or infinity where the reference has another value"),
            (f32(NAN, 1), f32(INF, 1), "NaN or infinity where the reference has another value"),
            (f32(INF, 1), f32(NAN, 1), "NaN or infinity where the reference has another value"),
            (f32(1), f32(1, 1), "shape 1 instead of 2"),
            (np.float32(1).reshape(()), f32(1), "shape scalar instead of 1"),
            (f32(1).reshape(1, 1), f32(1), "shape 1x1 instead of 1"),
            (f32(1), np.array([1.0]), "dtype float32 instead of float64"),
            (np.zeros(1, np.int32), np.zeros(1, np.int64), "dtype int32 instead of int64"),
        ],
    )
    def test_what_no_tolerance_forgives(self, actual, desired, problem):
        result = row(actual, desired, Tolerance(1e6, 1e6, ""))
        assert not result.passed
        assert result.problem == problem
        assert result.needed == INF

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_equal_nan_and_infinities_pass(self, dtype):
        values = np.array([NAN, INF, -INF, 1, -0.0]).astype(dtype)
        result = row(values, values.copy())
        assert result.passed
        assert result.max_ulp == 0
        assert result.range == 1

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_signs_of_zero_are_the_same_value(self, dtype):
        zero = np.zeros(3, dtype)
        assert row(zero, -zero).passed
        assert row(zero, -zero).max_ulp == 0
        assert row(zero, -zero).cosine == 1

    @pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
    def test_empty(self, shape):
        result = row(np.zeros(shape, np.float32), np.ones(shape, np.float32))
        assert result.passed
        assert result.worst_index == ()
        assert result.max_ulp == 0

    def test_scalar(self):
        result = row(np.array(1.5, np.float32), np.array(1.0, np.float32), Tolerance(0.5, 0, ""))
        assert result.passed
        assert result.worst_index == ()
        assert result.max_abs == 0.5
        assert not row(np.array(2.5), np.array(1.0), Tolerance(0.5, 0, "")).passed

    @pytest.mark.parametrize("dtype", [np.int64, np.uint64])
    def test_integers_that_float64_cannot_tell_apart(self, dtype):
        desired = np.array([2**53, 5], dtype)
        actual = desired + np.array([1, 0], dtype)
        assert float(desired[0]) == float(actual[0])
        result = row(actual, desired)
        assert not result.passed
        assert result.max_abs == 1
        assert result.worst_index == (0,)
        assert result.max_ulp is None
        assert row(actual, actual.copy()).passed

    def test_unsigned_integers_do_not_wrap(self):
        assert row(np.array([0], np.uint8), np.array([255], np.uint8)).max_abs == 255

    def test_booleans(self):
        assert row(np.array([True, False]), np.array([True, False])).passed
        result = row(np.array([True, True]), np.array([True, False]))
        assert not result.passed
        assert result.worst_index == (1,)

    def test_worst_index_is_in_the_shape(self):
        actual = np.zeros((2, 3, 4), np.float32)
        actual[1, 0, 3] = 1
        assert row(actual, np.zeros_like(actual)).worst_index == (1, 0, 3)

    def test_denormals_are_compared(self):
        tiny = np.finfo(np.float32).smallest_subnormal
        assert not row(f32(0), f32(tiny)).passed
        assert row(f32(0), f32(tiny)).max_ulp == 1

    def test_largest_values(self):
        big = np.finfo(np.float64).max
        with np.errstate(over="ignore"):
            assert not row(np.array([big]), np.array([-big]), Tolerance(1e-3, 0, "")).passed
            assert row(np.array([big]), np.array([big])).passed


class TestMaxUlp:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("steps", [1, 2, 7])
    @pytest.mark.parametrize("start", [1.0, -1.0, 0.0, 2.0, 3e-5])
    def test_neighbours(self, dtype, steps, start):
        value = np.array(start).astype(dtype)
        other = value
        for _ in range(steps):
            other = np.nextafter(other, np.array(INF).astype(dtype))
        assert other.dtype == value.dtype
        for first, second in ((value, other), (other, value)):
            assert max_ulp(first.reshape(1), second.reshape(1)) == steps
            assert max_ulp(first, second) == steps

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_across_zero(self, dtype):
        tiny = ml_dtypes.finfo(dtype).smallest_subnormal
        below, above = np.array([-tiny], dtype), np.array([tiny], dtype)
        assert max_ulp(below, above) == 2
        assert max_ulp(below, np.array([-0.0], dtype)) == 1
        assert max_ulp(np.array([-0.0], dtype), np.array([0.0], dtype)) == 0

    @pytest.mark.parametrize(
        ("dtype", "distance"),
        # One to two is a whole binade: 2 to the number of stored bits of the fraction.
        zip(FLOATS, [2**10, 2**7, 2**23, 2**52], strict=True),
    )
    def test_a_binade(self, dtype, distance):
        assert max_ulp(np.array([1], dtype), np.array([2], dtype)) == distance
        assert max_ulp(np.array([-1], dtype), np.array([-2], dtype)) == distance

    def test_the_two_ends_of_float64(self):
        big = np.array([np.finfo(np.float64).max])
        assert max_ulp(big, -big) == 2 * (0x7FEFFFFFFFFFFFFF)
        assert max_ulp(big, np.array([INF])) == 1

    def test_the_largest_counts(self):
        assert max_ulp(f32(1, 2, 3), np.nextafter(f32(1, 2, 3), f32(9, 2, 9))) == 1
        assert max_ulp(f32(1, 1), f32(1, 2)) == 2**23

    def test_nan_is_left_out(self):
        assert max_ulp(f32(NAN, 1), f32(NAN, 1)) == 0
        assert max_ulp(f32(NAN), f32(0)) == 0

    @pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
    def test_none_for_what_is_not_floating(self, dtype):
        assert max_ulp(np.zeros(2, dtype), np.ones(2, dtype)) is None

    def test_memory_order(self):
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert max_ulp(np.asfortranarray(values), values) == 0
        assert max_ulp(values[:, ::-1], values[:, ::-1].copy()) == 0


class TestTolerance:
    @pytest.mark.parametrize("dtype", list(UNIT_ROUNDOFF))
    def test_more_roundings_never_give_less(self, dtype):
        steps = [0, 1, 2, 3, 10, 100, 1000, 10**4, 10**6, 10**9, 10**12]
        shares = [tolerance(dtype, count).range_share for count in steps]
        assert shares == sorted(shares)
        assert shares[1] < shares[2]
        assert shares[-1] == LARGEST_SHARE_OF_RANGE[dtype]

    def test_float32_is_never_above_1e_4_of_the_range(self):
        for steps in (1, 10**3, 10**5, 10**9, 10**15):
            assert tolerance("float32", steps).range_share <= 1e-4

    def test_by_hand(self):
        limits = tolerance("float32", 100)
        assert limits.range_share == 6 * 10 * 2.0**-24
        assert limits.rtol == 2.0**-23
        assert "float32" in limits.origin
        assert "100 roundings" in limits.origin
        assert "at most 0.0001" in tolerance("float32", 10**9).origin

    def test_of_8_bits(self):
        limits = tolerance("float32", 1000, 4)
        assert limits.range_share == 6 * 2 * 2.0**-8
        assert limits.rtol == 0
        assert "4 roundings to 8 bits" in limits.origin
        assert tolerance("uint8", 4, 4).range_share == limits.range_share
        assert tolerance("float32", 1000, 10**6).range_share == QUANTISED_LARGEST_SHARE
        assert tolerance("float32", 1000, 0) == tolerance("float32", 1000)

    @pytest.mark.parametrize("dtype", list(UNIT_ROUNDOFF))
    def test_exact_without_roundings(self, dtype):
        limits = tolerance(dtype, 0)
        assert (limits.range_share, limits.rtol) == (0, 0)

    @pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool"])
    def test_integers_are_exact(self, dtype):
        limits = tolerance(dtype, 10**6)
        assert (limits.range_share, limits.rtol) == (0, 0)
        assert "exact" in limits.origin

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_unit_roundoff_is_half_an_ulp_of_one(self, dtype):
        assert UNIT_ROUNDOFF[np.dtype(dtype).name] == float(ml_dtypes.finfo(dtype).eps) / 2


class TestReport:
    SPECS = (TensorSpec("a", (2,), "float32"), TensorSpec("b", (2,), "float32", rounding_steps=4))

    def report(self, ours_a, ours_b):
        desired = [{"a": f32(1, 2), "b": f32(1, 2)}] * len(ours_a)
        actual = [{"a": a, "b": b} for a, b in zip(ours_a, ours_b, strict=True)]
        rows = compare_outputs(self.SPECS, actual, desired, "hand")
        return ParityReport("m.lfa", len(actual), 0, tuple(rows), ())

    def test_the_worst_sample_is_shown(self):
        report = self.report([f32(1, 2), f32(1, 5), f32(1, 3)], [f32(1, 2)] * 3)
        assert [row.output for row in report.outputs] == ["a", "b"]
        assert [row.passed for row in report.outputs] == [False, True]
        assert report.outputs[0].needed == INF
        assert not report

    def test_a_failure_is_shown_before_a_larger_share_that_passed(self):
        close = np.nextafter(f32(1, 2), f32(9, 9))
        report = self.report([f32(1, 2)] * 2, [close, f32(NAN, 2)])
        assert [row.passed for row in report.outputs] == [True, False]
        assert "NaN" in report.outputs[1].problem

    def test_each_output_has_its_own_tolerance(self):
        close = np.nextafter(f32(1, 2), f32(9, 9))
        report = self.report([close], [close])
        assert [row.passed for row in report.outputs] == [False, True]

    def test_a_missing_output_is_an_error(self):
        with pytest.raises(KeyError):
            compare_outputs(self.SPECS, [{"a": f32(1, 2)}], [{"a": f32(1, 2), "b": f32(1)}], "")
        with pytest.raises(ValueError, match="zip"):
            compare_outputs(self.SPECS, [], [{}], "")

    def test_json_has_no_infinity(self):
        report = self.report([f32(NAN, 2)], [f32(1, 2)])
        text = json.dumps(report.to_dict(), allow_nan=False)
        assert json.loads(text)["outputs"][0]["needed"] == "inf"
        assert json.loads(text)["passed"] is False
