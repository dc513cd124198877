"""`python -m leakyforge`."""

from leakyforge.cli import main

main()
