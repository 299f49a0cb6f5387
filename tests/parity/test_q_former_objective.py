"""BLIP-2's first stage against its definition in LAVIS, restated on transformers' modules with the same weights."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from mllm_jax.interop.families.resamplers import q_former_rules
from mllm_jax.interop.rules import FLAT, LINEAR, Rule, Table
from mllm_jax.interop.weights import load, save
from mllm_jax.models.connectors.q_former import QFormer, QFormerBlock, QFormerTextConfig, causal_mask
from mllm_jax.models.connectors.q_former_heads import PairQFormer
from mllm_jax.models.multimodal import MultimodalConfig
from mllm_jax.models.parameters import abstract_parameters, logical_axes, make_model
from mllm_jax.training.objective import Objective, StageModel
from mllm_jax.training.objectives.pairs import pairs_of
from mllm_jax.training.objectives.q_former import OwnTextConfig, QFormerObjectiveConfig, q_former_objective
from mllm_jax.training.pair_losses import hard_negatives
from tests.support.pairs import LENGTH, WORDS, pair_batch, q_former_model
from tests.support.parity import assert_gradients_close

TEXT = QFormerTextConfig(vocab_size=WORDS, max_positions=9, instruction_tokens=LENGTH)
OWN_TEXT = OwnTextConfig(tokenizer="", vocab_size=WORDS, max_positions=9)
PAIRS = 5
KEY = jax.random.key(7)
HEADS = (
    *(
        rule
        for theirs, ours in (
            ("vision_projection", "image_projection"),
            ("text_projection", "text_projection"),
            ("itm_head", "matching"),
            ("cls.transform.dense", "caption_head/dense"),
        )
        for rule in (
            Rule(f"{theirs}.weight", f"{ours}/kernel", LINEAR),
            Rule(f"{theirs}.bias", f"{ours}/bias"),
        )
    ),
    Rule("cls.transform.LayerNorm.weight", "caption_head/norm/scale"),
    Rule("cls.transform.LayerNorm.bias", "caption_head/norm/bias"),
    Rule("cls.bias", "caption_bias"),
    Rule("temp", "temperature", FLAT),
)


def table(config: MultimodalConfig) -> Table:
    """The Q-Former's parameters and the objective's in one flat tree."""
    return Table((*q_former_rules(config.connector.cross_attention_every), *HEADS))


class Stage1(torch.nn.Module):
    """The modules of LAVIS's first stage."""

    def __init__(self, config: MultimodalConfig, width: int):
        super().__init__()
        ours = config.connector
        q_former = transformers.Blip2QFormerConfig(
            hidden_size=ours.width,
            num_hidden_layers=ours.layers,
            num_attention_heads=ours.heads,
            intermediate_size=ours.feed_forward_width,
            cross_attention_frequency=ours.cross_attention_every,
            encoder_hidden_size=config.encoder.width,
            vocab_size=WORDS,
            max_position_embeddings=TEXT.max_positions,
            use_qformer_text_input=True,
            pad_token_id=None,
        )
        whole = transformers.Blip2Config(
            vision_config={"hidden_size": config.encoder.width, "num_hidden_layers": 0},
            qformer_config=q_former.to_dict(),
            num_query_tokens=ours.queries,
            image_text_hidden_size=width,
        )
        model = transformers.Blip2ForImageTextRetrieval(whole)
        names = "query_tokens", "embeddings", "qformer", "vision_projection", "text_projection", "itm_head"
        for name in names:
            setattr(self, name, getattr(model, name))
        self.cls = BertLMPredictionHead(
            transformers.BertConfig(vocab_size=WORDS, hidden_size=ours.width, hidden_act="gelu", layer_norm_eps=1e-12)
        )
        self.cls.decoder.weight = self.embeddings.word_embeddings.weight
        self.temp = torch.nn.Parameter(torch.ones(1))

    def read(self, queries: bool, text: torch.Tensor | None, features: torch.Tensor | None, mask: Any) -> torch.Tensor:
        count = len(features if text is None else text)
        query_tokens = self.query_tokens.expand(count, -1, -1) if queries else None
        embeddings = self.embeddings(input_ids=text, query_embeds=query_tokens)
        length = query_tokens.shape[1] if queries else 0
        return self.qformer(
            query_embeds=embeddings, query_length=length, attention_mask=mask, encoder_hidden_states=features
        ).last_hidden_state


class Reference(NamedTuple):
    losses: dict[str, torch.Tensor]
    image_to_text: torch.Tensor


def lavis(model: Stage1, features: torch.Tensor, text: torch.Tensor, negatives: Any, smoothing: float) -> Reference:
    """ITC, ITM and ITG; `text` is -1 behind the end, `negatives` are indices of images and of texts."""
    count, queries = len(text), model.query_tokens.shape[1]
    ids, there = text.clamp(min=0), (text >= 0).long()
    query_output = model.read(True, None, features, None)
    image_features = F.normalize(model.vision_projection(query_output), dim=-1)
    text_features = F.normalize(model.text_projection(model.read(False, ids, None, there)[:, 0]), dim=-1)
    to_text = torch.matmul(image_features.unsqueeze(1), text_features.unsqueeze(-1)).squeeze(-1).max(-1).values
    to_image = torch.matmul(text_features[:, None, None], image_features.permute(0, 2, 1)).squeeze(2).max(-1).values
    to_text, to_image, targets = to_text / model.temp, to_image / model.temp, torch.arange(count)
    contrastive = (
        F.cross_entropy(to_text, targets, label_smoothing=smoothing)
        + F.cross_entropy(to_image, targets, label_smoothing=smoothing)
    ) / 2

    wrong_images, wrong_texts = negatives(to_text.detach())
    images = torch.cat([features, features[wrong_images], features])
    open_to = torch.cat([torch.ones(3 * count, queries).long(), there.repeat(3, 1)], dim=1)
    open_to[2 * count :, queries:] = there[wrong_texts]
    matched = model.read(True, torch.cat([ids, ids, ids[wrong_texts]]), images, open_to)[:, :queries]
    logits = model.itm_head(matched).mean(dim=1)
    labels = torch.cat([torch.ones(count), torch.zeros(2 * count)]).long()

    begun = ids.clone()
    begun[:, 0] = WORDS - 1
    seen = torch.tril(torch.ones(queries + ids.shape[1], queries + ids.shape[1]))
    seen[:queries, :queries] = 1
    keys = torch.cat([torch.ones(count, queries), there], dim=1)
    mask = (1 - seen[None, None] * keys[:, None, None]) * torch.finfo(torch.float32).min
    written = model.cls(model.read(True, begun, features, mask)[:, queries:])
    caption_labels = torch.where(text < 0, -100, begun)[:, 1:]
    captioning = F.cross_entropy(written[:, :-1].flatten(0, 1), caption_labels.flatten(), label_smoothing=smoothing)
    losses = {
        "contrastive_loss": contrastive,
        "matching_loss": F.cross_entropy(logits, labels),
        "captioning_loss": captioning,
        "matching_accuracy": (logits.argmax(1) == labels).float().mean(),
        "image_to_text_recall": (to_text.argmax(1) == targets).float().mean(),
        "text_to_image_recall": (to_image.argmax(1) == targets).float().mean(),
        "temperature": model.temp,
    }
    return Reference(losses, to_text)


def drawn(tree: Any, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = random.standard_normal(leaf.shape)
        scale = 1.0 if path.endswith("embedding") else 0.2
        return jnp.asarray(path.endswith("scale") + scale * values, jnp.float32)

    return unflatten_dict({path: draw(path, leaf) for path, leaf in flatten_dict(tree, sep="/").items()}, sep="/")


def staged(config: MultimodalConfig, objective: QFormerObjectiveConfig) -> tuple[Objective, Any]:
    """The objective, and parameters of the model and of its own."""
    model = make_model(config)
    stage = StageModel(model, {}, abstract_parameters(config), logical_axes(config), ())
    made = q_former_objective(stage, objective)
    shapes = unflatten_dict({f"objective/{path}": leaf for path, leaf in made.own.shapes.items()}, sep="/")
    parameters = drawn({**stage.parameters, **shapes})
    parameters["objective"]["temperature"] = jnp.float32(0.3)
    return made, parameters


def flat(parameters: Any) -> Any:
    """What the table has rules for: the Q-Former and what the objective owns."""
    own = flatten_dict(parameters["objective"], sep="/")
    named = {path.removeprefix("text/"): leaf for path, leaf in own.items()}
    connector = flatten_dict(parameters["connector"], sep="/")
    whole = named | {path: leaf for path, leaf in connector.items() if not path.startswith("projection/")}
    return unflatten_dict(whole, sep="/")


def theirs(name: str) -> str:
    return name.replace("qformer.embeddings.", "embeddings.")


def reference_model(config: MultimodalConfig, width: int, parameters: Any, folder: Path) -> Stage1:
    folder.mkdir()
    save(folder, table(config), flat(parameters))
    stored = {theirs(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    model = Stage1(config, width)
    left = model.load_state_dict(stored, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"cls.decoder.weight", "cls.decoder.bias"}
    model.cls.decoder.bias = model.cls.bias
    return model.eval()


@pytest.mark.parametrize(("own", "blocks"), [(True, 2), (False, 1)])
def test_losses_and_gradients(own: bool, blocks: int, tmp_path: Path) -> None:
    """With one slot of six left empty, of which nothing may depend."""
    config = q_former_model(None if own else TEXT, scan=blocks > 1, blocks=blocks)
    objective_config = QFormerObjectiveConfig(
        kind="q_former", text=OWN_TEXT if own else None, text_tokens=LENGTH, width=10, contrastive_weight=2.0
    )
    objective, parameters = staged(config, objective_config)
    batch = pair_batch(3, rows=2, slots=3, pairs=PAIRS)
    learning = {part: parameters[part] for part in ("connector", "objective")}

    def mean(learning: Any) -> tuple[jax.Array, Any]:
        losses = objective.losses({**parameters, **learning}, batch, KEY)
        return losses.total / objective.weight(batch), losses.parts

    (loss, means), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(learning)
    assert float(objective.weight(batch)) == PAIRS

    model = reference_model(config, 10, parameters, tmp_path / "weights")
    pairs = pairs_of(batch, LENGTH)
    encoder = make_model(config).apply(
        {"params": parameters}, pairs.images, method=lambda model, images: model.encoder(images)
    )
    features, text = (torch.tensor(np.asarray(array)[:PAIRS]) for array in (encoder, pairs.text))
    text = text.long()

    def negatives(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        square = np.zeros((6, 6), np.float32)
        square[:PAIRS, :PAIRS] = logits.numpy()
        found = hard_negatives(KEY, jnp.asarray(square), pairs.valid)
        return tuple(torch.tensor(np.asarray(each)[:PAIRS]) for each in (found.images, found.texts))

    expected = lavis(model, features, text, negatives, smoothing=0.1)
    for name, value in expected.losses.items():
        assert float(means[name]) / PAIRS == pytest.approx(value.item(), abs=1e-5), name
    parts = expected.losses
    total = 2 * parts["contrastive_loss"] + parts["matching_loss"] + parts["captioning_loss"]
    assert float(loss) == pytest.approx(total.item(), abs=1e-4)

    total.backward()
    place = tmp_path / "gradients"
    place.mkdir()
    named = dict(model.named_parameters())
    names = set(load_file(tmp_path / "weights" / "model.safetensors"))
    save_file({name: named[theirs(name)].grad.contiguous() for name in names}, place / "model.safetensors")
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), flat(parameters))
    assert_gradients_close(flat(gradients), load(place, table(config), abstract).parameters)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradients["connector"]["projection"]))


def test_captions_over_fixed_states_of_the_queries_are_those_of_one_pass() -> None:
    """What a cache holds of the queries is what the joint pass makes of them, layer by layer, whatever the text."""
    config = q_former_model(TEXT, scan=False).connector
    module = PairQFormer(config, 10)
    random = np.random.default_rng(0)
    features = jnp.asarray(random.standard_normal((3, 5, 16)), jnp.float32)
    text = jnp.asarray(np.where(np.arange(LENGTH) < [[2], [6], [4]], random.integers(0, WORDS, (3, LENGTH)), -1))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), features, text, method="initialise")["params"])
    parameters = drawn(jax.tree.map(lambda box: box.value, shapes, is_leaf=lambda node: hasattr(node, "names")))
    _, joint = module.apply({"params": parameters}, features, text, WORDS - 1, method="compared_and_captioned")

    own = parameters["connector"]
    silent = config.model_copy(update={"text": None})
    _, left = QFormer(silent).apply({"params": own}, features, capture_intermediates=True)
    caught = left["intermediates"]
    states = [caught["query_norm"]["__call__"][0]] + [caught[f"blocks_{block}"]["__call__"][0][0] for block in range(2)]
    begun = text.at[:, 0].set(WORDS - 1)
    bound = QFormer(config).bind({"params": own})
    written = bound.query_norm(bound._embedded(begun))
    mask = causal_mask(config.queries, begun)
    for block in range(2):
        layers = own[f"blocks_{block}"]
        both = jnp.concatenate([states[block], written], axis=1)
        out, _ = QFormerBlock(config).apply({"params": layers}, both, jnp.int32(block), features, mask)
        np.testing.assert_allclose(out[:, : config.queries], states[block + 1], rtol=0, atol=1e-5)
        written = out[:, config.queries :]
    captioned = nn.apply(_logits_of, module)({"params": parameters}, written)
    there = np.asarray(text) >= 0
    np.testing.assert_allclose(np.asarray(captioned)[there], np.asarray(joint)[there], rtol=0, atol=1e-5)


def _logits_of(module: PairQFormer, written: jax.Array) -> jax.Array:
    return module.connector.text_logits(module.caption_head(written)) + module.caption_bias
