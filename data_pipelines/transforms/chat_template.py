"""Records rendered by a chat template: token ids and loss mask are built together, span by span.

Contents are stripped of surrounding white space. The parts of a turn are joined by the template's separator: a newline
between an image and a question gives `<image>\\nWhat is this?` as LLaVA writes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.record import ImagePart, Part, Record, TextPart, Turn
from data_pipelines.rendered import ImageLayout, LayoutOf, RenderedRecord, RenderError
from data_pipelines.tokenizer import TokenBoundaryError, Tokenizer
from data_pipelines.transforms.templates import TEMPLATES, ChatTemplate, Piece, Special

__all__ = ["TEMPLATES", "ChatTemplate", "render", "render_prompt", "required_tokens", "stop_ids", "written"]


@dataclass(frozen=True, slots=True)
class _Span:
    """One piece of a sequence: a text, a special token or an image."""

    value: str | Special | ImagePart
    supervised: bool = False
    literal: bool = False
    """Whether the text is the template's or the system's, which gets a space where it follows the start token."""
    opens_answer: bool = False
    """Whether an assistant's content begins here, so that a prompt may end before it."""
    in_answer: bool = False
    """Whether it belongs to an assistant's content or its end of turn."""
    of_image: bool = False
    """Whether it is an image or stands around one, so that it is never learned."""
    learn: bool = True
    """Whether it is learned in a turn that is; no image ever is."""


def render(
    record: Record, template: ChatTemplate, tokenizer: Tokenizer, image_tokens: int | LayoutOf
) -> RenderedRecord:
    """Builds a record's token ids and what is supervised: contents of learned assistant turns and their end of turn.

    Args:
        image_tokens: how many tokens an image takes (`mllm_jax.models.multimodal.image_tokens`), or what lays images
            out for a model that takes as many as an image's size asks for.

    Raises:
        ValueError: the tokenizer lacks a special token of the template.
        RenderError: this record has a turn out of place, or the tokenizer joins an answer's beginning with the text
            before it into one token.
        ImageError: an image that cannot be laid out.
    """
    return _assemble(record.key, list(_spans(record.turns, template)), tokenizer, image_tokens)


def render_prompt(
    record: Record, template: ChatTemplate, tokenizer: Tokenizer, image_tokens: int | LayoutOf
) -> RenderedRecord:
    """Builds the ids up to where the assistant begins: an exact prefix of what `render` makes of the answered record.

    If the record ends with an assistant turn, that turn is the one to be generated. Arguments and errors as `render`.
    """
    turns = record.turns[:-1] if record.turns and record.turns[-1].role == "assistant" else record.turns
    spans = [*_spans(turns, template), *(_Span(piece, literal=True) for piece in template.assistant.before)]
    return _assemble(record.key, spans, tokenizer, image_tokens)


def stop_ids(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an assistant's turn: its end of turn, as far as it is one token, and the end token."""
    found = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for piece in template.assistant.end[:1]:
        ids = tokenizer.encode(piece, start=False) if isinstance(piece, str) else [_special_id(piece, tokenizer)]
        found.extend(index for index in ids if len(ids) == 1)
    return tuple(sorted(set(found)))


def required_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The special tokens that rendering with the template asks of the tokenizer."""
    formats = [template.user, *([template.system] if template.system else [])]
    pieces = [*template.start]
    for answer in template.answers:
        pieces += [*answer.before, *answer.chunk_end, *answer.end, *answer.after]
    pieces += [*template.image.before, *template.image.after]
    pieces += [piece for turn in formats for piece in (*turn.before, *turn.after_images, *turn.after)]
    names = [_name(piece, tokenizer) for piece in pieces if isinstance(piece, Special)]
    return tuple(dict.fromkeys([tokenizer.image_token, *(name for name in names if name is not None)]))


def written(record: Record, template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The record as a string in which special tokens are spelled out and an image is one image token."""
    text = ""
    for span, starts in _with_starts(list(_spans(record.turns, template)), tokenizer):
        if isinstance(span.value, ImagePart):
            text += tokenizer.image_token
        elif isinstance(span.value, Special):
            text += _name(span.value, tokenizer) or ""
        else:
            # The exported tokenizer puts its space only at the very beginning; after a start token it is spelled out.
            text += (" " if starts and text and tokenizer.adds_prefix_space else "") + span.value
    return text


def _spans(turns: Sequence[Turn], template: ChatTemplate) -> Iterator[_Span]:
    yield from (_Span(piece, literal=True) for piece in template.start)
    system = template.default_system
    if turns and turns[0].role == "system":
        system, turns = _text(turns[0]), turns[1:]
    opening: list[_Span] = []
    if template.system is not None and system and system.strip():
        content = _Span(template.system.lead + system.strip(), literal=True)
        opening = [*_literals(template.system.before), content, *_literals(template.system.after)]
    if not template.system_in_user:
        yield from opening
        opening = []
    for turn in turns:
        if turn.role == "system":
            raise RenderError("turn_order", "a system turn may only stand first in a conversation")
        if turn.role == "assistant":
            yield from _answer(turn, template)
            continue
        yield from _literals(template.user.before)
        yield from opening
        yield from _user(turn, template)
        yield from _literals(template.user.after)
        opening = []


def _user(turn: Turn, template: ChatTemplate) -> Iterator[_Span]:
    contents = list(_contents(turn.parts, template, images_only=template.user.images_only))
    if contents and not contents[0].of_image and template.user.lead:
        yield _Span(template.user.lead)
    images_end = max((index for index, span in enumerate(contents, start=1) if span.of_image), default=0)
    yield from contents[:images_end]
    yield from (_Span(piece) for piece in template.user.after_images)
    yield from contents[images_end:]


def _answer(turn: Turn, template: ChatTemplate) -> Iterator[_Span]:
    shows = any(isinstance(part, ImagePart) for part in turn.parts)
    answer = (shows and template.document) or template.assistant
    yield from _literals(answer.before)
    contents = list(_contents(turn.parts, template, images_only=False, chunk_end=answer.chunk_end))
    texts = [_Span(answer.lead), *contents, _Span(answer.tail)] if contents else []
    for index, span in enumerate(span for span in (*texts, *(_Span(piece) for piece in answer.end)) if span.value):
        learned = turn.learn and span.learn and not span.of_image
        yield replace(span, supervised=learned, opens_answer=index == 0, in_answer=True)
    yield from _literals(answer.after)


def _contents(
    parts: Sequence[Part], template: ChatTemplate, *, images_only: bool, chunk_end: Sequence[Piece] = ()
) -> Iterator[_Span]:
    kept = [part for part in parts if isinstance(part, ImagePart) or (not images_only and part.text.strip())]
    around, separator = template.image, "" if images_only else template.separator
    shown, after_image, learn = False, False, True
    for index, part in enumerate(kept):
        if index and separator:
            yield _Span(separator, learn=learn)
        if isinstance(part, ImagePart):
            yield from (_Span(piece) for piece in chunk_end if shown)
            shown = True
            before = () if after_image and around.joined and not separator else around.before
            yield from (_Span(piece, of_image=True) for piece in (*before, part, *around.after))
            after_image = learn = True
        else:
            yield _Span((around.lead if after_image else "") + part.text.strip(), learn=part.learn)
            after_image, learn = False, part.learn


def _text(turn: Turn) -> str:
    if any(isinstance(part, ImagePart) for part in turn.parts):
        raise RenderError("turn_order", "a system turn holds an image; only users and assistants may show one")
    return "\n".join(filter(None, (part.text.strip() for part in turn.parts if isinstance(part, TextPart))))


def _literals(pieces: Sequence[Piece]) -> Iterator[_Span]:
    return (_Span(piece, literal=True) for piece in pieces)


def _with_starts(spans: Sequence[_Span], tokenizer: Tokenizer) -> Iterator[tuple[_Span, bool]]:
    """Each span, and whether it begins a sequence: nothing before it, or template text right after the start token."""
    previous: _Span | None = None
    for span in spans:
        if span.value == "" or (isinstance(span.value, Special) and _name(span.value, tokenizer) is None):
            continue
        after_bos = previous is not None and isinstance(previous.value, Special) and previous.value.role == "bos"
        yield span, previous is None or (after_bos and span.literal)
        previous = span


def _assemble(key: str, spans: Sequence[_Span], tokenizer: Tokenizer, image_tokens: int | LayoutOf) -> RenderedRecord:
    tokens: list[int] = []
    supervised: list[bool] = []
    in_answer: list[bool] = []
    image_starts: list[int] = []
    layouts: list[ImageLayout] = []
    run: list[_Span] = []
    run_starts = False
    swallows = False

    def add(ids: Sequence[int], span: _Span) -> None:
        tokens.extend(ids)
        supervised.extend([span.supervised] * len(ids))
        in_answer.extend([span.in_answer] * len(ids))

    def finish_run() -> None:
        texts = _without_leading_space(_joined(run)) if swallows else _joined(run)
        try:
            encoded = tokenizer.encode_spans([str(span.value) for span in texts], start=run_starts)
        except TokenBoundaryError as error:
            raise RenderError("token_boundary", str(error)) from error
        for span, ids in zip(texts, encoded, strict=True):
            add(ids, span)
        run.clear()

    for span, starts in _with_starts(spans, tokenizer):
        if isinstance(span.value, str):
            run_starts = run_starts if run else starts
            run.append(span)
            continue
        finish_run()
        if isinstance(span.value, ImagePart):
            image_starts.append(len(tokens))
            if callable(image_tokens):
                layouts.append(image_tokens(span.value))
                add(layouts[-1].tokens(tokenizer.image_id).tolist(), span)
            else:
                add([tokenizer.image_id] * image_tokens, span)
            swallows = tokenizer.swallows_space_behind(tokenizer.image_token)
        else:
            add([_special_id(span.value, tokenizer)], span)
            swallows = tokenizer.swallows_space_behind(_name(span.value, tokenizer) or "")
    finish_run()
    images = tuple(span.value for span in spans if isinstance(span.value, ImagePart))
    arrays = np.array(tokens, np.int32), np.array(supervised, bool), np.array(in_answer, bool)
    return RenderedRecord(key, *arrays, tuple(image_starts), images, tuple(layouts))


def _joined(run: Sequence[_Span]) -> list[_Span]:
    """Neighbouring texts, joined as far as they are marked alike."""
    texts: list[_Span] = []
    for span in run:
        alike = texts and (texts[-1].supervised, texts[-1].in_answer) == (span.supervised, span.in_answer)
        if alike and not span.opens_answer:
            texts[-1] = replace(texts[-1], value=f"{texts[-1].value}{span.value}")
        else:
            texts.append(span)
    return texts


def _without_leading_space(texts: Sequence[_Span]) -> list[_Span]:
    """The texts behind a special token that swallows the white space there."""
    stripped = []
    opened = False
    for span in texts:
        stripped.append(span if opened else replace(span, value=str(span.value).lstrip()))
        opened = opened or bool(stripped[-1].value)
    return stripped


def _name(special: Special, tokenizer: Tokenizer) -> str | None:
    """The name of a special token, or None for a start token that the tokenizer's sequences do without."""
    if special.role == "bos":
        return tokenizer.bos_token if tokenizer.starts_with_bos else None
    if special.role == "eos":
        if tokenizer.eos_token is None:
            raise ValueError(
                "the chat template ends turns with the tokenizer's end token (eos_token), but it has none."
            )
        return tokenizer.eos_token
    return special.token


def _special_id(special: Special, tokenizer: Tokenizer) -> int:
    name = _name(special, tokenizer)
    assert name is not None
    return tokenizer.special_id(name)
