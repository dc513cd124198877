"""The project's benchmark; `python -m benchmarks` from a checkout."""
