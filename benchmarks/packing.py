"""How full rows get, and what packing costs a record; prints one JSON line.

    python benchmarks/packing.py [--records 20000] [--row-length 2048] [--images 2 4] [--open-rows 16]

Lengths are those of LLaVA-1.5's mixture of 665k records in shape (see `PARTS`), with images of 576 tokens.
Beside ours stand first-fit over as many open rows, the usual way to pack a stream, and the best fit of all records at
once, which no stream can do: where rows hold few records, not even that fills them. `fill` is the share of token places
that hold a token, `slots` that of image slots that hold an image; CPU is of the one thread, the median of five.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from data_pipelines.packing import Packer, Segment
from data_pipelines.rendered import RenderedRecord

IMAGE_TOKENS = 576
PARTS = (
    (158, 300, 0.5, 1),
    (83, 190, 0.5, 1),
    (72, 230, 0.4, 1),
    (89, 130, 0.4, 1),
    (134, 480, 0.5, 1),
    (22, 40, 0.3, 1),
    (40, 1000, 0.7, 0),
)
"""Thousands of records, median tokens of text, spread of their logarithm, images: conversations and descriptions,
VQAv2, GQA, questions about texts and covers, regions and boxes, captions, text alone."""


def sizes(count: int, row_length: int, seed: int = 0) -> list[tuple[int, int]]:
    """(tokens, images) of records that fit a row, drawn from `PARTS`."""
    random = np.random.default_rng(seed)
    shares = np.array([share for share, _, _, _ in PARTS])
    found = []
    for part in random.choice(len(PARTS), count, p=shares / shares.sum()):
        _, median, spread, images = PARTS[part]
        text = max(16, int(median * np.exp(spread * random.standard_normal())))
        tokens = text + IMAGE_TOKENS * images
        if tokens <= row_length:
            found.append((tokens, images))
    return found


def segment(tokens: int, images: int) -> Segment:
    array = np.zeros(tokens, np.int32)
    rendered = RenderedRecord("", array, array.astype(bool), array.astype(bool), (0,) * images, (None,) * images)  # type: ignore[arg-type]
    return Segment(rendered, 0, 0, 0)


def ours(records: list[Segment], row_length: int, images: int, open_rows: int) -> Iterator[tuple[int, int]]:
    packer = Packer(row_length, images, open_rows)
    for each in records:
        packer.add(each)
        while packer.ready:
            row = packer.take()
            yield sum(part.tokens for part in row), sum(part.images for part in row)


def first_fit(records: list[Segment], row_length: int, images: int, open_rows: int) -> Iterator[tuple[int, int]]:
    """The first open row with room takes a record; where none has, the fullest is closed."""
    rows = [(0, 0)] * open_rows
    for each in records:
        size = each.tokens, each.images
        fitting = [n for n, row in enumerate(rows) if row[0] + size[0] <= row_length and row[1] + size[1] <= images]
        if not fitting:
            fitting = [max(range(open_rows), key=lambda number: rows[number])]
            yield rows[fitting[0]]
            rows[fitting[0]] = (0, 0)
        tokens, slots = rows[fitting[0]]
        rows[fitting[0]] = (tokens + size[0], slots + size[1])


def best_fit_decreasing(
    records: list[Segment], row_length: int, images: int, open_rows: int
) -> Iterator[tuple[int, int]]:
    """What can be reached by who knows all records beforehand: the longest first, each in the fullest row with room."""
    left = np.full(len(records), row_length)
    slots = np.full(len(records), images)
    used = 0
    for each in sorted(records, key=lambda each: -each.tokens):
        room = np.where(slots[:used] >= each.images, left[:used] - each.tokens, -1)
        fitting = np.flatnonzero(room >= 0)
        row = int(fitting[np.argmin(room[fitting])]) if len(fitting) else used
        used = max(used, row + 1)
        left[row] -= each.tokens
        slots[row] -= each.images
    yield from zip((row_length - left[:used]).tolist(), (images - slots[:used]).tolist(), strict=True)


Pack = Callable[[list[Segment], int, int, int], Iterator[tuple[int, int]]]


PACKERS: dict[str, Pack] = {"ours": ours, "first_fit": first_fit, "all known": best_fit_decreasing}


def measured(pack: Pack, records: list[Segment], row_length: int, images: int, open_rows: int) -> dict[str, float]:
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        rows = list(pack(records, row_length, images, open_rows))
        seconds.append(time.process_time() - begun)
    tokens, slots = np.array(rows).mean(axis=0)
    cost = 1000 * statistics.median(seconds) / len(records)
    return {
        "fill": round(tokens / row_length, 4),
        "slots": round(slots / images, 4),
        "cpu_ms_a_record": round(cost, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20000)
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--images", type=int, nargs="+", default=(2, 3, 4))
    parser.add_argument("--open-rows", type=int, default=16)
    options = parser.parse_args()
    records = [segment(*size) for size in sizes(options.records, options.row_length)]
    found = {
        f"{images} images a row": {
            name: measured(pack, records, options.row_length, images, options.open_rows)
            for name, pack in PACKERS.items()
        }
        for images in options.images
    }
    print(
        json.dumps({"benchmark": "packing", "records": len(records), "row_length": options.row_length, "packed": found})
    )


if __name__ == "__main__":
    main()
