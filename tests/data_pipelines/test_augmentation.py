"""Random changes of images: against formulas worked out by hand, Pillow, and themselves under other circumstances."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from pydantic import ValidationError

from data_pipelines.loader import Loader
from data_pipelines.transforms.augmentation import (
    AugmentationConfig,
    RandomCropConfig,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    augmented,
    crop_box,
    grey,
    uniforms,
)
from data_pipelines.transforms.image import ImageTransformConfig, fit, resize
from tests.support.tiny_stream import PREPARATION, decode, stream_config, write_pairs

SEEDS = st.integers(0, 2**64 - 1)
SIDES = st.integers(1, 600)
TRANSFORM = ImageTransformConfig(size=(32, 24))
ALL = AugmentationConfig(
    crop=RandomCropConfig(scale=(0.3, 0.9)), flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4
)


def picture(height=40, width=60, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@st.composite
def crops(draw):
    scale = sorted(draw(st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0))))
    ratio = sorted(draw(st.tuples(st.floats(0.25, 4.0), st.floats(0.25, 4.0))))
    return RandomCropConfig(scale=tuple(scale), ratio=tuple(ratio))


@given(height=SIDES, width=SIDES, crop=crops(), seed=SEEDS)
def test_a_part_is_inside_the_image(height, width, crop, seed):
    top, left, rows, columns = crop_box((height, width), crop, uniforms(seed))
    assert 0 <= top <= height - rows and 0 <= left <= width - columns and rows > 0 and columns > 0


@given(side=st.integers(300, 600), crop=crops(), seed=SEEDS)
def test_a_part_has_the_area_and_the_ratio_that_are_asked_for(side, crop, seed):
    # Where the greatest part of the most extreme ratio fits, the first one that is drawn is taken.
    assume(crop.scale[1] * max(crop.ratio[1], 1 / crop.ratio[0]) <= 0.99)
    _, _, rows, columns = crop_box((side, side), crop, uniforms(seed))
    # Half a pixel is rounded away on each side.
    assert crop.scale[0] * side**2 <= (rows + 0.51) * (columns + 0.51)
    assert (rows - 0.51) * (columns - 0.51) <= crop.scale[1] * side**2
    assert crop.ratio[0] <= (columns + 0.51) / (rows - 0.51) and (columns - 0.51) / (rows + 0.51) <= crop.ratio[1]


def test_a_part_is_made_of_four_numbers():
    crop = RandomCropConfig(scale=(0.1, 0.9), ratio=(0.5, 2.0))
    # Half of the way: 0.5 of the area 20,000, ratio sqrt(0.5 * 2) = 1.
    side = round(math.sqrt(0.5 * 20_000))
    draws = [0.5, 0.5] * 10 + [0.0, 0.999]
    assert crop_box((100, 200), crop, draws) == (0, 200 - side, side, side)
    # The greatest area at ratio 2 is 67 x 134, for which 100 x 100 has no room; the next try fits.
    draws = [1.0, 1.0, 0.0, 0.5] + [1.0] * 16 + [0.5, 0.5]
    assert crop_box((100, 100), crop, draws) == (34, 34, 32, 32)


@pytest.mark.parametrize(
    ("size", "expected"), [((10, 1000), (0, 493, 10, 13)), ((1000, 9), (494, 0, 12, 9)), ((1000, 1), (499, 0, 1, 1))]
)
def test_where_no_part_fits_it_is_the_middle(size, expected):
    crop = RandomCropConfig(scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    assert crop_box(size, crop, [0.5] * 22) == expected


def test_areas_are_spread_evenly():
    crop = RandomCropConfig(scale=(0.2, 0.6), ratio=(1.0, 1.0))
    boxes = [crop_box((1000, 1000), crop, uniforms(seed)) for seed in range(2000)]
    areas = np.array([rows * columns / 1e6 for _, _, rows, columns in boxes])
    assert np.histogram(areas, 4, (0.2, 0.6))[0] == pytest.approx([500] * 4, abs=80)


def test_a_cropped_image_is_the_part_resized():
    config = AugmentationConfig(crop=RandomCropConfig(scale=(0.2, 0.5)))
    top, left, rows, columns = crop_box((40, 60), config.crop, uniforms(7))
    part = np.ascontiguousarray(picture()[top : top + rows, left : left + columns])
    assert np.array_equal(augmented(picture(), config, TRANSFORM, 7), resize(part, (32, 24), TRANSFORM))


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
def test_half_of_the_images_are_mirrored_and_the_others_left_alone(mode):
    transform = TRANSFORM.model_copy(update={"mode": mode})
    whole = fit(picture(), transform)
    made = [augmented(picture(), AugmentationConfig(flip=0.5), transform, seed) for seed in range(200)]
    mirrored = [np.array_equal(pixels, whole[:, ::-1]) for pixels in made]
    assert all(same or np.array_equal(pixels, whole) for same, pixels in zip(mirrored, made, strict=True))
    assert 70 < sum(mirrored) < 130


PIXELS = np.array([[[10, 20, 30], [200, 100, 0]]], np.uint8)


@pytest.mark.parametrize(
    ("adjust", "factor", "expected"),
    [
        (adjust_brightness, 1.5, [[15, 30, 45], [255, 150, 0]]),
        (adjust_brightness, 0.25, [[2, 5, 7], [50, 25, 0]]),
        # Greys: 2.989 + 11.74 + 3.42 -> 18 and 59.78 + 58.7 -> 118; their mean is 68.
        (adjust_contrast, 0.5, [[39, 44, 49], [134, 84, 34]]),
        (adjust_contrast, 2.0, [[0, 0, 0], [255, 132, 0]]),
        (adjust_saturation, 0.0, [[18, 18, 18], [118, 118, 118]]),
        (adjust_saturation, 1.5, [[6, 21, 36], [241, 91, 0]]),
    ],
)
def test_colours_worked_out_by_hand(adjust, factor, expected):
    assert adjust(PIXELS, factor).tolist() == [expected]


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_colours_are_nearly_those_of_pillow(factor):
    image = Image.fromarray(picture())
    for adjust, enhance in (
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
    ):
        theirs = np.asarray(enhance(image).enhance(factor)).astype(int)
        assert np.abs(adjust(picture(), factor) - theirs).max() <= 2, adjust
    assert np.abs(grey(picture()) - np.asarray(image.convert("L")).astype(int)).max() <= 1


@settings(max_examples=50, deadline=None)
@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_a_seed_says_everything(height, width, seed):
    image = picture(height, width)
    made = augmented(image, ALL, TRANSFORM, seed)
    assert made.shape == (32, 24, 3) and made.dtype == np.uint8
    assert np.array_equal(made, augmented(image.copy(), ALL, TRANSFORM, seed))
    assert np.array_equal(image, picture(height, width))


def test_other_seeds_give_other_images_and_a_change_more_leaves_the_others_as_they_are():
    assert len({augmented(picture(), ALL, TRANSFORM, seed).tobytes() for seed in range(50)}) == 50
    cropped = AugmentationConfig(crop=ALL.crop)
    both = cropped.model_copy(update={"brightness": 0.5})
    for seed in range(9):
        one, other = (augmented(picture(), config, TRANSFORM, seed).astype(int) for config in (cropped, both))
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "changes no image"),
        ({"flip": 2}, "less than or equal to 1"),
        ({"crop": {"scale": (0.9, 0.1)}}, "lower bound first"),
        ({"crop": {"scale": (0.0, 0.1)}}, "greater than 0"),
        ({"brightness": -1}, "greater than or equal to 0"),
        ({"hue": 0.1}, "Extra inputs"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        AugmentationConfig(**wrong)


SEEN = replace(PREPARATION, augment=lambda data, seed: decode(data + seed.to_bytes(8)))
"""Shows the seed in the pixels."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return {"pairs": write_pairs(tmp_path_factory.mktemp("shards"), (9, 4))}


def load(sources, batches, position=None, **options):
    with Loader(stream_config(**options), sources, SEEN, 4, position=position) as loader:
        return [next(loader) for _ in range(batches)]


def test_an_epoch_changes_images_in_another_way_than_the_one_before(sources):
    config = stream_config()
    made: dict[str, list[bytes]] = {}
    with Loader(config, sources, SEEN, 4) as loader:
        for _ in range(10):
            loaded = next(loader)
            pixels = loaded.batch.images[loaded.batch.image_mask]
            for key, image in zip(loaded.report.keys, pixels, strict=True):
                made.setdefault(key, []).append(image.tobytes())
    assert len(made) == 13
    for images in made.values():
        assert len(images) >= 5 and len(set(images)) == len(images)


@settings(max_examples=10, deadline=None)
@given(stop=st.integers(1, 9))
def test_a_restart_changes_images_as_an_undisturbed_run(sources, stop):
    whole, begun = load(sources, 10), load(sources, stop)
    resumed = load(sources, 10 - stop, begun[-1].position.to_json())
    for one, two in zip(whole, begun + resumed, strict=True):
        assert np.array_equal(one.batch.images, two.batch.images)
    assert [one.position for one in whole] == [two.position for two in begun + resumed]


def test_another_seed_of_the_data_changes_images_in_another_way(tmp_path):
    source = {"pairs": write_pairs(tmp_path, (1,))}
    one, two = (load(source, 1, seed=seed)[0].batch.images for seed in (0, 1))
    assert not {image.tobytes() for image in one.reshape(-1, 48)} & {
        image.tobytes() for image in two.reshape(-1, 48) if image.any()
    }


def test_a_position_of_before_there_were_epochs_goes_on(sources):
    position = load(sources, 2)[-1].position.to_json()
    for lane in position["lanes"].values():
        del lane["lane"]["waiting_epochs"]
    assert [one.report.keys for one in load(sources, 3, position)] == [one.report.keys for one in load(sources, 5)[2:]]
