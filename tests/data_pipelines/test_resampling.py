"""Resizing against Pillow and torch."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig, fit
from data_pipelines.transforms.resampling import LARGEST_PRODUCT, pass_across, pass_down, resized, vertical_first

SIZE = st.tuples(st.integers(1, 160), st.integers(1, 160))
FILTER = st.sampled_from(["bilinear", "bicubic", "lanczos"])


def edges(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Black and white pixels at random: what makes a filter overshoot most."""
    return np.random.default_rng(seed).integers(0, 2, (*size, 3), dtype=np.uint8) * 255


def distance(ours: np.ndarray, theirs: np.ndarray) -> int:
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


def by_pillow(pixels: np.ndarray, target: tuple[int, int], resample: str) -> np.ndarray:
    """Pillow's passes one by one, in the order of the rule: its versions before 13 know but one order."""
    image, width, height = Image.fromarray(pixels), target[1], target[0]
    first = (image.width, height) if vertical_first(pixels.shape[:2], target) else (width, image.height)
    return np.asarray(image.resize(first, RESAMPLING[resample]).resize((width, height), RESAMPLING[resample]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=SIZE, target=SIZE, resample=FILTER)
@example(size=(384, 512), target=(224, 224), resample="bicubic")
@example(size=(512, 384), target=(224, 224), resample="bicubic")
@example(size=(700, 60), target=(32, 32), resample="bicubic")
@example(size=(3, 2001), target=(7, 5), resample="lanczos")
@example(size=(1, 1), target=(224, 224), resample="bilinear")
def test_pixels_are_within_two_levels_of_pillows(size, target, resample):
    pixels = edges(size)
    ours = resized(pixels, target, resample)

    assert ours.shape == (*target, 3) and ours.dtype == np.uint8
    assert distance(ours, by_pillow(pixels, target, resample)) <= 2


@pytest.mark.parametrize("target", [(224, 224), (31, 300), (300, 31), (400, 500)])
@pytest.mark.parametrize("size", [(384, 512), (512, 384), (1000, 90), (90, 1000), (64, 64)])
def test_the_order_of_passes_is_that_of_pillow_13(size, target):
    pixels = edges(size)
    theirs = Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BICUBIC)

    assert distance(resized(pixels, target, "bicubic"), np.asarray(theirs)) <= 2


@pytest.mark.parametrize(("size", "target"), [((384, 512), (224, 224)), ((61, 97), (80, 64)), ((50, 40), (99, 120))])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_pixels_are_within_two_levels_of_torchs_which_begins_with_the_width(resample, size, target):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(planes, target, mode=resample, antialias=True)[0].permute(1, 2, 0)

    assert distance(resized(pixels, target, resample), theirs.numpy()) <= 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=SIZE, target=SIZE, resample=FILTER, data=st.data())
def test_a_window_is_that_part_of_the_whole(size, target, resample, data):
    top, left = (data.draw(st.integers(0, length - 1)) for length in target)
    height, width = data.draw(st.integers(1, target[0] - top)), data.draw(st.integers(1, target[1] - left))
    pixels = edges(size)
    part = resized(pixels, target, resample, (top, left, height, width))

    # Sums of other runs may round to the level beside.
    assert distance(part, resized(pixels, target, resample)[top : top + height, left : left + width]) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(inputs=st.integers(1, 5000), outputs=st.integers(1, 1000), resample=FILTER)
def test_the_weights_of_an_output_add_up_to_one_and_read_what_is_there(inputs, outputs, resample):
    for plan, channels in ((pass_down, 1), (pass_across, 3)):
        made = plan(resample, inputs, outputs, 0, outputs)
        groups, runs = made.weights.shape[:2]
        sums = made.weights.sum(axis=3 if channels == 1 else 2).reshape(groups * runs, -1)[:, : made.run * channels]
        np.testing.assert_allclose(sums.reshape(-1)[: outputs * channels], 1, atol=1e-5)
        assert (made.begin, made.end) == (0, inputs)
        last = made.first + (groups - 1) * made.group_step + (runs - 1) * made.run_step + made.span
        assert made.before + made.first >= 0 and made.before + last <= made.places
        assert made.weights[0, 0].size <= LARGEST_PRODUCT


def test_threads_do_not_share_the_memory_they_work_in():
    images = [edges((90 + 7 * n, 120), n) for n in range(4)]
    expected = [resized(image, (64, 64), "bicubic") for image in images]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if not np.array_equal(resized(images[number], (64, 64), "bicubic"), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(37, 91), (91, 37), (64, 64), (1, 3)])
def test_both_ways_to_resize_fit_an_image_alike(size, mode):
    numpy, pillow = (
        fit(edges(size), ImageTransformConfig(size=(30, 45), mode=mode, resize_with=library))
        for library in ("numpy", "pillow")
    )
    assert distance(numpy, pillow) <= 2
