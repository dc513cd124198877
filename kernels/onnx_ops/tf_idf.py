"""ONNX operator TfIdfVectorizer over integers: how often the n-grams of a pool occur.

https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html. For an n-gram g, and up to so many
elements left out between its members as `max_skip_count` says:

    count[g] = sum over skips s, starts i of [x[i + j (s + 1)] = g[j] for all j]
"""

import itertools
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from leakyforge.errors import ModelError
from leakyforge.kernels.onnx_ops.node import Node, static_shape


def convert_tf_idf_vectorizer(node: Node) -> relax.Expr:
    """TfIdfVectorizer: counts (TF), weights of what occurs (IDF), or their product (TFIDF)."""
    if "pool_int64s" not in node.attributes:
        raise ModelError(f"{node.operator}: of integers only; its pool holds strings")
    data = node.input(0)
    length = static_shape(data, node.operator)[-1]
    grams = _grams(node)
    places = [int(place) for place in node.attributes["ngram_indexes"]]
    size = max(places) + 1
    longest = int(node.attributes["max_gram_length"])
    shortest = int(node.attributes["min_gram_length"])
    skips = int(node.attributes["max_skip_count"])

    def count(tensor: te.Tensor) -> te.Tensor:
        def element(*at: Any) -> Any:
            *row, place = at
            total = tirx.const(0, "float32")
            for target, gram in zip(places, grams, strict=True):
                if not shortest <= len(gram) <= longest:
                    continue
                found = _occurrences(tensor, row, gram, skips, length)
                total = total + tirx.Select(place == target, found, tirx.const(0, "float32"))
            return total

        return te.compute((*tensor.shape[:-1], size), element, name="tf_idf")

    counts = node.emit_te(count, data)
    mode = node.text("mode", "TF")
    if mode == "TF":
        return counts
    weights = np.ones(size, np.float32)
    if "weights" in node.attributes:
        weights[places] = node.attributes["weights"]
    if mode == "IDF":
        counts = relax.op.minimum(counts, relax.const(1, "float32"))
    return relax.op.multiply(counts, relax.const(weights, "float32"))


def _grams(node: Node) -> list[list[int]]:
    """The n-grams of the pool, which has those of one element first."""
    pool = [int(value) for value in node.attributes["pool_int64s"]]
    starts = [int(start) for start in node.attributes["ngram_counts"]]
    grams = []
    for length, (start, end) in enumerate(itertools.pairwise([*starts, len(pool)]), start=1):
        grams += [pool[place : place + length] for place in range(start, end, length)]
    return grams


def _occurrences(
    tensor: te.Tensor, row: list[Any], gram: list[int], skips: int, length: int
) -> Any:
    """How often a row holds an n-gram, as float32; single elements have no skips between them."""
    total = tirx.const(0, "float32")
    for step in range(1, (skips if len(gram) > 1 else 0) + 2):
        for start in range(length - (len(gram) - 1) * step):
            same = [
                tensor[(*row, start + index * step)] == tirx.const(value, str(tensor.dtype))
                for index, value in enumerate(gram)
            ]
            total = total + tirx.Cast("float32", tirx.all(*same))
    return total
