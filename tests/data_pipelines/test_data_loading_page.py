"""docs/data_loading.md: the values that it names are the defaults."""

import re
from pathlib import Path

from data_pipelines.loading.loader_config import LoaderConfig
from data_pipelines.loading.worker import LEAVING_SECONDS

PAGE = (Path(__file__).parents[2] / "docs" / "data_loading.md").read_text(encoding="utf-8")


def test_the_page_names_every_key_with_its_default():
    named = {name: int(value) for name, value in re.findall(r"^  (\w+): (\d+) +#", PAGE, re.MULTILINE)}
    assert named == LoaderConfig().model_dump()


def test_the_page_says_how_long_processes_take_to_end():
    assert f"in {LEAVING_SECONDS:g} seconds" in PAGE
