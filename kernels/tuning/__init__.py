"""Tuning: searching the sizes of a layer's kernels by measurement, and keeping what was found."""
