"""Scenes show what they say."""

import numpy as np
import pytest

from mllm_jax.demo.scenes import COLOURS, SceneConfig, compose, load_digit_images

CONFIG = SceneConfig()


@pytest.fixture(scope="module")
def test_scenes():
    images = load_digit_images("test", CONFIG)
    return [compose(images, CONFIG, np.random.default_rng(seed), augment=False) for seed in range(60)]


def test_splits_share_no_digit_image():
    train, test = (load_digit_images(split, CONFIG) for split in ("train", "test"))
    assert len(train.values) == 1397 and len(test.values) == 400
    assert not set(train.sources) & set(test.sources)
    assert set(train.values) == set(test.values) == set(range(10))


def test_the_same_seed_gives_the_same_scene():
    images = load_digit_images("train", CONFIG)
    one, two, other = (compose(images, CONFIG, np.random.default_rng(seed), augment=True) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert one.digits == two.digits != other.digits


def test_scenes_have_one_to_four_digits_and_all_colours(test_scenes):
    assert {len(scene.digits) for scene in test_scenes} == {1, 2, 3, 4}
    assert {digit.colour for scene in test_scenes for digit in scene.digits} == set(COLOURS)


def test_digits_lie_inside_the_scene_and_never_touch(test_scenes):
    for scene in test_scenes:
        covered = np.zeros(scene.pixels.shape[:2], int)
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            assert 0 <= x0 < x1 <= CONFIG.size and 0 <= y0 < y1 <= CONFIG.size
            covered[y0:y1, x0:x1] += 1
        assert covered.max() == 1


def test_the_box_holds_the_ink_in_the_colour_that_is_named(test_scenes):
    for scene in test_scenes:
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            inside = scene.pixels[y0:y1, x0:x1].reshape(-1, 3).astype(int)
            brightest = inside[np.argmax(inside.max(axis=1))]
            nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - brightest).sum())
            assert nearest == digit.colour
        outside = scene.pixels.copy()
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            outside[y0:y1, x0:x1] = 0
        assert outside.max() < 110


def test_values_are_those_of_the_digit_images(test_scenes):
    images = load_digit_images("test", CONFIG)
    value_of = dict(zip(images.sources.tolist(), images.values.tolist(), strict=True))
    assert all(value_of[digit.source] == digit.value for scene in test_scenes for digit in scene.digits)
