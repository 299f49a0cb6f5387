"""Sample pictures show what the model answered."""

from PIL import Image

from mllm_jax.demo.samples import SCALE, SampleAnswer, draw_sample


def test_an_answered_box_is_drawn_where_it_says():
    scene = Image.new("RGB", (64, 64), "black")
    said = SampleAnswer("Where is the 7?", "[0.25,0.50,0.75,0.75]", "[0.25,0.50,0.75,0.75]", correct=True)
    picture = draw_sample(scene, [said])
    side = 64 * SCALE
    for x, y in ((0.25, 0.6), (0.5, 0.5), (0.5, 0.75)):
        assert picture.getpixel((round(x * side), round(y * side))) == (255, 255, 255)
    assert picture.getpixel((side // 2, round(0.6 * side))) == (0, 0, 0)


def test_a_box_with_its_corners_the_wrong_way_round_is_still_drawn():
    scene = Image.new("RGB", (64, 64), "black")
    wrong = SampleAnswer("Where is the 7?", "[0.75,0.75,0.25,0.50]", "[0.25,0.50,0.75,0.75]", correct=False)
    assert draw_sample(scene, [wrong]).getpixel((64 * SCALE // 4, round(0.6 * 64 * SCALE))) == (255, 255, 255)
