"""What a run begins with: pretrained parameters where the run file names them, random ones elsewhere."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mllm_jax.config import RunConfig
from mllm_jax.interop.backbones import load_backbone
from mllm_jax.interop.connector_weights import load_connector
from mllm_jax.interop.whole_model import load_whole_model
from mllm_jax.model_choice import ModelChoice
from mllm_jax.models.connectors.visual_expert import copied_from
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.fused import encoder_parts
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters, init_parameters
from mllm_jax.models.vit import ViTConfig
from mllm_jax.parallel.rules import ParameterTree
from mllm_jax.training.patterns import matches_any
from mllm_jax.training.state import shardings_of

LOGGER = logging.getLogger("mllm_jax")


def initial_parameters(config: RunConfig, model: MultimodalConfig, abstract: ParameterTree) -> ParameterTree:
    """Pretrained where the run file names weights, random elsewhere; made where they belong."""
    loaded = _of_whole_model(config.model.weights, abstract)
    wanted = {path: leaf for path, leaf in flatten_dict(abstract).items() if path not in loaded}
    for path, (folder, part) in _backbones(config.model, model).items():
        # What a connector adds to the decoder is in no decoder's folder.
        own = {(*path, *key) for key in flatten_dict(abstract_parameters(part))}
        below = {key[len(path) :]: leaf for key, leaf in wanted.items() if key in own}
        if folder and below:
            backbone = load_backbone(folder, part, unflatten_dict(below))
            for sentence in backbone.adjusted:
                LOGGER.info("%s from %s: %s", "/".join(path), folder, sentence)
            loaded |= {(*path, *key): leaf for key, leaf in flatten_dict(backbone.parameters).items()}
    if config.model.connector_weights is not None:
        connector = load_connector(config.model.connector_weights, model, unflatten_dict(wanted))
        for sentence in connector.adjusted:
            LOGGER.info("%s: %s", config.model.connector_weights, sentence)
        loaded |= flatten_dict(connector.parameters)
    for path in wanted.keys() - loaded.keys():
        source = copied_from(path)
        if source in loaded:
            loaded[path] = jax.device_put(loaded[source].astype(wanted[path].dtype), wanted[path].sharding).copy()
    rest = {path: leaf for path, leaf in wanted.items() if path not in loaded}

    def random() -> dict[tuple[str, ...], jax.Array]:
        parameters = flatten_dict(init_parameters(model, jax.random.key(config.seed)))
        return {path: parameters[path].astype(leaf.dtype) for path, leaf in rest.items()}

    for level, sentence in _on_random_parameters(config, {"/".join(path): leaf.size for path, leaf in rest.items()}):
        LOGGER.log(level, sentence)
    made = jax.jit(random, out_shardings=shardings_of(rest))() if rest else {}
    return unflatten_dict(made | loaded)


def _on_random_parameters(config: RunConfig, sizes: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """What is to be said, and how loudly, of parameters that begin from random numbers, by path."""
    trained = [pattern for stage in config.stages for pattern in stage.trainable]
    by_use: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for path, size in sizes.items():
        by_use[matches_any(trained, path)][path.split("/")[0]] += size
    learned, fixed = (
        ", ".join(f"{part} {size:,}" for part, size in sorted(by_use[use].items())) for use in (True, False)
    )
    if learned:
        yield logging.INFO, f"these parameters begin from random numbers: {learned}"
    if fixed:
        yield (
            logging.WARNING,
            f"these parameters begin from random numbers and no stage trains them: {fixed}. Pretrained ones are named "
            "by model.weights, model.encoder.weights and model.decoder.weights.",
        )


def _of_whole_model(weights: str | None, abstract: ParameterTree) -> dict[tuple[str, ...], jax.Array]:
    """Path -> parameter, for all that the model has that the run begins with."""
    if weights is None:
        return {}
    loaded = flatten_dict(load_whole_model(weights, abstract))
    others = ["/".join(path) for path in flatten_dict(abstract) if path not in loaded]
    if others:
        LOGGER.info("%s has none of these parameters, which begin by other keys: %s", weights, ", ".join(others))
    return loaded


def _backbones(
    choice: ModelChoice, model: MultimodalConfig
) -> dict[tuple[str, ...], tuple[str | None, ViTConfig | DecoderConfig]]:
    """Path to the parameters of every part that can be pretrained -> its folder and its architecture."""
    folders = [each.weights for each in (choice.encoder, *choice.encoder.fused_with)]
    encoders = encoder_parts(model.encoder).items()
    found: dict[tuple[str, ...], tuple[str | None, ViTConfig | DecoderConfig]] = {
        ("encoder", *path): (folder, part) for folder, (path, part) in zip(folders, encoders, strict=True)
    }
    return found | {("decoder",): (choice.decoder.weights, model.decoder)}
