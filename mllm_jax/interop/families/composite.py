"""What a family of multimodal models is: a family made of an encoder's and a decoder's, with a processor beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.tokenizer import IMAGE_TOKEN
from data_pipelines.transforms.image import ImageTransformConfig
from data_pipelines.transforms.templates import ChatTemplate, ImageFormat
from data_pipelines.transforms.tiling import TilingConfig
from mllm_jax.interop.families.family import Family, FamilyError, HuggingFaceConfig
from mllm_jax.interop.rules import Rule, Table
from mllm_jax.models.fused import FusedConfig
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.vit import ViTConfig

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
    surrounds: Callable[[MultimodalConfig], ImageFormat | None] = lambda config: None
    """What transformers' processor of a model itself writes around an image and its tiles; None: nothing, so that the
    exported chat template writes it."""
    template: ChatTemplate | None = None
    """The only chat template there is, where transformers' processor itself writes all of it but the content of one
    question; None: a folder's Jinja text says."""
    tiling: Callable[[ProcessorConfig], TilingConfig | None] = lambda preprocessor: None
    """How an image processor tiles images; None: it does not, or config.json says it."""
    token_names: Callable[[MultimodalConfig], Mapping[str, str | None]] = lambda config: {}
    """Special tokens that transformers' processor of a model asks the tokenizer for by its own names for them; None:
    the image token."""
    instruction_folder: str | None = None
    """The folder inside a model's that holds the tokenizer of the instructions that its connector reads; None: it reads
    none."""
    names_image_token: bool = True
    """Whether the processor takes a tokenizer that says which of its tokens stands for an image."""


_TRANSFORMERS_5 = (
    (r"model\.(?=(vision_tower|multi_modal_projector|language_model)\.)", ""),
    (r"language_model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
)
"""Names as they are in memory of transformers 5, which files rarely hold, to those that all versions read."""


def tower_of(config: MultimodalConfig) -> ViTConfig:
    """The vision transformer of a model that has one.

    Raises:
        FamilyError: it has several.
    """
    if isinstance(config.encoder, FusedConfig):
        raise FamilyError("transformers has no model with two vision encoders side by side, as this one has.")
    return config.encoder


def projector_table(encoder: Table, connector: tuple[Rule, ...], decoder: Table) -> Table:
    """The table of models that call their parts as LLaVA does; the connector's rules are given below its own name."""
    return (
        Table((), _TRANSFORMERS_5)
        + encoder.below("vision_tower.", "encoder/")
        + Table(connector).below("multi_modal_projector.", "connector/")
        + decoder.below("language_model.", "decoder/")
    )


@dataclass(frozen=True, kw_only=True)
class MultimodalFamily(Family[MultimodalConfig]):
    """A family of whole models; its `to_hugging_face` gives a config with the decoder's under `text_config`, or as
    one with the whole's."""

    processor: Processor
    image_token_key: str
    """Where config.json says which token stands for an image."""
    image_token_default: int
    """What transformers takes where it does not say."""
    placeholders: tuple[str, ...] = (IMAGE_TOKEN,)
    """Names that the token has in the tokenizers of this family; the first that is there is taken."""
    token_keys: Mapping[str, str] = field(default_factory=dict)
    """Other keys of config.json that hold the id of a special token, and the token."""

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
    tilings: tuple[str | None, ...] = (None,)
    """The kinds of tiling that its models may have; None: an image is one whole."""
    accepts: Callable[[HuggingFaceConfig], bool] = lambda config: True
    """Tells apart families of one `model_type`."""
