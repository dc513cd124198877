"""A voice of the kind of Piper's: from phonemes to sound, in one graph of data-dependent shapes.

Source: Kim et al., "Conditional Variational Autoencoder with Adversarial Learning for End-to-End
Text-to-Speech" (VITS), arXiv:2106.06103; inputs and names as Piper exports them. Simplified where
only the kind of graph matters: attention without relative positions, and one affine step in place
of the splines of the duration predictor, applied to the values inside of its interval.
"""

import dataclasses
import math

import numpy as np
import onnx

from leakyforge.errors import ExportError
from leakyforge.models.hifigan import VERSIONS, HifiGan
from leakyforge.models.options import DEFAULT_OPSET, checked_batch, checked_float, checked_int

# Ids of phonemes in Piper's table.
_PHONEMES = 256
_COUPLINGS = 2
_WAVE_LAYERS = 2
# Where the duration predictor's flow is not the identity.
_TAIL = 5.0


def vits(
    *,
    hidden: int = 192,
    layers: int = 6,
    heads: int = 2,
    channels: int = 256,
    alpha: float = 0.1,
    batch: int | str = 1,
    seed: int = 0,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Build the voice with random weights.

    Inputs: `input` [1, phonemes] int64, ids; `input_lengths` [1] int64, how many of them count;
    `scales` [3] float32: of the noise in the sound, of the length, and of the noise in the
    durations. Output: `output` [1, 1, samples] float32 in [-1, 1], 256 samples for each frame; the
    number of frames is computed. Its random numbers have a seed: sessions agree on their first
    run, then on their second, and so on.

    Args:
        hidden: Channels of the encoder and of the flow, an even multiple of `heads`.
        layers: Of the encoder.
        heads: Of its attention.
        channels: Of the decoder, before its first upsampling; a multiple of 8.
        alpha: Slope of every LeakyRelu below zero but the last, whose slope is 0.01.
        batch: 1, since each text has a length of its own.
        seed: Of the weights and of the random numbers.
        opset: Version of the ONNX operator set, 13 to 23.

    Raises:
        ExportError: An option is out of its range.
    """
    heads = checked_int("heads", heads, minimum=1)
    if checked_int("hidden", hidden, minimum=2) % (2 * heads):
        raise ExportError(f"hidden={hidden} is not an even multiple of heads={heads}")
    if checked_int("channels", channels, minimum=8) % 8:
        raise ExportError(f"channels={channels} is not a multiple of 8")
    if checked_batch(batch) != 1:
        raise ExportError(f"batch={batch}, and vits speaks one text at a time; use 1")
    layers = checked_int("layers", layers, minimum=1)
    net = _Vits(hidden, heads, alpha=checked_float("alpha", alpha), seed=seed)
    scales = [
        net.op("Gather", "scales", net.constant(index), name=f"{part}_scale", axis=0)
        for index, part in enumerate(("noise", "length", "duration_noise"))
    ]
    mask = net.mask("input", "input_lengths")
    x = net.encoder(mask, layers)
    stats = net.op("Mul", net.conv(x, "stats", hidden, 2 * hidden, 1), mask, name="masked_stats")
    mean, log_scale = net.halves(stats, "stats", hidden)
    durations = net.durations(x, mask, scales[1], scales[2])
    path, frame_mask = net.alignment(durations)
    z = net.prior(path, mean, log_scale, scales[0])
    for number in range(_COUPLINGS):
        z = net.coupling(z, frame_mask, f"flow{number}")
    z = net.op("Mul", z, frame_mask, name="latent")
    net.generate(z, hidden, dataclasses.replace(VERSIONS[3], channels=channels), "output")
    return net.graph.build(
        "vits",
        inputs={"input": (1, "phonemes"), "input_lengths": (1,), "scales": (3,)},
        outputs={"output": (1, 1, "samples")},
        opset=opset,
        integers=("input", "input_lengths"),
        metadata={
            "leakyforge.input_range.input": f"0,{_PHONEMES}",
            "leakyforge.input_range.input_lengths": "1,4",
            "leakyforge.input_range.scales": "0,1",
        },
    )


class _Vits(HifiGan):
    """The parts of the network; values are [1, channels, time] where nothing else is said."""

    def __init__(self, hidden: int, heads: int, *, alpha: float, seed: int) -> None:
        super().__init__(alpha=alpha, seed=seed)
        self._hidden, self._heads, self._seed = hidden, heads, seed
        self._constants: dict[str, str] = {}

    def op(self, operator: str, *inputs: str, name: str, **attributes: object) -> str:
        """A node."""
        return self.graph.node(operator, inputs, name, **attributes)

    def constant(self, value: int | float | list[int]) -> str:
        """A constant, once for each value."""
        if repr(value) not in self._constants:
            name = f"constant{len(self._constants)}"
            self._constants[repr(value)] = self.graph.constant(np.asarray(value), name=name)
        return self._constants[repr(value)]

    def halves(self, x: str, name: str, channels: int) -> tuple[str, str]:
        """The first channels, and as many behind them."""
        return (
            self.graph.channels(x, 0, channels, name=f"{name}_first"),
            self.graph.channels(x, channels, 2 * channels, name=f"{name}_second"),
        )

    def swapped(self, x: str, name: str) -> str:
        """The last two axes swapped, of three."""
        return self.op("Transpose", x, name=name, perm=[0, 2, 1])

    def positions(self, count: str, name: str) -> str:
        """0, 1, ... below a scalar."""
        return self.op("Range", self.constant(0), count, self.constant(1), name=name)

    def mask(self, ids: str, lengths: str) -> str:
        """[1, 1, phonemes], 1 for each phoneme that counts, else 0."""
        shape = self.op("Shape", ids, name="shape")
        count = self.op("Gather", shape, self.constant(1), name="phonemes", axis=0)
        below = self.op("Less", self.positions(count, "positions"), lengths, name="counts")
        mask = self.op("Cast", below, name="mask_row", to=onnx.TensorProto.FLOAT)
        return self.op("Unsqueeze", mask, self.constant([0, 1]), name="mask")

    def norm(self, x: str, name: str) -> str:
        """Normalization over the channels of each position."""
        rows = self.swapped(x, f"{name}_rows")
        mean = self.graph.global_average_pool(rows, name=f"{name}_mean")
        centred = self.op("Sub", rows, mean, name=f"{name}_centred")
        square = self.op("Mul", centred, centred, name=f"{name}_square")
        variance = self.graph.global_average_pool(square, name=f"{name}_variance")
        shifted = self.op("Add", variance, self.constant(1e-5), name=f"{name}_shifted")
        normal = self.op("Div", centred, self.op("Sqrt", shifted, name=f"{name}_root"),
                         name=f"{name}_normal")  # fmt: skip
        scale = self.graph.constant(
            self._weights.uniform(0.8, 1.2, self._hidden), name=f"{name}.gain"
        )
        scaled = self.op("Mul", normal, scale, name=f"{name}_scaled")
        return self.swapped(scaled, name)

    def encoder(self, mask: str, layers: int) -> str:
        """Phonemes through layers of attention and convolutions."""
        hidden = self._hidden
        table = self.graph.constant(
            self._weights.kernel(_PHONEMES, hidden, inputs=2), name="embedding.table"
        )
        x = self.swapped(self.op("Gather", table, "input", name="embedded", axis=0), "embedding")
        across = self.op("Unsqueeze", mask, self.constant([2]), name="mask_across")
        down = self.op("Unsqueeze", mask, self.constant([3]), name="mask_down")
        both = self.op("Mul", across, down, name="mask_both")
        outside = self.op("Equal", both, self.constant(0.0), name="outside")
        for number in range(layers):
            name = f"layer{number}"
            x = self.op("Mul", x, mask, name=f"{name}_input")
            y = self.attention(x, outside, f"{name}_attention")
            x = self.norm(self.graph.add(x, y, name=f"{name}_sum1"), f"{name}_norm1")
            y = self.conv(x, f"{name}_wide", hidden, 4 * hidden, 3)
            y = self.graph.relu(y, name=f"{name}_relu")
            y = self.conv(y, f"{name}_narrow", 4 * hidden, hidden, 3)
            x = self.norm(self.graph.add(x, y, name=f"{name}_sum2"), f"{name}_norm2")
        return self.op("Mul", x, mask, name="encoded")

    def attention(self, x: str, outside: str, name: str) -> str:
        """Every position as a mean of all, weighted by the products of two projections."""
        hidden, size = self._hidden, self._hidden // self._heads
        split = self.constant([1, self._heads, size, -1])
        query, key, value = (
            self.op(
                "Reshape", self.conv(x, f"{name}_{part}", hidden, hidden, 1), split,
                name=f"{name}_{part}_heads",
            )
            for part in ("query", "key", "value")
        )  # fmt: skip
        rows = self.op("Transpose", query, name=f"{name}_rows", perm=[0, 1, 3, 2])
        rows = self.graph.scale(rows, 1 / math.sqrt(size), name=f"{name}_scaled")
        scores = self.op("MatMul", rows, key, name=f"{name}_scores")
        scores = self.op("Where", outside, self.constant(-1e4), scores, name=f"{name}_masked")
        weights = self.op("Softmax", scores, name=f"{name}_weights", axis=-1)
        values = self.op("Transpose", value, name=f"{name}_values", perm=[0, 1, 3, 2])
        mixed = self.op("MatMul", weights, values, name=f"{name}_mixed")
        columns = self.op("Transpose", mixed, name=f"{name}_columns", perm=[0, 1, 3, 2])
        joined = self.op("Reshape", columns, self.constant([1, hidden, -1]), name=f"{name}_joined")
        return self.conv(joined, name, hidden, hidden, 1)

    def noise(self, like: str, scale: str, name: str) -> str:
        """Normal random numbers in the shape of a value, times a scalar."""
        drawn = self.op("RandomNormalLike", like, name=f"{name}_drawn", seed=float(self._seed))
        return self.op("Mul", drawn, scale, name=name)

    def durations(self, x: str, mask: str, length_scale: str, noise_scale: str) -> str:
        """[1, 1, phonemes], frames of each phoneme, whole numbers."""
        h = self.conv(x, "duration_hidden", self._hidden, self._hidden, 3)
        h = self.graph.relu(h, name="duration_relu")
        parameters = self.conv(h, "duration_parameters", self._hidden, 2, 1)
        shift, slope = self.halves(parameters, "duration", 1)
        z = self.noise(shift, noise_scale, "duration_noise")
        # Inside of the interval only, as the spline's program picks and puts values.
        size = self.op("Abs", z, name="duration_size")
        inside = self.op("Less", size, self.constant(_TAIL), name="duration_inside")
        found = self.op("NonZero", inside, name="duration_found")
        places = self.op("Transpose", found, name="duration_places", perm=[1, 0])
        picked = self.op("GatherND", z, places, name="duration_picked")
        slopes = self.op("GatherND", slope, places, name="duration_slopes")
        gains = self.op("Exp", self.graph.tanh(slopes, name="duration_tanh"), name="duration_gains")
        moved = self.op("Mul", picked, gains, name="duration_moved")
        z = self.op("ScatterND", z, places, moved, name="duration_flowed")
        logs = self.graph.add(self.graph.add(z, shift, name="duration_shifted"),
                              self.constant(0.7), name="duration_logs")  # fmt: skip
        frames = self.op("Mul", self.op("Exp", logs, name="duration_exp"), mask,
                         name="duration_masked")  # fmt: skip
        frames = self.op("Mul", frames, length_scale, name="duration_scaled")
        return self.op("Ceil", frames, name="durations")

    def alignment(self, durations: str) -> tuple[str, str]:
        """Which phoneme each frame is of, [1, frames, phonemes], and the frames' mask."""
        total = self.op("ReduceSum", durations, self.constant([1, 2]), name="total", keepdims=0)
        least = self.graph.at_least(total, 1.0, name="total_least")
        lengths = self.op("Cast", least, name="frame_lengths", to=onnx.TensorProto.INT64)
        longest = self.op("ReduceMax", lengths, name="frames", keepdims=0)
        positions = self.positions(longest, "frame_positions")
        below = self.op("Less", positions, lengths, name="frame_counts")
        row = self.op("Cast", below, name="frame_row", to=onnx.TensorProto.FLOAT)
        mask = self.op("Unsqueeze", row, self.constant([0, 1]), name="frame_mask")
        ends = self.op("CumSum", durations, self.constant(2), name="ends")
        ends = self.op("Reshape", ends, self.constant([-1, 1]), name="ends_column")
        times = self.op("Cast", positions, name="times", to=onnx.TensorProto.FLOAT)
        before = self.op("Less", times, ends, name="before")
        until = self.op("Cast", before, name="until", to=onnx.TensorProto.FLOAT)
        lower = self.op("Pad", until, self.constant([1, 0, 0, 0]), name="until_padded")
        lower = self.op(
            "Slice", lower, self.constant([0]), self.constant([-1]), self.constant([0]),
            name="until_previous",
        )  # fmt: skip
        path = self.op("Sub", until, lower, name="path_rows")
        path = self.op("Unsqueeze", path, self.constant([0]), name="path_batch")
        return self.swapped(path, "path"), mask

    def prior(self, path: str, mean: str, log_scale: str, noise_scale: str) -> str:
        """A latent value for each frame, out of those of its phoneme."""
        mean, log_scale = (
            self.swapped(
                self.op("MatMul", path, self.swapped(value, f"{name}_rows"), name=f"{name}_frames"),
                f"prior_{name}",
            )
            for value, name in ((mean, "mean"), (log_scale, "log_scale"))
        )
        deviation = self.op("Exp", log_scale, name="prior_deviation")
        noise = self.op("Mul", self.noise(mean, noise_scale, "prior_noise"), deviation,
                        name="prior_scaled")  # fmt: skip
        return self.graph.add(mean, noise, name="prior")

    def coupling(self, z: str, mask: str, name: str) -> str:
        """Half of the channels, less what a small WaveNet makes of the other half."""
        half, hidden = self._hidden // 2, self._hidden
        flipped = self.op(
            "Slice", z, self.constant([-1]), self.constant([-(2**31)]), self.constant([1]),
            self.constant([-1]), name=f"{name}_flipped",
        )  # fmt: skip
        kept, moved = self.halves(flipped, name, half)
        h = self.op("Mul", self.conv(kept, f"{name}_pre", half, hidden, 1), mask,
                    name=f"{name}_input")  # fmt: skip
        skips = []
        for number in range(_WAVE_LAYERS):
            layer = f"{name}_wave{number}"
            signal, gate = self.halves(self.conv(h, layer, hidden, 2 * hidden, 5), layer, hidden)
            signal = self.graph.tanh(signal, name=f"{layer}_tanh")
            gate = self.graph.sigmoid(gate, name=f"{layer}_sigmoid")
            gated = self.op("Mul", signal, gate, name=f"{layer}_gated")
            residual, skip = self.halves(
                self.conv(gated, f"{layer}_out", hidden, 2 * hidden, 1), f"{layer}_out", hidden
            )
            h = self.op("Mul", self.graph.add(h, residual, name=f"{layer}_sum"), mask,
                        name=f"{layer}_masked")  # fmt: skip
            skips.append(skip)
        total = self.op("Sum", *skips, name=f"{name}_skips")
        shift = self.conv(self.op("Mul", total, mask, name=f"{name}_skips_masked"), f"{name}_post",
                          hidden, half, 1)  # fmt: skip
        moved = self.op("Sub", moved, shift, name=f"{name}_moved")
        return self.graph.concat([kept, moved], name=name)
