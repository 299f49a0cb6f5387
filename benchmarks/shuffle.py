"""How well records are shuffled, beside a perfect shuffle; prints one JSON line.

    python benchmarks/shuffle.py [--shards 64] [--samples 2000] [--windows 1 100 1000 10000] [--lanes 1 8]

Records are numbered in the order of the shards, as data sets are often sorted. Medians over the batches of a stream:

    shards      different shards in a batch
    near        share of records whose nearest number in the batch is less than 10 away
    spread      distance of a batch's mean number from that of all, in standard errors of a perfect draw

`perfect` draws from all records. More lanes and more open shards mix more shards; a larger window shuffles within them.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data_pipelines.permutation import seed_of
from data_pipelines.source_stream import Deal, SourceStream
from data_pipelines.sources.source import Entry


class Numbered:
    """Shards of numbered entries."""

    def __init__(self, shards: int, samples: int) -> None:
        self.shards = tuple(f"{number:05d}" for number in range(shards))
        self._samples = samples

    def count(self, shard: int) -> int | None:
        return None

    def entries(self, shard: int) -> int | None:
        return self._samples

    def walk(self, shard: int, place: int = 0) -> Iterator[Entry]:
        return (Entry(shard, number, number + 1, None) for number in range(place, self._samples))

    def number(self, entry: Entry) -> int:
        return entry.shard * self._samples + entry.place


def drawn(source: Numbered, lanes: int, open_shards: int, window: int) -> Callable[[], int]:
    """The numbers of a global batch's records: of every lane in turn."""
    deal = Deal(source, seed_of(0, "source", "x"), lanes * open_shards)  # type: ignore[arg-type]
    strands = [tuple(lane + turn * lanes for turn in range(open_shards)) for lane in range(lanes)]
    streams = [SourceStream(deal, each, window) for each in strands]
    turns = iter(range(1 << 62))
    return lambda: source.number(next(streams[next(turns) % lanes]))


def told(batches: list[np.ndarray], samples: int, total: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"shards": [], "near": [], "spread": []}
    for numbers in batches:
        ordered = np.sort(numbers)
        gaps = np.diff(ordered)
        nearest = np.minimum(np.append(gaps, total), np.insert(gaps, 0, total))
        error = total / np.sqrt(12 * len(numbers))
        found["shards"].append(len(set((numbers // samples).tolist())))
        found["near"].append(float(np.mean(nearest < 10)))
        found["spread"].append(abs(float(numbers.mean()) - total / 2) / error)
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("shards", 64), ("samples", 2000), ("batch", 256), ("batches", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--windows", type=int, nargs="+", default=(1, 100, 1000, 10000))
    parser.add_argument("--lanes", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--open-shards", type=int, nargs="+", default=(1, 2, 8))
    options = parser.parse_args()
    total = options.shards * options.samples
    random = np.random.default_rng(0)
    perfect = [random.choice(total, options.batch, replace=False) for _ in range(options.batches)]
    found: dict[str, Any] = {"perfect": told(perfect, options.samples, total)}
    for lanes in options.lanes:
        for open_shards in options.open_shards:
            for window in options.windows:
                draw = drawn(Numbered(options.shards, options.samples), lanes, open_shards, window)
                batches = [np.array([draw() for _ in range(options.batch)]) for _ in range(options.batches)]
                name = f"lanes {lanes}, open shards {open_shards}, window {window}"
                found[name] = told(batches, options.samples, total)
    print(json.dumps({"benchmark": "shuffle", "shards": options.shards, "samples": options.samples, "found": found}))


if __name__ == "__main__":
    main()
