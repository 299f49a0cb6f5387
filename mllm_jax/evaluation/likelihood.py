"""How probable a model finds the reference answers: their negative log-likelihood, token by token."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from data_pipelines.batch import Batch
from mllm_jax.generation.answering import Answerer
from mllm_jax.generation.decode import LanguageModel, applied, decoder_of, embed_prompts, image_shape, instructions_of
from mllm_jax.generation.prompts import Prompt, bucket, pad_prompts
from mllm_jax.models.parameters import Parameters


def losses(answerer: Answerer, answered: Sequence[tuple[Prompt, np.ndarray]]) -> list[float]:
    """Return the negative log-likelihood, in nats, of what is supervised of each conversation.

    Args:
        answerer: the model; it reads `decoding.rows` conversations at a time.
        answered: whole conversations, with bool[n] that says which of their tokens are supervised.
    """
    order = sorted(range(len(answered)), key=lambda index: len(answered[index][0].tokens))
    found = np.zeros(len(answered))
    for start in range(0, len(order), answerer.decoding.rows):
        chosen = order[start : start + answerer.decoding.rows]
        prompts = [answered[index][0] for index in chosen]
        sizes = image_shape(answerer.model)
        batch, _ = pad_prompts(prompts, *sizes, answerer.decoding.rows, instructions_of(answerer.model))
        supervised = np.zeros(batch.tokens.shape, bool)
        for row, index in enumerate(chosen):
            supervised[row, : len(prompts[row].tokens)] = answered[index][1]
        most = bucket(max(int(supervised.sum(axis=1).max()), 1))
        rows = _row_losses(answerer.model, answerer.parameters, batch, supervised, most)
        found[chosen] = np.asarray(rows)[: len(chosen)]
    return found.tolist()


@partial(jax.jit, static_argnames=("model", "most"))
def _row_losses(
    model: LanguageModel, parameters: Parameters, batch: Batch, supervised: Bool[Array, "B T"], most: int
) -> Float[Array, " B"]:
    """The loss of every row, of which none has more than `most` supervised tokens; other places make no logits."""
    decoder, decoder_parameters = decoder_of(model, parameters)
    apply = applied(decoder, decoder_parameters)
    embeddings, positions, media = embed_prompts(model, parameters, batch)
    hidden, _ = apply(embeddings, batch.segment_ids, positions, media=media, answer_mask=batch.answer_mask)
    chosen = jnp.argsort(~supervised[:, 1:], axis=1, stable=True)[:, :most]

    def at_chosen(array: Array) -> Array:
        return jnp.take_along_axis(array, chosen.reshape(*chosen.shape, *(1,) * (array.ndim - 2)), axis=1)

    log_probabilities = jax.nn.log_softmax(apply(at_chosen(hidden[:, :-1]), method="logits"), axis=-1)
    of_targets = jnp.take_along_axis(log_probabilities, at_chosen(batch.tokens[:, 1:])[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(at_chosen(supervised[:, 1:]), of_targets, 0.0), axis=-1)
