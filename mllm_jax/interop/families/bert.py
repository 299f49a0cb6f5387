"""BERT (https://arxiv.org/abs/1810.04805) as which a Q-Former begins: its blocks, its words and its caption head."""

from typing import Any

from mllm_jax.interop.families.family import FamilyError, HuggingFaceConfig
from mllm_jax.interop.families.vision import our_activation
from mllm_jax.interop.rules import FLAT, LINEAR, LINEAR_FROM_HEADS, Rule, Table
from mllm_jax.models.connectors.q_former import QFormerConfig

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "position_embedding_type": "absolute",
}
"""What transformers takes for a key that a config.json leaves out."""


def bert_table(every: int) -> Table:
    """The table of what BERT has of a Q-Former with text, of which one layer in `every` reads the image, and of its
    heads. Queries have a feed-forward of their own, which begins as the text's.
    """
    rules = [
        Rule("bert.embeddings.word_embeddings.weight", "token_embedding/embedding"),
        Rule("bert.embeddings.position_embeddings.weight", "position_embedding/embedding"),
        *_with_bias("bert.embeddings.LayerNorm", "query_norm"),
        *_with_bias("cls.predictions.transform.dense", "caption_head/dense"),
        *_with_bias("cls.predictions.transform.LayerNorm", "caption_head/norm"),
        Rule("cls.predictions.bias", "caption_bias"),
    ]
    for place in range(every):
        theirs, ours = "bert.encoder.layer.{layer}.", f"blocks/layer_{place}/"
        for name in ("query", "key", "value"):
            rules += _with_bias(f"{theirs}attention.self.{name}", f"{ours}attention/{name}", place, every)
        rules += _with_bias(f"{theirs}attention.output.dense", f"{ours}attention/output", place, every)
        rules += _with_bias(f"{theirs}attention.output.LayerNorm", f"{ours}attention_norm", place, every)
        for side in ("feed_forward", "text_feed_forward"):
            rules += _with_bias(f"{theirs}intermediate.dense", f"{ours}{side}/up", place, every)
            rules += _with_bias(f"{theirs}output.dense", f"{ours}{side}/down", place, every)
            rules += _with_bias(f"{theirs}output.LayerNorm", f"{ours}{side}_norm", place, every)
    return Table(
        tuple(rules),
        renames=(
            (r"(?=(embeddings|encoder|pooler)\.)", "bert."),
            (r"(.*)\.gamma$", r"\1.weight"),
            (r"(.*)\.beta$", r"\1.bias"),
        ),
        ignored=(
            r"bert\.embeddings\.(token_type_embeddings\.weight|position_ids)",
            r"bert\.pooler\..*",
            r"cls\.seq_relationship\..*",
            r"cls\.predictions\.decoder\.(weight|bias)",
        ),
    )


def _with_bias(theirs: str, ours: str, first: int = 0, every: int = 1) -> list[Rule]:
    kernel, layout = "kernel", LINEAR
    if theirs.endswith("LayerNorm"):
        kernel, layout = "scale", FLAT
    elif ours.endswith("attention/output"):
        layout = LINEAR_FROM_HEADS
    return [
        Rule(f"{theirs}.weight", f"{ours}/{kernel}", layout, first, every),
        Rule(f"{theirs}.bias", f"{ours}/bias", FLAT, first, every),
    ]


def check_bert(config: HuggingFaceConfig, wanted: QFormerConfig, key: str) -> None:
    """Checks that a BERT is of the Q-Former's shape; `key` names its folder.

    Raises:
        FamilyError: naming every value that differs.
    """
    if config.get("model_type") != "bert":
        raise FamilyError(f"{key}: model_type is {config.get('model_type')!r} in config.json, but a Q-Former is a BERT")
    found = _DEFAULTS | dict(config)
    pairs = {
        "hidden_size": wanted.width,
        "num_hidden_layers": wanted.layers,
        "num_attention_heads": wanted.heads,
        "intermediate_size": wanted.feed_forward_width,
        "layer_norm_eps": wanted.norm_epsilon,
        "position_embedding_type": "absolute",
    }
    if wanted.text is not None:
        pairs["max_position_embeddings"] = wanted.text.max_positions
    wrong = [f"{name} {found[name]}, expected {value}" for name, value in pairs.items() if found[name] != value]
    if our_activation(found["hidden_act"]) != wanted.activation:
        wrong.append(f"hidden_act {found['hidden_act']}, expected {wanted.activation}")
    if wanted.text is not None and found["vocab_size"] > wanted.text.vocab_size:
        wrong.append(f"vocab_size {found['vocab_size']}, expected at most {wanted.text.vocab_size}")
    if wrong:
        raise FamilyError(f"{key}: this BERT is not of the Q-Former's shape: found {'; '.join(wrong)}")
