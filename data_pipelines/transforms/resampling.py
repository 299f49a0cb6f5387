"""Antialiased resizing with NumPy alone: the filters and the order of passes of Pillow 13, in float32.

A resize is two passes, along the width and along the height. In each one an output is a weighted sum of the few inputs
near it, so that a run of neighbouring outputs is a small matrix product with the inputs that they read. The runs of a
pass begin at even distances, which makes them one batched product: Python is called a few times an image, and its lock
is free while the products are computed. None of them is so large that BLAS would start threads of its own beside those
of the loader.

Between the passes values are clipped to 0..255 as Pillow does it, but not rounded: a result is within 2 levels of
Pillow's.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

LARGEST_PRODUCT = 1 << 18
"""Multiplications in a matrix product up to which OpenBLAS stays in the thread that calls it."""

_CHANNELS = 3
_VECTOR = 16
"""float32 numbers in a register: rows of weights of the pass along the width are padded to a multiple."""
_STRIP_ROWS = 64
"""Rows that go through the pass along the width together, if that many stay in a core's cache."""
_CACHED_VALUES = 1 << 18
"""Values that become float32 together: 1 MB."""
_KEPT_VALUES = 1 << 21
"""Values of the largest array whose memory a thread keeps for the next image: 8 MB."""
_RUNS = np.arange(1, 33)
"""Lengths of runs, and of groups of runs, to choose from."""
_PASSES_KEPT = 64
"""Passes of each direction whose weights are kept: about 0.2 MB each for 224 outputs."""


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution (https://doi.org/10.1109/TASSP.1981.1163711) with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _windowed_sinc(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
    "lanczos": (_windowed_sinc, 3),
}
"""Name -> the weight of an input by its distance, and the distance from which on it is zero."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass along one axis reads and multiplies: runs of neighbouring outputs, in groups.

    Run r of group g reads `span` inputs from `first + g * group_step + r * run_step` on. Places before the first input
    and behind the last have weight zero.
    """

    weights: np.ndarray
    """Along the height f32[groups, runs, run, span]; along the width f32[groups, runs, span * 3, run * 3 and zeros]."""
    run: int
    """Outputs of a run."""
    span: int
    """Inputs that a run reads."""
    first: int
    """Counted from `begin`; may be negative."""
    group_step: int
    run_step: int
    begin: int
    """First input that is read at all."""
    end: int
    """The one behind the last."""

    @property
    def before(self) -> int:
        """Places that are read before `begin`."""
        return max(0, -self.first)

    @property
    def made(self) -> int:
        """Outputs of all runs; the last may be more than are wanted."""
        return self.weights.shape[0] * self.weights.shape[1] * self.run

    @property
    def places(self) -> int:
        """All that must be there: places before, inputs, and places behind."""
        groups, runs = self.weights.shape[:2]
        last = self.first + (groups - 1) * self.group_step + (runs - 1) * self.run_step + self.span
        return self.before + max(self.end - self.begin, last)


class _Memory(threading.local):
    """Arrays of each thread that serve one image after another: fresh memory costs as much time as a pass."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, use: str, shape: tuple[int, ...]) -> np.ndarray:
        """f32 of a shape, with any contents; the next array for the same use takes its place."""
        size = math.prod(shape)
        if size > _KEPT_VALUES:
            return np.empty(shape, np.float32)
        kept = self._kept.get(use)
        if kept is None or kept.size < size:
            kept = self._kept[use] = np.empty(size, np.float32)
        return kept[:size].reshape(shape)


_MEMORY = _Memory()


def resized(
    pixels: np.ndarray, target: tuple[int, int], resample: str, window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Resizes an image.

    Args:
        pixels: u8[H, W, 3].
        target: height and width of the whole result.
        resample: "bilinear", "bicubic" or "lanczos".
        window: top, left, height and width of the part of the result that is wanted; None: all of it. What it does not
            need is neither read nor computed.

    Returns:
        u8[height, width, 3]
    """
    top, left, rows, columns = window or (0, 0, *target)
    if pixels.shape[:2] == target:
        return pixels[top : top + rows, left : left + columns]
    down = pass_down(resample, pixels.shape[0], target[0], top, rows)
    across = pass_across(resample, pixels.shape[1], target[1], left, columns)
    inputs = pixels[down.begin : down.end, across.begin : across.end]
    width = across.weights.shape[0] * across.weights.shape[1] * across.weights.shape[3]
    if vertical_first(pixels.shape[:2], target):
        result = _MEMORY.array("result", (rows, width))
        _multiply_across(_shortened(inputs, down)[:rows], across, result)
    else:
        padded = _padded(down, width)
        _multiply_across(inputs, across, padded[down.before : down.before + len(inputs)])
        result = _MEMORY.array("result", (down.made, width))
        _multiply_down(padded, down, result)
    return _levels(result[:rows], across, columns)


def vertical_first(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether the pass along the height comes first: it takes away more than twice what that along the width does.

    This is Pillow 13's rule; earlier ones always begin with the width. As values are clipped between the passes, the
    order shows at hard edges, by up to 30 levels.

    Args:
        size: height and width in pixels.
        target: height and width after the resize.
    """
    shrunk = size[0] - target[0]
    return shrunk > 0 and shrunk > 2 * (size[1] - target[1])


@lru_cache(_PASSES_KEPT)
def pass_down(resample: str, inputs: int, outputs: int, first: int, count: int) -> Pass:
    """The pass along the height, for `count` of the outputs from `first` on."""
    return _planned(resample, inputs, outputs, first, count, 3.0 + _RUNS)


@lru_cache(_PASSES_KEPT)
def pass_across(resample: str, inputs: int, outputs: int, first: int, count: int) -> Pass:
    """The pass along the width, for `count` of the outputs from `first` on.

    Each channel meets weights of its own, so that pixels need not be taken apart into channels: that would take longer
    than to multiply the zeros.
    """
    registers = -(-_CHANNELS * _RUNS // _VECTOR)
    plan = _planned(resample, inputs, outputs, first, count, 0.75 + registers)
    groups, runs, run, span = plan.weights.shape
    wide = np.zeros((groups, runs, span, _CHANNELS, int(registers[run - 1]) * _VECTOR), np.float32)
    for channel in range(_CHANNELS):
        wide[..., channel, channel : run * _CHANNELS : _CHANNELS] = plan.weights.swapaxes(2, 3)
    return replace(plan, weights=wide.reshape(groups, runs, span * _CHANNELS, -1))


def _planned(resample: str, inputs: int, outputs: int, first: int, count: int, cost: np.ndarray) -> Pass:
    """The pass along the height whose runs and groups have the lengths that cost least.

    Args:
        cost: of a place in the span of a run, for runs of 1, 2, ... outputs.
    """
    weights, starts = _weights(resample, inputs, outputs, first, count)
    taps = weights.shape[1]
    run, runs, run_step, group_step = _cheapest(inputs / outputs, taps, count, cost)
    groups = -(-count // (run * runs))
    steps = np.arange(groups)[:, None] * group_step + np.arange(runs) * run_step
    number, place = np.divmod(np.arange(count), run)
    offsets = starts - steps.reshape(-1)[number]
    offset = int(offsets.min())
    span = int(offsets.max()) - offset + taps
    dense = np.zeros((groups * runs, run, span), np.float32)
    dense[number[:, None], place[:, None], (offsets - offset)[:, None] + np.arange(taps)] = weights
    begin, end = int(starts[0]), min(inputs, int(starts[-1]) + taps)
    return Pass(dense.reshape(groups, runs, run, span), run, span, offset - begin, group_step, run_step, begin, end)


def _weights(resample: str, inputs: int, outputs: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights f64[count, taps] of each output, and the inputs i64[count] at which they begin.

    The filter is stretched by the scale where the image shrinks, cut off at the edges of the image, and normalised.
    """
    shape, support = _FILTERS[resample]
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    centres = (np.arange(first, first + count) + 0.5) * scale
    starts = np.maximum(np.trunc(centres - support * stretch + 0.5), 0).astype(np.int64)
    stops = np.minimum(np.trunc(centres + support * stretch + 0.5), inputs).astype(np.int64)
    places = starts[:, None] + np.arange(int((stops - starts).max()))
    weights = shape((places - centres[:, None] + 0.5) / stretch)
    weights[places >= stops[:, None]] = 0
    return weights / weights.sum(axis=1, keepdims=True), starts


def _cheapest(scale: float, taps: int, count: int, cost: np.ndarray) -> tuple[int, int, int, int]:
    """Outputs of a run, runs of a group, and the steps between runs and groups, in inputs.

    A step is a whole number of inputs; what it is off by adds up from run to run, and widens the span of all.
    """
    run = _RUNS[:count, None]
    runs = np.minimum(_RUNS, -(-count // run))
    groups = -(-count // (run * runs))
    run_step, group_step = np.rint(run * scale), np.rint(run * runs * scale)
    drift = np.abs(run * scale - run_step) * (runs - 1) + np.abs(run * runs * scale - group_step) * (groups - 1)
    span = (run - 1) * scale + taps + drift
    total = groups * runs * span * cost[:count, None]
    best = np.unravel_index(np.argmin(total), total.shape)
    return int(run[best[0], 0]), int(runs[best]), int(run_step[best[0], 0]), int(group_step[best])


def _padded(plan: Pass, columns: int) -> np.ndarray:
    """f32[`plan.places`, columns], of which the places before and behind the inputs are zero."""
    values = _MEMORY.array("padded", (plan.places, columns))
    values[: plan.before] = 0
    values[plan.before + plan.end - plan.begin :] = 0
    return values


def _shortened(pixels: np.ndarray, plan: Pass) -> np.ndarray:
    """The pass along the height of u8[end - begin, W, 3] to f32[`plan.made`, W, 3], some columns at a time."""
    height, width, _ = pixels.shape
    result = _MEMORY.array("shortened", (plan.made, width, _CHANNELS))
    step = max(1, _CACHED_VALUES // (plan.places * _CHANNELS))
    for left in range(0, width, step):
        part = pixels[:, left : left + step]
        padded = _padded(plan, part.shape[1] * _CHANNELS)
        padded.reshape(plan.places, -1, _CHANNELS)[plan.before : plan.before + height] = part
        _multiply_down(padded, plan, result[:, left : left + step].reshape(plan.made, -1))
    return result


def _multiply_down(padded: np.ndarray, plan: Pass, result: np.ndarray) -> None:
    """The pass along the height of f32[`plan.places`, C] into f32[`plan.made`, C], clipped."""
    groups, runs, run, span = plan.weights.shape
    stride, item = padded.strides
    steps = plan.group_step * stride, plan.run_step * stride, stride, item
    step = max(1, LARGEST_PRODUCT // (run * span))
    for left in range(0, padded.shape[1], step):
        part = padded[plan.before + plan.first :, left : left + step]
        inputs = as_strided(part, (groups, runs, span, part.shape[1]), steps)
        outputs = result[:, left : left + step].reshape(groups, runs, run, -1)
        np.matmul(plan.weights, inputs, out=outputs)
    np.clip(result, 0, 255, out=result)


def _multiply_across(pixels: np.ndarray, plan: Pass, result: np.ndarray) -> None:
    """The pass along the width of u8 or f32[R, end - begin, 3] into f32[R, groups * runs * outputs], clipped."""
    groups, runs, depth, outputs = plan.weights.shape
    rows, width, _ = pixels.shape
    strip = min(_STRIP_ROWS, rows, LARGEST_PRODUCT // (depth * outputs), _CACHED_VALUES // (plan.places * _CHANNELS))
    strip = max(1, strip)
    values = _MEMORY.array("strip", (strip, plan.places, _CHANNELS))
    values[:, : plan.before] = 0
    values[:, plan.before + width :] = 0
    row, place, item = values.strides
    spans = as_strided(
        values[:, plan.before + plan.first :],
        (groups, runs, strip, depth),
        (plan.group_step * place, plan.run_step * place, row, item),
    )
    for top in range(0, rows, strip):
        part = result[top : top + strip]
        count = len(part)
        values[:count, plan.before : plan.before + width] = pixels[top : top + count]
        sums = part.reshape(count, groups, runs, outputs).transpose(1, 2, 0, 3)
        np.matmul(spans[:, :, :count], plan.weights, out=sums)
        np.clip(part, 0, 255, out=part)


def _levels(values: np.ndarray, plan: Pass, columns: int) -> np.ndarray:
    """Rounds f32[H, groups * runs * outputs], and leaves out the zeros behind each run: u8[H, columns, 3]."""
    length = plan.run * _CHANNELS
    values += 0.5
    runs = values.reshape(len(values), -1, plan.weights.shape[3])[:, :, :length]
    levels = runs.astype(np.uint8).reshape(len(values), -1, _CHANNELS)
    return levels[:, :columns]
