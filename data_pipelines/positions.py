"""Where every lane stands after a batch: small JSON that restores the stream on any number of processes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.gathering import gather_json
from data_pipelines.sources.source import Source
from data_pipelines.stream_config import StreamConfig

_FREE = frozenset({"skip_quota", "unfit_quota"})


class PositionMismatchError(ValueError):
    """A position was saved by a stream that is not this one."""


@dataclass(frozen=True, slots=True)
class LanePositions:
    """The positions of some lanes (those of one process) or of all of them."""

    fingerprint: dict[str, Any]
    """What the stream depends on; must be the same to go on."""
    lanes: dict[int, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "lanes": {str(lane): state for lane, state in sorted(self.lanes.items())},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LanePositions":
        return cls(dict(value["fingerprint"]), {int(lane): state for lane, state in value["lanes"].items()})

    def check(self, fingerprint: dict[str, Any], lanes: tuple[int, ...]) -> None:
        """Raises when this position cannot be continued by a stream.

        Raises:
            PositionMismatchError: naming everything that changed.
        """
        changed = changes(self.fingerprint, fingerprint)
        if changed:
            raise PositionMismatchError(
                "The saved data position belongs to another stream, so records would be lost or repeated. Changed: "
                + "; ".join(changed)
                + ". Restore the former values, or start a new run directory."
            )
        missing = [lane for lane in lanes if lane not in self.lanes]
        if missing:
            raise PositionMismatchError(
                f"The saved data position lacks the lanes {missing}; it holds {sorted(self.lanes)}. "
                "Save what gather_positions returns, not the position of one process."
            )


def fingerprint(
    config: StreamConfig, sources: Mapping[str, Source], image_tokens: int, tiling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what must not change between a run and its continuation.

    Args:
        tiling: what tiled images are laid out by, as JSON; None: they are not tiled.
    """
    described = {
        "stream": config.model_dump(mode="json", exclude=set(_FREE)),
        "image_tokens": image_tokens,
        "sources": {name: sources[name].fingerprint() for name in config.names},
    }
    return described if tiling is None else described | {"tiling": tiling}


def changes(former: dict[str, Any], fingerprint: dict[str, Any]) -> list[str]:
    """What is different in two fingerprints, by its path."""
    then, now = _flat(former), _flat(json.loads(json.dumps(fingerprint)))
    return [
        f"{key}: was {then.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key, "absent") != now.get(key, "absent")
    ]


def gather_positions(position: LanePositions) -> dict[str, Any]:
    """Returns the positions of all lanes, as JSON, on every process.

    A collective: every process calls it with its own position after the same batch.
    """
    lanes: dict[int, dict[str, Any]] = {}
    for gathered in gather_json(position.to_json()):
        lanes.update(LanePositions.from_json(gathered).lanes)
    return LanePositions(position.fingerprint, lanes).to_json()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf
        for key, inner in value.items()
        for path, leaf in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }
