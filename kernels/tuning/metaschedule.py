"""MetaSchedule's own space, for kernels that no algorithm of ours computes.

Such are pools, softmax, normalisations, and products of tensors that are both computed. Of such a
function TVM's rules for CPUs make sketches, schedules with gaps (Shao et al., "Tensor Program
Optimization with Probabilistic Programs", NeurIPS 2022):

    sketch      tiles of several levels, a sum in parts, or the loops as they are
    decisions   what is drawn for the gaps: sizes of tiles, the loop at which a block is computed,
                how far loops are unrolled

A candidate is the number of its sketch and its decisions. Sketches are made anew when it is taken,
so that a record from anywhere can only choose what a search could have drawn.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule.schedule_rule import ApplyCustomRule

from leakyforge.kernels.choice import CHOICE
from leakyforge.kernels.schedules import PARALLEL_WORK, block_names, is_reduction, total_work
from leakyforge.kernels.target import CpuTarget
from leakyforge.tolerance import UNIT_ROUNDOFF

# An integer is an index of what a gap may be; several are the sizes of tiles.
Decision = int | list[int]

# Name of what schedules by a record, beside those of our rules.
RULE = "metaschedule"
# The rules' choice, as a candidate.
RULES = json.dumps({"type": "Rules"})
_TYPE = "MetaSchedule"
# Of the sketches, which are to be the same each time.
_SKETCH_SEED = 1
# Draws that all were drawn before: about the whole space was.
_MOST_DRAWS = 64
# What TVM raises of a function or of decisions that it does not take; ScheduleError is the first.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)
# The best so far, of which one decision is drawn anew.
_VARIED = 3
_LARGEST_SEED = 2**31 - 1


def workload_of(function: tirx.PrimFunc) -> str | None:
    """Key of a function, equal for equal ones of any name; None where it is not searched.

    Searched are functions that reduce, of floats and known sizes, with one result: of others
    MetaSchedule has no more than one schedule, or their inputs cannot be drawn. Small ones take
    microseconds.
    """
    if not all(_is_static(each) for each in function.params):
        return None
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    names = block_names(schedule)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root")) if names else []
    if any(CHOICE in schedule.get(block).annotations for block in blocks):
        # Our own algorithms.
        return None
    written = [region.source for block in blocks for region in schedule.get(block).writes]
    results = [each for each in function.params if any(each.same_as(other) for other in written)]
    if len(results) != 1 or not results[0].same_as(function.params[-1]):
        return None
    reductions = [block for block in blocks if is_reduction(schedule, block)]
    if max((total_work(schedule, block) for block in reductions), default=0) < PARALLEL_WORK:
        return None
    # Sketches name blocks.
    parts = [tvm_ffi.structural_hash(tirx.PrimFunc(function.params, function.body)), names]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _is_static(parameter: tirx.Var) -> bool:
    """Whether a parameter is a tensor of floats that numpy has, of known sizes, and not empty."""
    kind = parameter.ty
    return (
        isinstance(kind, tirx.buffer.BufferType)
        and str(kind.dtype) in UNIT_ROUNDOFF.keys() - {"bfloat16"}
        and all(isinstance(size, tirx.IntImm) and int(size) > 0 for size in kind.shape)
    )


class Sketches:
    """The sketches of a function, and what fills their gaps.

    Args:
        function: not scheduled.
        target: the CPU.

    Raises:
        ValueError: MetaSchedule fails on the function.
    """

    def __init__(self, function: tirx.PrimFunc, target: CpuTarget) -> None:
        self._module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        rules = meta_schedule.ScheduleRule.create("llvm")
        # It only warns of blocks whose annotation no rule of TVM's knows on a CPU.
        kept = [rule for rule in rules if not isinstance(rule, ApplyCustomRule)]
        self._generator = meta_schedule.space_generator.PostOrderApply(
            sch_rules=kept, postprocs="llvm", mutator_probs={}
        )
        # Python's constructor imports all tensor intrinsics, half a minute; these rules use none.
        context = tvm_ffi.get_global_func("s_tir.meta_schedule.TuneContext")
        self._context = context(
            self._module, target.tvm, self._generator, None, "main", 1, _SKETCH_SEED, None
        )
        try:
            tvm_ffi.get_global_func("s_tir.meta_schedule.TuneContextInitialize")(self._context)
            schedules = self._generator.generate_design_space(self._module)
        except _REFUSALS as error:
            raise ValueError("MetaSchedule has no sketches of the function") from error
        self._traces = [schedule.trace for schedule in schedules]
        self._gaps = [
            [each for each in trace.insts if trace.get_decision(each) is not None]
            for trace in self._traces
        ]

    def draw(self, source: random.Random) -> str:
        """A candidate at random.

        Raises:
            ValueError: what was drawn is no schedule.
        """
        sketch = source.randrange(len(self._traces))
        return self._filled(sketch, [None] * len(self._gaps[sketch]), source)[0]

    def vary(self, config: str, source: random.Random) -> str:
        """A candidate with one decision drawn anew.

        Raises:
            ValueError: it has none, or what was drawn is no schedule.
        """
        sketch, decisions = self._parse(config)
        if not decisions:
            raise ValueError("it has no decisions")
        varied: list[Decision | None] = [*decisions]
        varied[source.randrange(len(varied))] = None
        return self._filled(sketch, varied, source)[0]

    def schedule(self, config: str) -> tirx.PrimFunc:
        """The function as a candidate schedules it.

        Raises:
            ValueError: it is no candidate of this function.
        """
        filled, function = self._filled(*self._parse(config), random.Random(0))
        if filled != config:
            raise ValueError("its decisions do not fit the function")
        return function

    def _parse(self, config: str) -> tuple[int, list[Decision]]:
        """Sketch and decisions of a candidate."""
        try:
            values = json.loads(config)
            kind, sketch, decisions = values["type"], values["sketch"], values["decisions"]
            sizes = [size for each in decisions if isinstance(each, list) for size in each]
            whole = [sketch, *(each for each in decisions if not isinstance(each, list)), *sizes]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"it is no candidate of MetaSchedule: {error}") from error
        if kind != _TYPE or not all(type(each) is int for each in whole):
            raise ValueError("it is no candidate of MetaSchedule")
        # TVM divides by the sizes of tiles.
        if not 0 <= sketch < len(self._traces) or min(sizes, default=1) < 1:
            raise ValueError("its decisions do not fit the function")
        if len(decisions) != len(self._gaps[sketch]):
            raise ValueError("it has more or fewer decisions than the function")
        return sketch, decisions

    def _filled(
        self, sketch: int, decisions: Sequence[Decision | None], source: random.Random
    ) -> tuple[str, tirx.PrimFunc]:
        """A candidate, those of its decisions drawn that are None, and the scheduled function."""
        trace, gaps = self._traces[sketch], self._gaps[sketch]
        given = {gap: each for gap, each in zip(gaps, decisions, strict=True) if each is not None}
        schedule = s_tir.Schedule(self._module, seed=source.randint(1, _LARGEST_SEED))
        try:
            s_tir.Trace(trace.insts, given).apply_to_schedule(schedule, remove_postproc=True)
            drawn = [schedule.trace.get_decision(each) for each in schedule.trace.insts]
            schedule.enter_postproc()
            is_done = all(each.apply(schedule) for each in self._generator.postprocs)
        except _REFUSALS as error:
            raise ValueError("its decisions do not fit the function") from error
        if not is_done:
            raise ValueError("MetaSchedule refuses it")
        filled = [_plain(each) for each in drawn if each is not None]
        config = json.dumps({"type": _TYPE, "sketch": sketch, "decisions": filled})
        return config, schedule.mod["main"]


def _plain(decision: object) -> Decision:
    """A decision in Python's integers."""
    if isinstance(decision, Sequence):
        return [int(size) for size in decision]
    return int(decision)  # type: ignore[call-overload, no-any-return]


class MetaScheduleSpace:
    """Draws candidates: half at random, half the best ones with one decision drawn anew.

    Args:
        function: not scheduled.
        target: the CPU.
        source: of random numbers.
    """

    def __init__(self, function: tirx.PrimFunc, target: CpuTarget, source: random.Random) -> None:
        self._function, self._target, self._random = function, target, source
        self._sketches: Sketches | None = None
        self._given: set[str] = set()

    def next(self, ratios: Mapping[str, float]) -> str | None:
        """See `Space`."""
        try:
            # Most layers of a large model get few turns.
            self._sketches = self._sketches or Sketches(self._function, self._target)
        except ValueError:
            return None
        for _ in range(_MOST_DRAWS):
            try:
                config = self._draw(self._sketches, ratios)
            except ValueError:
                continue
            if config not in ratios and config not in self._given:
                self._given.add(config)
                return config
        return None

    def _draw(self, sketches: Sketches, ratios: Mapping[str, float]) -> str:
        """A candidate, which may have been drawn before."""
        best = sorted((ratio, each) for each, ratio in ratios.items() if ratio < 1)[:_VARIED]
        if best and self._random.random() < 0.5:
            return sketches.vary(self._random.choice(best)[1], self._random)
        return sketches.draw(self._random)
