"""Writes tiny Hugging Face folders with random weights, as `transformers` itself saves them."""

from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.small_tokenizers import word_pieces, write_bert

SPECIAL_TOKENS = (
    *("<unk>", "<s>", "</s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>"),
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
)
CORPUS = (
    "What colour is the digit? red blue green yellow white",
    "How many digits are there? one two three four. USER: ASSISTANT: Describe the image.",
    "A chat between a curious user and an artificial intelligence assistant. system user assistant",
)


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on three sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def vision_config(family: str) -> transformers.PretrainedConfig:
    """The config of a tower for 16 x 16 pixels in patches of 4, in the family's own shape."""
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 16, "patch_size": 4}
    if family == "clip":
        return transformers.CLIPVisionConfig(**shape, intermediate_size=40, hidden_act="quick_gelu")
    if family == "siglip":
        return transformers.SiglipVisionConfig(**shape, intermediate_size=40, vision_use_head=False)
    if family == "dinov2":
        return transformers.Dinov2Config(**shape, mlp_ratio=2)
    raise ValueError(f"there is no tiny tower of family {family!r}")


def text_config(tied: bool = False, vocabulary: int = 320) -> transformers.LlamaConfig:
    """A decoder of two layers with grouped queries (9 heads over 3) and a width that is no power of two."""
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=36,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=4,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter, norms and gates too, so that no tensor can stand in for another unnoticed.

    A norm's weights are drawn about where they start (Gemma's about zero: one is added to them). About twice the scale,
    attention is so sharp that half a unit in the last place of the weights moves logits by 1e-4.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = round(float(parameter.mean())) if parameter.ndim == 1 and name.endswith("weight") else 0.0
            spread = 0.3 if parameter.ndim < 2 else 2.0 / parameter.shape[-1] ** 0.5
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def write_tower(folder: Path, family: str) -> torch.nn.Module:
    """Write a vision tower with its preprocessor config, and return the model."""
    model = randomise(transformers.AutoModel.from_config(vision_config(family)))
    model.save_pretrained(folder)
    image_processor(family).save_pretrained(folder)
    return model


def write_decoder(folder: Path, tied: bool = False) -> transformers.LlamaForCausalLM:
    """Write a LLaMA with its tokenizer, and return the model."""
    model = randomise(transformers.LlamaForCausalLM(text_config(tied)))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def write_llava(folder: Path, family: str = "clip", tied: bool = False) -> transformers.LlavaForConditionalGeneration:
    """Write a LLaVA with its processor, and return the model."""
    tower = vision_config(family)
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=text_config(tied),
        image_token_index=SPECIAL_TOKENS.index("<image>"),
        image_seq_length=16,
        vision_feature_select_strategy="full" if family == "siglip" else "default",
        tie_word_embeddings=tied,
    )
    model = randomise(transformers.LlavaForConditionalGeneration(config))
    model.save_pretrained(folder)
    processor = transformers.LlavaProcessor(
        image_processor=image_processor(family),
        tokenizer=tiny_tokenizer(),
        patch_size=tower.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if family == "siglip" else 1,
    )
    processor.save_pretrained(folder)
    return model


def write_llava_next(
    folder: Path, grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2))
) -> transformers.LlavaNextForConditionalGeneration:
    """Write a LLaVA-NeXT with tiles of 16 x 16 pixels and its processor, and return the model."""
    pinpoints = [[rows * 16, columns * 16] for rows, columns in grids]
    config = transformers.LlavaNextConfig(
        vision_config=vision_config("clip"),
        text_config=text_config(),
        image_token_index=SPECIAL_TOKENS.index("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    model = randomise(transformers.LlavaNextForConditionalGeneration(config))
    model.save_pretrained(folder)
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=images,
        tokenizer=tiny_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    return model


def write_blip2(folder: Path) -> transformers.Blip2ForConditionalGeneration:
    """Write a BLIP-2 with its processor, which puts five tokens before the text, and return the model."""
    config = transformers.Blip2Config(
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 28,
            "image_size": 16,
            "patch_size": 4,
        },
        qformer_config={"hidden_size": 18, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20},
        text_config=text_config().to_dict(),
        num_query_tokens=5,
        image_token_index=SPECIAL_TOKENS.index("<image>"),
    )
    model = randomise(transformers.Blip2ForConditionalGeneration(config))
    model.save_pretrained(folder)
    images = transformers.BlipImageProcessorPil(size={"height": 16, "width": 16})
    transformers.Blip2Processor(images, tiny_tokenizer(), num_query_tokens=5).save_pretrained(folder)
    return model


def write_instructblip(folder: Path) -> transformers.InstructBlipForConditionalGeneration:
    """Write an InstructBLIP with its processor, which puts five tokens before the text, and return the model."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.InstructBlipConfig(
        vision_config={**shape, "hidden_size": 24, "intermediate_size": 28, "image_size": 16, "patch_size": 4},
        qformer_config={**shape, "hidden_size": 18, "intermediate_size": 20, "vocab_size": len(word_pieces()) + 1},
        text_config=text_config().to_dict(),
        num_query_tokens=5,
        image_token_index=SPECIAL_TOKENS.index("<image>"),
    )
    model = randomise(transformers.InstructBlipForConditionalGeneration(config))
    model.save_pretrained(folder)
    images = transformers.BlipImageProcessorPil(size={"height": 16, "width": 16})
    instructions = transformers.AutoTokenizer.from_pretrained(write_bert(folder / "qformer_tokenizer"))
    processor = transformers.InstructBlipProcessor(images, tiny_tokenizer(), instructions, num_query_tokens=5)
    processor.save_pretrained(folder)
    return model


def write_idefics(folder: Path) -> transformers.IdeficsForVisionText2Text:
    """Write an Idefics with its processor, and return the model."""
    config = transformers.IdeficsConfig(
        vocab_size=316,
        additional_vocab_size=4,
        hidden_size=36,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=9,
        max_position_embeddings=256,
        use_resampler=True,
        perceiver_config={
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 6,
        },
        vision_config={
            "embed_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 28,
            "image_size": 16,
            "patch_size": 4,
        },
        image_token_id=SPECIAL_TOKENS.index("<image>"),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = randomise(transformers.IdeficsForVisionText2Text(config))
    model.save_pretrained(folder)
    images = transformers.IdeficsImageProcessorPil(image_size=16)
    transformers.IdeficsProcessor(images, tiny_tokenizer()).save_pretrained(folder)
    return model


def image_processor(family: str) -> object:
    """The family's usual image processor at 16 x 16 pixels."""
    square = {"height": 16, "width": 16}
    if family == "siglip":
        return transformers.SiglipImageProcessorPil(size=square)
    mean, std = (
        ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]) if family == "clip" else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    return transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=square, image_mean=mean, image_std=std
    )


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 26)) -> Path:
    """Write a PNG of drawn pixels (height, width), and return its path."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
