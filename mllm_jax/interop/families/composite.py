"""What a family of multimodal models is: a family made of an encoder's and a decoder's, with a processor beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.transforms.image import ImageTransformConfig
from mllm_jax.interop.families.family import Family, HuggingFaceConfig
from mllm_jax.models.multimodal import MultimodalConfig

ProcessorConfig = Mapping[str, Any]
"""The content of an image processor's config."""


@dataclass(frozen=True)
class Processor:
    """What a family's folders say about images, both ways."""

    image_transform: Callable[[ProcessorConfig], ImageTransformConfig | None]
    """The transform that equals an image processor's; None: there is none."""
    image_size: Callable[[ProcessorConfig], tuple[int, int] | None]
    """Height and width in pixels of the images that an image processor makes; None: it does not say."""
    files: Callable[[MultimodalConfig, ImageTransformConfig], dict[str, Any]]
    """The files (name to JSON) from which transformers makes the processor of a model and its image transform; raises
    ValueError where it has none that does the same."""
    expands_images: bool = True
    """Whether transformers' processor writes an image's token as often as the image takes tokens; where it does not,
    the exported chat template does."""


@dataclass(frozen=True)
class MultimodalFamily(Family[MultimodalConfig]):
    """A family of whole models; its `to_hugging_face` gives a config with the decoder's under `text_config`."""

    processor: Processor
    image_token_key: str
    """Where config.json says which token stands for an image."""
    image_token_default: int
    """What transformers takes where it does not say."""

    def image_token(self, config: HuggingFaceConfig) -> int:
        """The id that stands for an image, under either of the names that transformers has for it."""
        given = (config.get(key) for key in (self.image_token_key, "image_token_id", "image_token_index"))
        return next((index for index in given if index is not None), self.image_token_default)


@dataclass(frozen=True)
class CompositeFamily:
    """One entry of the table of multimodal families: finds the families of the parts and joins them."""

    model_types: tuple[str, ...]
    """Values of `model_type` in a `config.json` that belong to this family."""
    of_folder: Callable[[HuggingFaceConfig], MultimodalFamily]
    """The family of a config.json; raises FamilyError for parts that are not known."""
    of_config: Callable[[MultimodalConfig], MultimodalFamily]
    """The family as which a model of ours may be exported; raises FamilyError for parts that have no family. Whether
    the whole is one of the family is what its `to_hugging_face` says."""
    tiled: bool = False
    """Whether its models take images as tiles; none of the others do."""
