"""A handful of the demo's scenes, and its tokenizers, where the tiny twins of the recipes look for them."""

from pathlib import Path

import numpy as np

from mllm_jax.demo.dataset import DatasetConfig, DemoData, scenes, write_dataset
from mllm_jax.demo.tokenizer_text import write_text_tokenizer, write_tokenizer


def write_small_demo(folder: Path) -> None:
    """Writes what `make demo` writes into `demo/` before it trains, but less."""
    write_dataset(DemoData(folder / "data").folder, DatasetConfig(pairs=96, chats=64, held_out=2))
    shown = scenes(DatasetConfig(), "train", "chats", 300)
    write_tokenizer(folder / "tokenizer.model", shown, np.random.default_rng(0))
    write_text_tokenizer(folder / "text_tokenizer", folder / "tokenizer.model")
