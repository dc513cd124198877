"""Places in one arena for tensors that are needed at known times.

Tensors share memory where no launch needs both. Finding the smallest arena is NP-hard; greedy by
size comes within a few percent of the least that any placement needs: the largest tensor first,
each into the smallest gap that it fits in. Source: Y. Pisarchyk, J. Lee, "Efficient Memory
Management for Deep Neural Net Inference", 2020, algorithm 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """When a tensor's memory is its own.

    Attributes:
        size: in bytes.
        first: the launch that first needs it.
        last: the last one that does.
    """

    size: int
    first: int
    last: int

    def overlaps(self, other: "Lifetime") -> bool:
        """Whether a launch needs both."""
        return self.first <= other.last and other.first <= self.last


def place(tensors: Sequence[Lifetime], alignment: int) -> list[int]:
    """The first byte of each tensor in the arena, a multiple of `alignment`."""
    offsets = dict[int, int]()
    for index in sorted(range(len(tensors)), key=lambda index: -tensors[index].size):
        neighbours = sorted(
            (offset, offset + tensors[placed].size)
            for placed, offset in offsets.items()
            if tensors[placed].overlaps(tensors[index])
        )
        offsets[index] = _smallest_gap(neighbours, tensors[index].size, alignment)
    return [offsets[index] for index in range(len(tensors))]


def _smallest_gap(taken: Sequence[tuple[int, int]], size: int, alignment: int) -> int:
    """Where the smallest gap that holds `size` bytes begins; behind everything where none does.

    Args:
        taken: begin and end of what is there, by their begin.
        size: in bytes.
        alignment: of the place.
    """
    gaps, free = [], 0
    for begin, end in taken:
        if begin - free >= size:
            gaps.append((begin - free, free))
        free = max(free, end + -end % alignment)
    return min(gaps, default=(0, free))[1]
