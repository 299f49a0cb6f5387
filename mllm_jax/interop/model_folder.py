"""One way to load a model: from a run directory, a checkpoint of one, an imported folder or a Hugging Face folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from pydantic import TypeAdapter

from data_pipelines.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_files
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.templates import ChatTemplate
from mllm_jax.checkpoint import reading as checkpoints
from mllm_jax.checkpoint.description import INSTRUCTION_TOKENIZER, tokenizer_files
from mllm_jax.interop import imported_folder
from mllm_jax.interop.adapter_error import AdapterError
from mllm_jax.interop.description import ModelDescription, read_description
from mllm_jax.interop.hub import local_folder
from mllm_jax.interop.hugging_face import read_folder
from mllm_jax.interop.processor import has_model_config
from mllm_jax.interop.safetensors_folder import WeightsError
from mllm_jax.models.adapters import KERNEL, adapter_paths, with_abstract_adapters, without_adapters
from mllm_jax.models.layers.low_rank import Adapters, LowRankConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import ModelConfig, Parameters, abstract_parameters, logical_axes
from mllm_jax.models.quantised_kernels import STEPS, quantised_maps, with_float_kernels
from mllm_jax.models.virtual_tokens import (
    VirtualTokensConfig,
    virtual_paths,
    with_abstract_virtual_tokens,
    without_virtual_tokens,
)
from mllm_jax.parallel.rules import parameter_shardings, replicated


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that is needed to talk with it, train it on or export it."""

    description: ModelDescription
    parameters: Parameters
    tokenizer: Tokenizer | None
    source: str
    """Where it came from: the folder, and the stage and step of a run."""
    instruction_tokenizer: Tokenizer | None = None
    """Of the instructions that the connector reads; None: it reads none."""

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.description.model

    @property
    def compute_dtype(self) -> Any:
        """Format of activations: bfloat16 for a model kept in it, except on a CPU, which is faster in float32."""
        formats = {leaf.dtype for leaf in jax.tree.leaves(self.parameters)}
        narrow = formats == {jnp.dtype(jnp.bfloat16)} and jax.default_backend() != "cpu"
        return jnp.bfloat16 if narrow else jnp.float32

    @property
    def chat_template(self) -> ChatTemplate | None:
        """How conversations are written; None: not known."""
        return self.description.chat_template

    @property
    def image_transform(self) -> ImageTransformConfig | None:
        """How images become the encoder's size; None: not known."""
        return self.description.image_transform


def load_model(
    path: str | Path, mesh: Mesh | None = None, dtype: Any = None, chat_template: ChatTemplate | None = None
) -> LoadedModel:
    """Load a model.

    Args:
        path: a run directory (its newest checkpoint is taken), one checkpoint (`RUN/stages/.../checkpoints/<step>`), an
            imported folder, a Hugging Face folder or a hub id.
        mesh: where the parameters go, sharded by the project's rules; None: to the default device.
        dtype: format of the parameters in memory; None: as they are stored (those of a run: float32).
        chat_template: takes the place of the folder's own.

    Raises:
        FileNotFoundError: there is no model at the path.
        ValueError: what is there cannot be loaded; the message says what was found and what was expected.
    """
    folder = local_folder(str(path))
    if _is_run(folder):
        loaded = _load_run(folder, mesh, dtype)
    elif imported_folder.is_imported_folder(folder):
        loaded = _load_imported(folder, mesh, dtype)
    elif has_model_config(folder):
        loaded = _load_hugging_face(folder, mesh, dtype)
    else:
        raise _no_model(folder)
    if chat_template is None:
        return loaded
    description = loaded.description.model_copy(update={"chat_template": chat_template})
    return replace(loaded, description=description)


def read_model_description(path: str | Path) -> ModelDescription:
    """What `load_model` would say of a model, without reading its parameters; raises as it does."""
    folder = local_folder(str(path))
    if _is_run(folder):
        return ModelDescription.model_validate(checkpoints.read_description(_stored_step(folder))["run"]["model"])
    if imported_folder.is_imported_folder(folder):
        return read_description(folder)
    if has_model_config(folder):
        return read_folder(folder).description
    raise _no_model(folder)


def read_virtual_tokens(path: str | Path) -> VirtualTokensConfig | None:
    """What the last stage of a run learned before every segment; None: nothing, or there is no run at the path."""
    folder = local_folder(str(path))
    return _virtual_tokens(checkpoints.read_description(_stored_step(folder))) if _is_run(folder) else None


def read_tokenizer(path: str | Path, added_tokens: tuple[str, ...]) -> Tokenizer:
    """A model's tokenizer, without reading its parameters; raises as `load_model` and `load_tokenizer` do.

    Args:
        added_tokens: special tokens to add after the vocabulary where they are not in it already.
    """
    folder = local_folder(str(path))
    if _is_run(folder):
        found = tokenizer_from_files(tokenizer_files(checkpoints.read_description(_stored_step(folder))))
        return found.with_special_tokens(added_tokens)
    if imported_folder.is_imported_folder(folder):
        return load_tokenizer(folder / imported_folder.TOKENIZERS[0], added_tokens)
    return load_tokenizer(folder, added_tokens)


def plain_model(loaded: LoadedModel) -> LoadedModel:
    """The model without its virtual tokens."""
    return replace(loaded, parameters=without_virtual_tokens(loaded.parameters))


def check_plain(loaded: LoadedModel) -> None:
    """Check that plain weights hold the whole of a model.

    Raises:
        AdapterError: it has virtual tokens.
    """
    if virtual_paths(loaded.parameters):
        raise AdapterError(
            f"{loaded.source} has virtual tokens before every segment, which cannot be merged into weights. Export "
            "with --adapter."
        )


def load_adapted(path: str | Path) -> tuple[LoadedModel, Adapters, Parameters]:
    """Load a run's model as it is without the low-rank adapters of its last stage, and these adapters.

    Args:
        path: a run directory or one checkpoint.

    Returns:
        The model, path of a linear map -> the config of its adapter, and the parameters of the adapters.

    Raises:
        FileNotFoundError: there is no run at the path.
        ValueError: the stage has no adapters.
    """
    folder = local_folder(str(path))
    loaded, adapters, parameters = _read_run(folder, None, None)
    if not adapters:
        raise ValueError(f"{loaded.source} has no low-rank adapters; export it without --adapter.")
    own = adapter_paths(adapters, logical_axes(loaded.config))
    flat = flatten_dict(parameters, sep="/")
    plain = unflatten_dict({name: leaf for name, leaf in flat.items() if name not in own}, sep="/")
    return replace(loaded, parameters=plain), adapters, unflatten_dict({name: flat[name] for name in own}, sep="/")


def _no_model(folder: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} holds no model: expected a run directory (stages/), an imported folder (mllm_model.json) or a "
        "Hugging Face folder (config.json)."
    )


def _is_run(folder: Path) -> bool:
    return _checkpoint_of(folder) is not None or (folder / "stages").is_dir() or (folder / "checkpoints").is_dir()


def _load_run(folder: Path, mesh: Mesh | None, dtype: Any) -> LoadedModel:
    loaded, adapters, parameters = _read_run(folder, mesh, dtype)
    return replace(loaded, parameters=without_adapters(adapters, parameters, logical_axes(loaded.config)))


def _read_run(folder: Path, mesh: Mesh | None, dtype: Any) -> tuple[LoadedModel, Adapters, Parameters]:
    """A run's model, its low-rank adapters, and the parameters of both as they are stored."""
    stored = _stored_step(folder)
    saved = checkpoints.read_description(stored)
    description = ModelDescription.model_validate(saved["run"]["model"])
    adapters = {path: LowRankConfig.model_validate(config) for path, config in saved["adapters"].items()}
    axes = logical_axes(description.model)
    shapes, named = with_abstract_adapters(adapters, abstract_parameters(description.model), axes)
    virtual = _virtual_tokens(saved)
    if virtual is not None:
        assert isinstance(description.model, MultimodalConfig)
        shapes, named = with_abstract_virtual_tokens(virtual, description.model.decoder, shapes, named)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype or jnp.float32, sharding=sharding),
        shapes,
        _shardings(shapes, named, mesh),
    )
    stored_as = checkpoints.frozen_leaves(stored)
    parameters = checkpoints.read_parameters(stored, _with_stored_scales(abstract, stored_as, mesh))
    parameters = with_float_kernels(parameters, dtype or jnp.float32)
    source = f"{folder} (stage {saved['stage']}, step {stored.step})"
    instructions = tokenizer_files(saved, INSTRUCTION_TOKENIZER)
    loaded = LoadedModel(
        description,
        parameters,
        tokenizer_from_files(tokenizer_files(saved)),
        source,
        tokenizer_from_files(instructions) if instructions else None,
    )
    return loaded, adapters, parameters


def _virtual_tokens(saved: Mapping[str, Any]) -> VirtualTokensConfig | None:
    """Of what is saved with a step; runs of earlier versions say nothing of them."""
    config = saved.get("virtual_tokens")
    return None if config is None else TypeAdapter(VirtualTokensConfig).validate_python(config)


def _with_stored_scales(
    abstract: Parameters, stored: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh | None
) -> Parameters:
    """Kernels that are stored in whole numbers as these, with their steps, which are small."""
    flat = flatten_dict(abstract, sep="/")
    for path in quantised_maps(unflatten_dict(dict(stored), sep="/")):
        kernel = flat[path + KERNEL]
        everywhere = kernel.sharding if mesh is None else replicated(mesh)
        flat[path + KERNEL] = kernel.update(dtype=stored[path + KERNEL].dtype)
        flat[path + STEPS] = stored[path + STEPS].update(sharding=everywhere)
    return unflatten_dict(flat, sep="/")


def _stored_step(folder: Path) -> checkpoints.StoredStep:
    """The newest checkpoint of a run directory or of a stage's folder, or the one that the path names."""
    stored = _checkpoint_of(folder)
    if stored is None and (folder / "checkpoints").is_dir():
        steps = checkpoints.stored_steps(folder)
        stored = steps[-1] if steps else None
    return checkpoints.latest_stored_step(folder) if stored is None else stored


def _checkpoint_of(folder: Path) -> checkpoints.StoredStep | None:
    """The checkpoint that a path names by itself."""
    folder = folder.absolute()
    if folder.parent.name != "checkpoints" or not folder.name.isdigit():
        return None
    return checkpoints.StoredStep(folder.parent.parent, int(folder.name))


def _load_imported(folder: Path, mesh: Mesh | None, dtype: Any) -> LoadedModel:
    description = read_description(folder)
    wanted = flatten_dict(abstract_parameters(description.model), sep="/")
    found = imported_folder.stored_paths(folder)
    if found != wanted.keys():
        missing, unexpected = sorted(wanted.keys() - found), sorted(found - wanted.keys())
        raise WeightsError(
            f"{folder / imported_folder.PARAMETERS} does not fit the model: missing {', '.join(missing) or 'nothing'}; "
            f"unexpected {', '.join(unexpected) or 'nothing'}. Import the model again."
        )
    place = _placer(description.model, mesh, dtype)
    parameters = {}
    for path, leaf in wanted.items():
        array = imported_folder.read_parameter(folder, path)
        if array.shape != leaf.shape:
            raise WeightsError(f"{folder}: {path} is {array.shape}, but the model has {leaf.shape}. Import it again.")
        parameters[path] = place(path, array)
    tokenizers = (imported_folder.read_tokenizer(folder, name) for name in imported_folder.TOKENIZERS)
    tokenizer, instruction_tokenizer = tokenizers
    tree = unflatten_dict(parameters, sep="/")
    return LoadedModel(description, tree, tokenizer, str(folder), instruction_tokenizer)


def _load_hugging_face(folder: Path, mesh: Mesh | None, dtype: Any) -> LoadedModel:
    found = read_folder(folder)
    place = _placer(found.description.model, mesh, dtype)
    with found.reading() as reading:
        parameters = {path: place(path, array) for path, array in reading.arrays()}
    tree = unflatten_dict(parameters, sep="/")
    return LoadedModel(found.description, tree, found.tokenizer, str(folder), found.instruction_tokenizer)


def _shardings(shapes: Parameters, axes: Parameters, mesh: Mesh | None) -> Parameters:
    if mesh is None:
        here: Sharding = SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda _: here, shapes)
    return parameter_shardings(axes, shapes, mesh)


def _placer(config: ModelConfig, mesh: Mesh | None, dtype: Any) -> Callable[[str, np.ndarray], jax.Array]:
    """What puts a parameter, given by path, where it belongs."""
    shardings = flatten_dict(_shardings(abstract_parameters(config), logical_axes(config), mesh), sep="/")

    def place(path: str, array: np.ndarray) -> jax.Array:
        converted = array if dtype is None else array.astype(dtype)
        return jax.make_array_from_callback(array.shape, shardings[path], lambda index: converted[index])

    return place
