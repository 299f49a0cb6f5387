"""Small pictures with captions, and what is made of them in any process."""

import pytest

from tests.support.described import descriptions, write_pictures
from tests.support.small_tokenizers import small_tokenizer


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("shards"), (30, 5, 17))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    return descriptions(small_tokenizer("bytes", tmp_path_factory.mktemp("tokenizer")))
