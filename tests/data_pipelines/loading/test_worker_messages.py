import json

import pytest

from data_pipelines.loading.worker_messages import error_from_json, error_to_json
from data_pipelines.quota import QuotaExceededError
from data_pipelines.rendered import RenderError


def again(error):
    try:
        raise error
    except Exception as caught:
        return error_from_json(json.loads(json.dumps(error_to_json(caught))), "process 1")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a wrong value"),
        QuotaExceededError("too much of it is bad"),
        FileNotFoundError(2, "No such file or directory", "shards/0.tar"),
        OSError("the store does not answer"),
        KeyError("key"),
    ],
)
def test_errors_keep_their_type_and_what_they_say(error):
    found = again(error)
    assert type(found) is type(error) and str(found) == str(error)
    assert getattr(found, "filename", None) == getattr(error, "filename", None)
    assert found.__notes__[0].startswith("In process 1:\nTraceback") and "in again" in found.__notes__[0]


def test_errors_that_cannot_be_made_again_are_named():
    class Foreign(Exception):
        """Of a library."""

    for error in (Foreign("what it said"), RenderError("turn_order", "what it said")):
        found = again(error)
        assert isinstance(found, RuntimeError) and "what it said" in str(found)
        assert type(error).__name__ in str(found)
