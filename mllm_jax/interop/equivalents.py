"""Rewritings of a model that compute the same, into a shape that a family of transformers has."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from mllm_jax.interop.families.choice import family_of_config
from mllm_jax.interop.families.family import Family, FamilyError
from mllm_jax.interop.model_folder import LoadedModel
from mllm_jax.models.connectors.linear import LinearConfig
from mllm_jax.models.connectors.mlp import MLPConfig
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.layers.positions import resize_positions
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import ModelConfig
from mllm_jax.models.vit import ViTConfig


def exportable(loaded: LoadedModel) -> tuple[Family, LoadedModel]:
    """Return a model in a shape that some family has, and the family.

    Raises:
        FamilyError: there is none; the message says why.
    """
    loaded = without_padding(loaded)
    refused: FamilyError | None = None
    for change in (_unchanged, with_identity_layer, with_resized_positions, _with_both):
        candidate = change(loaded)
        if candidate is loaded and refused is not None:
            continue
        try:
            return family_of_config(candidate.config), candidate
        except FamilyError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _unchanged(loaded: LoadedModel) -> LoadedModel:
    return loaded


def _with_both(loaded: LoadedModel) -> LoadedModel:
    return with_resized_positions(with_identity_layer(loaded))


def without_padding(loaded: LoadedModel) -> LoadedModel:
    """Return the vocabulary without the rows that only pad it; transformers would take them for tokens."""
    config = loaded.config
    decoder = config.decoder if isinstance(config, MultimodalConfig) else config
    if not isinstance(decoder, DecoderConfig) or decoder.vocab_used is None:
        return loaded
    used = decoder.vocab_used
    whole = isinstance(config, MultimodalConfig)
    parameters = loaded.parameters["decoder"] if whole else loaded.parameters
    cut = {"token_embedding": {"embedding": parameters["token_embedding"]["embedding"][:used]}}
    if not decoder.tied_embeddings:
        cut["output"] = {"kernel": parameters["output"]["kernel"][:, :used]}
    decoder = decoder.model_copy(update={"vocab_size": used, "vocab_used": None})
    if not whole:
        return _changed(loaded, decoder, **cut)
    return _changed(loaded, config.model_copy(update={"decoder": decoder}), decoder={**parameters, **cut})


def with_identity_layer(loaded: LoadedModel) -> LoadedModel:
    """Return a connector of one layer as LLaVA's two: no activation, and a second layer that changes nothing."""
    if not isinstance(loaded.config, MultimodalConfig):
        return loaded
    connector = loaded.config.connector
    if not isinstance(connector, LinearConfig | MLPConfig) or connector.depth != 1:
        return loaded
    bias = connector.bias
    first = loaded.parameters["connector"]["layers_0"]
    width, dtype = loaded.config.decoder.width, first["kernel"].dtype
    second = {"kernel": jnp.eye(width, dtype=dtype)} | ({"bias": jnp.zeros(width, dtype)} if bias else {})
    model = loaded.config.model_copy(update={"connector": MLPConfig(activation="linear", bias=bias)})
    return _changed(loaded, model, connector={**loaded.parameters["connector"], "layers_1": second})


def with_resized_positions(loaded: LoadedModel) -> LoadedModel:
    """Return the encoder with a position table of its images' own size, for families that do not resize tables."""
    config = loaded.config
    encoder = config.encoder if isinstance(config, MultimodalConfig) else config
    if not isinstance(encoder, ViTConfig) or encoder.table_grid == encoder.grid:
        return loaded
    own_table = encoder.model_copy(update={"position_grid": None})
    whole = isinstance(config, MultimodalConfig)
    parameters = loaded.parameters["encoder"] if whole else loaded.parameters
    table = resize_positions(parameters["position_embedding"], encoder.table_grid, encoder.grid)
    parameters = {**parameters, "position_embedding": table}
    if not whole:
        return _changed(loaded, own_table, **parameters)
    return _changed(loaded, config.model_copy(update={"encoder": own_table}), encoder=parameters)


def _changed(loaded: LoadedModel, model: ModelConfig, **parameters: Any) -> LoadedModel:
    description = loaded.description.model_copy(update={"model": model})
    return replace(loaded, description=description, parameters={**loaded.parameters, **parameters})
