"""Resizing against Pillow and torch."""

import threading

import cykooz_resizer
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.transforms.image import RESAMPLING, ImageTransformConfig, fit
from data_pipelines.transforms.resampling import resized, vertical_first

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


@pytest.mark.parametrize("size", [(2, 60_000), (20_000, 8), (9000, 1)])
def test_sums_of_very_many_pixels_lose_nothing(size):
    pixels = edges(size)
    for target in ((2, 3), (224, 224)):
        assert distance(resized(pixels, target, "bicubic"), by_pillow(pixels, target, "bicubic")) <= 2


def test_every_set_of_instructions_gives_the_same_pixels(monkeypatch):
    """So that batches do not depend on the machine that makes them."""
    pixels, targets = edges((301, 397)), ((224, 224), (33, 500), (500, 33))
    best = [resized(pixels, target, "bicubic") for target in targets]
    plain = cykooz_resizer.Resizer()
    plain.cpu_extensions = cykooz_resizer.CpuExtensions.none
    monkeypatch.setattr(cykooz_resizer, "Resizer", lambda: plain)
    for target, expected in zip(targets, best, strict=True):
        np.testing.assert_array_equal(resized(pixels, target, "bicubic"), expected)


def test_parts_of_larger_arrays_are_resized_as_their_copies():
    whole = edges((90, 120))
    part = whole[5:75, 10:100:2]
    np.testing.assert_array_equal(resized(part, (30, 20), "bicubic"), resized(part.copy(), (30, 20), "bicubic"))


def test_a_library_that_is_not_there_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr("data_pipelines.transforms.image.available", lambda: False)
    assert ImageTransformConfig().resize_with == "pillow"
    with pytest.raises(ValueError, match=r"cykooz-resizer is not installed .* set resize_with to pillow"):
        ImageTransformConfig(resize_with="fast_image_resize")


def test_threads_resize_side_by_side():
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
    fast, pillow = (
        fit(edges(size), ImageTransformConfig(size=(30, 45), mode=mode, resize_with=library))
        for library in ("fast_image_resize", "pillow")
    )
    assert distance(fast, pillow) <= 2
