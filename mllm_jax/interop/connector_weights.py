"""The weights of a connector alone, between an encoder and a decoder from folders of their own: in and out."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.interop.adjustments import Adjustment, ExtendVocabulary
from mllm_jax.interop.bert_weights import check_bert_folder, load_bert
from mllm_jax.interop.equivalents import without_padding
from mllm_jax.interop.families.family import FamilyError
from mllm_jax.interop.families.open_flamingo import EMBEDDING, TOKENS, open_flamingo_table
from mllm_jax.interop.hub import local_folder
from mllm_jax.interop.imported_folder import new_folder
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.interop.rules import Table, tensors
from mllm_jax.interop.safetensors_folder import SafetensorsFolder, WeightsError
from mllm_jax.interop.weights import Loaded, Tree, load, save
from mllm_jax.models.connectors.q_former import QFormerConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters

OPTIONAL = ("decoder/position_embedding/embedding", "decoder/output/kernel")
"""What a checkpoint may leave to the decoder's folder, having never changed it."""


def check_connector_weights(weights: str, wanted: MultimodalConfig, tokens: int) -> None:
    """Checks that a folder's connector is one of the model's kind, trained with a tokenizer of so many tokens.

    Raises:
        FamilyError: the model is not one whose connector has a format of its own, or the folder's is of another shape.
        WeightsError: the folder's embedding is for another tokenizer.
        FileNotFoundError: there are no weights.
    """
    if isinstance(wanted.connector, QFormerConfig):
        return check_bert_folder(weights, wanted.connector, "model.connector_weights")
    folder, table = local_folder(weights), open_flamingo_table(wanted)
    rows = _stored(folder, table, covered(table, abstract_parameters(wanted))).get(EMBEDDING, (tokens,))[0]
    if rows != tokens:
        added = ", ".join(TOKENS)
        raise WeightsError(
            f"{folder} has embeddings of {rows} tokens, but the tokenizer has {tokens}: set model.tokenizer to the one "
            f"that these weights were trained with. OpenFlamingo adds {added} to the language model's, in this order, "
            "and <PAD> where nothing pads."
        )


def load_connector(weights: str, wanted: MultimodalConfig, abstract: Tree) -> Loaded:
    """A folder's weights of a connector, with the embeddings of tokens, as parameters of the whole model.

    Args:
        weights: folder or hub id with an OpenFlamingo checkpoint as safetensors, or with a BERT for a Q-Former.
        wanted: the run's architecture.
        abstract: all of its parameters, or whole parts of it, as `ShapeDtypeStruct` with shardings.

    Raises:
        FamilyError, FileNotFoundError: as `check_connector_weights`.
        WeightsError: naming every tensor that is missing, unexpected or misshaped.
    """
    if isinstance(wanted.connector, QFormerConfig):
        asked = flatten_dict(abstract.get("connector", {}), sep="/")
        found = load_bert(weights, wanted.connector, asked) if asked else {}
        return Loaded({"connector": unflatten_dict(found, sep="/")} if found else {}, (), ())
    folder, table = local_folder(weights), open_flamingo_table(wanted)
    whole = covered(table, abstract_parameters(wanted))
    stored = _stored(folder, table, whole)
    asked = {path: leaf for path, leaf in covered(table, abstract).items() if path in stored or path not in OPTIONAL}
    # What is there and not asked for (a part that was trained since) is no fault of the folder.
    others = {tensor.name for tensor in tensors(table, whole)[0] if tensor.path not in asked}
    table = replace(table, ignored=(*table.ignored, *map(re.escape, others)))
    adjustments = _adjustments(stored, wanted.decoder.vocab_size)
    adjustments = {path: adjustment for path, adjustment in adjustments.items() if path in asked}
    tree = unflatten_dict(asked, sep="/")
    return load(folder, table, tree, jax.tree.map(lambda leaf: leaf.sharding, tree), adjustments)


def export_connector(loaded: LoadedModel, folder: str | Path, dtype: Any = None) -> None:
    """Writes the weights of a model's connector as an OpenFlamingo checkpoint, with the tokenizer beside them.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: the model is not one of OpenFlamingo's, or its tokenizer lacks a token that OpenFlamingo would add.
    """
    config, tokenizer = loaded.config, loaded.tokenizer
    if not isinstance(config, MultimodalConfig) or tokenizer is None:
        raise FamilyError(f"{loaded.source} is a part of a model alone, so that it has no connector.")
    missing = [token for token in TOKENS if not tokenizer.has_special(token)]
    if missing:
        raise FamilyError(
            f"The tokenizer has no special token {' and no '.join(missing)}, which OpenFlamingo would add, so that its "
            "embedding would have other rows than this one: train with a tokenizer that has it."
        )
    decoder = config.decoder.model_copy(update={"vocab_used": tokenizer.vocabulary_size})
    description = loaded.description.model_copy(update={"model": config.model_copy(update={"decoder": decoder})})
    cut = without_padding(LoadedModel(description, loaded.parameters, tokenizer, loaded.source))
    assert isinstance(cut.config, MultimodalConfig)
    table = open_flamingo_table(cut.config)
    parameters = unflatten_dict(covered(table, cut.parameters), sep="/")
    with new_folder(Path(folder)) as partial:
        for name, content in tokenizer.hugging_face_files().items():
            (partial / name).write_bytes(content)
        save(partial, table, parameters, dtype)


def covered(table: Table, tree: Tree) -> dict[str, Any]:
    """The leaves that the table has rules for, by path."""
    leaves = flatten_dict(tree, sep="/")
    _, others = tensors(table, leaves)
    return {path: leaf for path, leaf in leaves.items() if path not in set(others)}


def _stored(folder: Path, table: Table, leaves: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path of a parameter that a folder holds -> the shape of its first tensor there."""
    found, _ = tensors(table, leaves)
    with SafetensorsFolder(folder) as source:
        shapes = {table.canonical(name): source.shape(name) for name in source.names()}
    return {tensor.path: shapes[tensor.name] for tensor in found if tensor.name in shapes}


def _adjustments(stored: dict[str, tuple[int, ...]], rows: int) -> dict[str, Adjustment]:
    """What pads the vocabulary that a folder holds to the model's."""
    if EMBEDDING not in stored or stored[EMBEDDING][0] >= rows:
        return {}
    sizes = stored[EMBEDDING][0], rows
    return {EMBEDDING: ExtendVocabulary(*sizes, axis=0), "decoder/output/kernel": ExtendVocabulary(*sizes, axis=1)}
