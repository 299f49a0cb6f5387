"""Peak host memory of importing and of exporting a LLaMA, over the size of its folder; prints one JSON line.

    python benchmarks/interop_memory.py [--gigabytes 0.6] [--dtype bfloat16] [--folder DIR]

The weights are drawn on the disk, a tensor after another and in several files, with a tokenizer trained on the way.
Every measurement runs in a process of its own; the peak is its largest resident set (pages of mapped files included),
less what it is after the imports and JAX's start. An export holds the model on its device, which here is the host: 1 of
its ratio is the model itself.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from data_pipelines.tokenizers.training import TokenizerTrainingConfig, train_sentencepiece
from data_pipelines.transforms.templates import PLAIN
from mllm_jax.interop.export import export
from mllm_jax.interop.families.llama import LLAMA
from mllm_jax.interop.hugging_face import import_folder
from mllm_jax.interop.model_folder import load_model
from mllm_jax.interop.rules import pieces, tensors, whole_shape
from mllm_jax.interop.safetensors_folder import StoredTensor, write_folder
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.parameters import abstract_parameters

VOCABULARY = 320
SHARD = 24
"""Tensors in a file."""


def architecture(folder_bytes: float, itemsize: int) -> DecoderConfig:
    """As many layers of width 1024 as make up a folder of that size."""
    width, inner = 1024, 2816
    layers = round(folder_bytes / itemsize / (4 * width**2 + 3 * width * inner))
    return DecoderConfig(
        vocab_size=VOCABULARY,
        width=width,
        layers=max(layers, 1),
        heads=16,
        kv_heads=16,
        head_width=64,
        feed_forward_width=inner,
    )


def write_model(folder: Path, config: DecoderConfig, dtype: np.dtype) -> int:
    """Writes a folder as the hub has them; returns the bytes of its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA.to_hugging_face(config)))
    tokenizer = TokenizerTrainingConfig(vocabulary_size=VOCABULARY - 16)
    text = [f"line {number} of some words to train a tokenizer on" for number in range(2000)]
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(text, tokenizer))
    wanted, _ = tensors(LLAMA.table, flatten_dict(abstract_parameters(config), sep="/"))
    stored = [StoredTensor(name, dtype, whole_shape(parts)) for name, parts in pieces(wanted).items()]
    shards = [stored[start : start + SHARD] for start in range(0, len(stored), SHARD)]
    generator = np.random.default_rng(0)
    arrays = (0.02 * generator.standard_normal(tensor.shape, np.float32) for tensor in stored)
    write_folder(folder, shards, (array.astype(dtype) for array in arrays))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def resident() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker(verb: str, source: Path, target: Path) -> None:
    """Does one thing, and prints the bytes that it needed at most."""
    jax.devices()
    before = resident()
    if verb == "import":
        import_folder(source, target)
    else:
        export(load_model(source, chat_template=PLAIN), target)
    print(resident() - before)


def peak(verb: str, source: Path, target: Path) -> int:
    command = [sys.executable, __file__, "--worker", verb, str(source), str(target)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(folder: Path, gigabytes: float, dtype: str) -> dict[str, object]:
    number = jax.numpy.dtype(dtype)
    config = architecture(gigabytes * 1e9, number.itemsize)
    size = write_model(folder / "theirs", config, number)
    imported = peak("import", folder / "theirs", folder / "imported")
    exported = peak("export", folder / "imported", folder / "exported")
    return {
        "folder_gigabytes": round(size / 1e9, 3),
        "layers": config.layers,
        "import_ratio": round(imported / size, 3),
        "export_ratio": round(exported / size, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.6)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where three copies of the model have room")
    parser.add_argument("--worker", nargs=3, metavar=("VERB", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        verb, source, target = options.worker
        worker(verb, Path(source), Path(target))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.gigabytes, options.dtype)
    print(json.dumps({"benchmark": "interop_memory", "dtype": options.dtype} | found))


if __name__ == "__main__":
    main()
