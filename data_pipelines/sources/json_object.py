"""The JSON object that some bytes of a data set are, or why they are none."""

import json
from typing import Any

from data_pipelines.quota import Skip


def json_object(data: bytes, key: str) -> dict[str, Any] | Skip:
    """Returns the object, or a skip whose cause is `not_utf8`, `bad_json` or `not_an_object`."""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Skip("not_utf8", key, str(error))
    except (ValueError, RecursionError) as error:
        return Skip("bad_json", key, str(error))
    if not isinstance(value, dict):
        return Skip("not_an_object", key, f"the JSON is a {type(value).__name__}, not an object")
    return value
