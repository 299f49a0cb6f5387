"""Sample answers as pictures: a held-out scene, the boxes that the model answered, questions and answers beside it."""

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from data_pipelines.boxes import find_boxes

SCALE = 6
"""Pixels of the picture a side for one of the scene's."""
TEXT_WIDTH = 470
LINE_HEIGHT = 21
MARGIN = 12
RIGHT, WRONG, INK, PAPER = "#1b7f3b", "#c0262d", "#202124", "#ffffff"


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    question: str
    answer: str
    reference: str
    correct: bool


def draw_sample(scene: Image.Image, answers: list[SampleAnswer]) -> Image.Image:
    """The scene enlarged, with every answered box drawn on it, beside the answers: green right, red wrong."""
    width, height = (side * SCALE for side in scene.size)
    canvas = Image.new(
        "RGB", (width + TEXT_WIDTH, max(height, 2 * MARGIN + 2 * LINE_HEIGHT * len(answers))), color=PAPER
    )
    canvas.paste(scene.resize((width, height), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for number, said in enumerate(answers):
        colour = RIGHT if said.correct else WRONG
        x, y = width + MARGIN, MARGIN + 2 * LINE_HEIGHT * number
        draw.text((x, y), said.question, fill=INK, font=font)
        correction = "" if said.correct else f"   (is: {said.reference})"
        draw.text((x + MARGIN, y + LINE_HEIGHT), f"{said.answer}{correction}", fill=colour, font=font)
        for box in find_boxes(said.answer):
            left, top, right, bottom = box.upright
            edges = (left * width, top * height, right * width, bottom * height)
            draw.rectangle(edges, outline=PAPER, width=3)
    return canvas
