"""Preference pairs in JSON or JSONL: a conversation whose last answer comes twice, a better and a worse one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from data_pipelines.quota import Skip
from data_pipelines.record import ImagePart, Record, ReferenceScores
from data_pipelines.sources.conversation import shown, turns_of
from data_pipelines.sources.json_files import JsonFiles, JsonFilesConfig
from data_pipelines.sources.messages import messages_of, with_marks
from data_pipelines.storage import Storage

PROMPTS = ("conversations", "prompt", "question")
"""Keys under which the conversation before the answers stands, the first that is there."""

REFERENCE_CHOSEN, REFERENCE_REJECTED, REFERENCE_TOKENS = "reference_chosen", "reference_rejected", "reference_tokens"
"""Keys of what a reference model thinks of the answers, as in `ReferenceScores`."""


class PreferenceJsonConfig(JsonFilesConfig):
    """A JSON array or JSONL file of preference pairs; images in a folder or in tars.

    A pair is `{image, conversations: [{from, value}], chosen, rejected}`, or has `prompt` or `question` in the place of
    `conversations`: a text, or messages `{role, content}` whose contents are texts or lists of parts. Answers are texts
    or messages too; without a prompt they are whole conversations that differ in their last message alone. Images stand
    where `<image>` or an image part marks them, or before the first question where nothing does.
    """

    kind: Literal["preference_json"] = "preference_json"

    def open(self, storage: Storage) -> "PreferenceJsonSource":
        """Indexes the files and the image tars; see `JsonFiles`."""
        return PreferenceJsonSource(self, storage)


class PreferenceJsonSource(JsonFiles):
    """Records of preference pairs; the better answer is their last turn and the only one that is learned."""

    def record(self, value: dict[str, Any], key: str) -> Record | Skip:
        images = self.images(value.get("images") if value.get("image") is None else value["image"], key)
        return images if isinstance(images, Skip) else pair_of(value, images, key)


def pair_of(value: dict[str, Any], images: Sequence[ImagePart], key: str) -> Record | Skip:
    """Returns the pair that a JSON object says, or why it is none."""
    chosen, rejected = (messages_of(value.get(name), "assistant") for name in ("chosen", "rejected"))
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or not str(answer[-1]["value"] or "").strip():
            return Skip(f"no_{name}", key, f"{name} is {shown(value.get(name))}")
    if chosen[:-1] != rejected[:-1]:
        return Skip("prompts_differ", key, "chosen and rejected answer different conversations")
    if str(chosen[-1]["value"]).strip() == str(rejected[-1]["value"]).strip():
        return Skip("equal_answers", key, f"chosen and rejected are both {shown(chosen[-1]['value'])}")
    named = next((value[name] for name in PROMPTS if value.get(name)), None)
    asked = with_marks(chosen[:-1] or messages_of(named, "user"), len(images))
    if not asked:
        return Skip("no_prompt", key, f"neither {', '.join(PROMPTS)} nor conversations as answers")
    better, worse = (turns_of([*asked, answer[-1]], images, key) for answer in (chosen, rejected))
    if isinstance(better, Skip) or isinstance(worse, Skip):
        return better if isinstance(better, Skip) else worse  # type: ignore[return-value]
    if better[-1].role != "assistant" or worse[-1].role != "assistant":
        return Skip("turn_order", key, "an answer is not of an assistant")
    reference = _reference(value, key)
    if isinstance(reference, Skip):
        return reference
    before = tuple(replace(turn, learn=False) for turn in better[:-1])
    return Record(key, (*before, better[-1]), worse[-1], reference)


def _reference(value: dict[str, Any], key: str) -> ReferenceScores | Skip | None:
    found = [value.get(name) for name in (REFERENCE_CHOSEN, REFERENCE_REJECTED, REFERENCE_TOKENS)]
    if found == [None] * 3:
        return None
    chosen, rejected, tokens = found
    counted = isinstance(tokens, list) and len(tokens) == 2 and all(isinstance(count, int) for count in tokens)
    if not counted or not all(isinstance(each, int | float) and math.isfinite(each) for each in (chosen, rejected)):
        return Skip("bad_reference", key, f"what a reference model said is {shown(found)}")
    return ReferenceScores(float(chosen), float(rejected), (tokens[0], tokens[1]))  # type: ignore[arg-type,index]
