"""What the loader's processes tell the one that started them, as JSON: of rows, of errors, and what they log."""

import contextlib
import importlib
import json
import logging
import traceback
from typing import Any

from data_pipelines.lanes import Gone
from data_pipelines.loading.built_rows import BuiltRows
from data_pipelines.quota import Skip

_OURS = "data_pipelines."


def rows_to_json(built: BuiltRows) -> dict[str, Any]:
    """All but the arrays, which are in the shared memory, and what lies where in them."""
    return {
        "keys": built.keys,
        "skips": [(lane, skip.cause, skip.key, skip.detail) for lane, skip in built.skips],
        "states": built.states,
        "gone": built.gone,
        "holds": built.holds,
        "more": built.more,
        "failed_reads": built.failed_reads,
    }


def add_rows(told: dict[str, Any], first_row: int, whole: BuiltRows) -> None:
    """Adds the rows of one process to those of the processes before it.

    Args:
        told: what it said of them.
        first_row: where they begin.
        whole: is changed.
    """
    whole.keys += [(first_row + row, key, source) for row, key, source in told["keys"]]
    whole.skips += [(lane, Skip(cause, key, detail)) for lane, cause, key, detail in told["skips"]]
    whole.states |= {int(lane): state for lane, state in told["states"].items()}
    whole.gone |= {
        int(lane): {name: Gone(*gone) for name, gone in sources.items()} for lane, sources in told["gone"].items()
    }
    whole.holds |= told["holds"]
    whole.more |= told["more"]
    whole.failed_reads += told["failed_reads"]


def error_to_json(error: BaseException) -> dict[str, Any]:
    """What an error is, says and came from."""
    arguments = list(error.args)
    if isinstance(error, OSError) and error.filename is not None:
        arguments = [error.errno, error.strerror, error.filename]
    try:
        json.dumps(arguments)
    except (TypeError, ValueError):
        arguments = [str(error)]
    return {
        "module": type(error).__module__,
        "name": type(error).__qualname__,
        "arguments": arguments,
        "text": str(error),
        "trace": "".join(traceback.format_exception(error)),
    }


def error_from_json(told: dict[str, Any], where: str) -> Exception:
    """The error again; of a type that is neither Python's own nor ours, a RuntimeError that names it.

    Args:
        told: by `error_to_json`.
        where: it happened; stands in a note of the error.
    """
    error: Exception = RuntimeError(f"{told['name']}: {told['text']}")
    if told["module"] == "builtins" or told["module"].startswith(_OURS):
        found = getattr(importlib.import_module(told["module"]), told["name"], None)
        if isinstance(found, type) and issubclass(found, Exception):
            # One that asks for other arguments than it keeps stays a RuntimeError.
            with contextlib.suppress(TypeError):
                error = found(*told["arguments"])
    error.add_note(f"In {where}:\n{told['trace']}")
    return error


def log_to_json(record: logging.LogRecord) -> dict[str, Any]:
    """A line of the log."""
    return {"name": record.name, "level": record.levelno, "text": record.getMessage()}


def log_again(told: dict[str, Any]) -> None:
    """Writes a line to the log of this process."""
    logging.getLogger(told["name"]).log(told["level"], "%s", told["text"])
