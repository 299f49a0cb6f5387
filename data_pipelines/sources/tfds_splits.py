"""Opens a split of a prepared data set of TensorFlow Datasets by the files alone: none of its builder's code is run."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.sources.shard_list import expand
from data_pipelines.sources.tfds_mappings import TfdsMapping


class Split(NamedTuple):
    """An open split."""

    examples: Sequence[Any]
    """Each a tree of features; the image that a mapping names is encoded as it was stored."""
    class_names: tuple[str, ...]
    """Of the label that a mapping names."""
    files: tuple[str, ...]


def open_split(folder: Path, split: str, mapping: TfdsMapping) -> Split:
    """Opens a split.

    Args:
        folder: of one version; holds dataset_info.json.
        split: of TFDS's grammar.
        mapping: which features are wanted.

    Raises:
        FileNotFoundError: the data set or one of its files is not there.
        ValueError: a package is missing, or the data set has another file format, no such split or feature.
    """
    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"There is no {folder / 'dataset_info.json'}. Prepare this version of the data set with TFDS and "
            'file_format="array_record" in a local data_dir, or name another version.'
        )
    _refuse_other_code(folder / "features.json")
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"a source of kind tfds needs more packages ({error}): pip install 'mllm_jax[tfds]'"
        ) from error
    builder = tensorflow_datasets.builder_from_directory(folder)
    names = _class_names(builder.info.features, mapping)
    decoders: Any = tensorflow_datasets.decode.SkipDecoding()
    for name in reversed(mapping.image.split("/")):
        decoders = {name: decoders}
    try:
        examples = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise ValueError(
            f'{folder} holds {builder.info.file_format}; prepare it with file_format="array_record"'
        ) from error
    files = dict.fromkeys(str(folder / name) for name in builder.info.splits[split].filenames)
    return Split(examples, names, expand(tuple(files), "files"))


def _class_names(features: Any, mapping: TfdsMapping) -> tuple[str, ...]:
    """The names of the classes of a mapping's label, after a check that there are all features that it names."""
    from tensorflow_datasets import features as kinds

    wanted = {"image": kinds.Image, "label": kinds.ClassLabel}
    names: tuple[str, ...] = ()
    for role, path in mapping.paths.items():
        feature = _feature(features, path, kinds)
        if role in wanted and not isinstance(feature, wanted[role]):
            raise ValueError(f"mapping.{role}: feature {path} is {feature}, not of type {wanted[role].__name__}")
        if role == "label":
            names = tuple(feature.names)
    return names


def _feature(features: Any, path: str, kinds: Any) -> Any:
    found = features
    for name in path.split("/"):
        inner = found.feature if isinstance(found, kinds.Sequence) else found
        if not isinstance(inner, kinds.FeaturesDict) or name not in inner:
            raise ValueError(f"there is no feature {path}; the data set has {', '.join(features)}: {features}")
        found = inner[name]
    return found


def _refuse_other_code(file: Path) -> None:
    """Raises ValueError where features are of classes that TFDS would import from elsewhere than itself."""
    names = _class_names_of_code(json.loads(file.read_text(encoding="utf-8")))
    other = next((name for name in names if not str(name).startswith("tensorflow_datasets.")), None)
    if other is not None:
        raise ValueError(f"{file} names a feature of class {other}; only those of tensorflow_datasets are loaded")


def _class_names_of_code(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "pythonClassName":
                yield inner
            else:
                yield from _class_names_of_code(inner)
