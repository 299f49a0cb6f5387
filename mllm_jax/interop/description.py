"""What a model is besides its numbers: architecture, chat template and image transform, as one JSON value."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from data_pipelines.config_class import Config
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.templates import TEMPLATES, ChatTemplate
from mllm_jax.models.decoder import DecoderConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.vit import ViTConfig

FILE_NAME = "mllm_model.json"


class ModelDescription(Config):
    """Stands in every checkpoint and in `mllm_model.json` of an imported folder."""

    model: MultimodalConfig | DecoderConfig | ViTConfig
    """The architecture: a whole model, a language model alone or a vision encoder alone."""
    chat_template: ChatTemplate | None = None
    """How conversations are written, as data or by name; null: not known (a vision encoder, a language model that was
    never trained on conversations)."""
    image_transform: ImageTransformConfig | None = None
    """How images become the encoder's size; null: not known."""

    @field_validator("chat_template", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in TEMPLATES:
                raise ValueError(f"there is no chat template {value!r}; templates: {', '.join(TEMPLATES)}")
            return TEMPLATES[value]
        return value


def read_description(folder: Path) -> ModelDescription:
    """Read an imported folder's `mllm_model.json`.

    Raises:
        ValueError: the file is not what `write_description` writes.
    """
    path = folder / FILE_NAME
    try:
        return ModelDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} does not describe a model: {error}. Import the model again.") from error


def write_description(folder: Path, description: ModelDescription) -> None:
    """Write `mllm_model.json`."""
    text = json.dumps(description.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")
