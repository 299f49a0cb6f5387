"""One process of a stream that several processes build without a mesh: INDEX PROCESSES AFTER STEPS SHARDS FOLDER.

It builds the lanes INDEX, INDEX + PROCESSES, ..., and writes what each of them gave at each step to
FOLDER/<step>/<lane>.json. It goes on after the step AFTER, whichever processes wrote that.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.loader import Loader, Share
from data_pipelines.loading.loaded_batch import LoadedBatch
from data_pipelines.positions import LanePositions
from data_pipelines.sources.webdataset import WebDatasetConfig
from tests.support.tiny_stream import PREPARATION, stream_config

LANES = 8
ROWS = 2 * LANES
SKIP_QUOTA = 0.05


def opened(shards: str, lanes: range, position: dict[str, Any] | None) -> Loader:
    config, sources = stream_config(lanes=LANES, skip_quota=SKIP_QUOTA), {"pairs": WebDatasetConfig(shards=shards)}
    return Loader(config, sources, PREPARATION, ROWS, position=position, share=Share(lanes=tuple(lanes)))


def given(loaded: LoadedBatch, lanes: range) -> dict[int, dict[str, Any]]:
    """What each lane gave in a batch: the keys of its records, a digest of its arrays, and where it stands."""
    found = {}
    for order, lane in enumerate(lanes):
        rows = slice(order * ROWS // LANES, (order + 1) * ROWS // LANES)
        records = [each for each in loaded.records if each.lost is None and each.row in range(ROWS)[rows]]
        arrays = [array[rows].tobytes() for array in loaded.batch if isinstance(array, np.ndarray)]
        found[lane] = {
            "keys": [each.rendered.key for each in records],
            "arrays": hashlib.sha256(b"".join(arrays)).hexdigest(),
            "position": LanePositions(loaded.position.fingerprint, {lane: loaded.position.lanes[lane]}).to_json(),
        }
    return found


def newest(folder: Path) -> int:
    """The newest step of which every lane is there; 0 at the beginning."""
    steps = sorted((int(each.name) for each in folder.iterdir()), reverse=True)
    lanes = [f"{lane}.json" for lane in range(LANES)]
    return next((step for step in steps if all((folder / str(step) / lane).exists() for lane in lanes)), 0)


def position_after(step: int, folder: Path) -> dict[str, Any] | None:
    """Where all lanes stand after a step, put together of what each process wrote."""
    files = [folder / str(step) / f"{lane}.json" for lane in range(LANES)]
    positions = [json.loads(file.read_text())["position"] for file in files] if step else []
    lanes = {lane: state for each in positions for lane, state in each["lanes"].items()}
    return {"fingerprint": positions[0]["fingerprint"], "lanes": lanes} if step else None


def main(index: int, processes: int, after: int, steps: int, shards: str, folder: Path) -> None:
    lanes = range(index, LANES, processes)
    with opened(shards, lanes, position_after(after, folder)) as loader:
        for step in range(after + 1, steps + 1):
            for lane, found in given(next(loader), lanes).items():
                file = folder / str(step) / f"{lane}.json"
                file.parent.mkdir(exist_ok=True)
                part = file.with_suffix(".writing")
                part.write_text(json.dumps(found))
                os.replace(part, file)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5], Path(sys.argv[6]))
