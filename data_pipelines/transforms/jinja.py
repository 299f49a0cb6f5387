"""A chat template written in the Jinja dialect of `transformers`, to be exported with the tokenizer.

`apply_chat_template` with it gives the token ids and, through its generation marks, the loss mask of `render`. Message
contents may be strings, in which `<image>` marks an image, or lists of `{"type": "image"}` and `{"type": "text"}`.
"""

from collections.abc import Sequence

from data_pipelines.tokenizer import IMAGE_TOKEN, Tokenizer
from data_pipelines.transforms.templates import AnswerFormat, ChatTemplate, ImageFormat, Piece, Special, TurnFormat

# A list's parts are stripped and joined, as `render` does; a string only loses its surrounding white space.
CONTENT_MACRO = (
    "{% macro content(message) %}{% if message['content'] is string %}"
    "{{ message['content'].strip().replace(mark, image) }}{% else %}"
    "{% set found = namespace(any=false) %}{% for part in message['content'] %}"
    "{% set text = image if part['type'] == 'image' else (part['text'] or '').strip() %}"
    "{% if text %}{{ separator if found.any else '' }}{{ text }}{% set found.any = true %}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
)

LED_TEXT = (
    ("namespace(any=false)", "namespace(any=false, image=false)"),
    ("{{ text }}", "{{ lead if found.image and part['type'] != 'image' else '' }}{{ text }}"),
    ("{% set found.any = true %}", "{% set found.any = true %}{% set found.image = part['type'] == 'image' %}"),
)
"""What `CONTENT_MACRO` says, and what in its place where text after an image has a lead."""

IMAGES_MACRO = (
    "{% macro images(message) %}{% if message['content'] is string %}{{ image * message['content'].count(mark) }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'image' %}{{ image }}{% endfor %}{% endif %}"
    "{% endmacro %}"
)


def jinja(template: ChatTemplate, tokenizer: Tokenizer, image_tokens: int = 1) -> str:
    """The template's Jinja text for `chat_template.jinja`.

    Args:
        template: what to write.
        tokenizer: whose texts and special tokens are to come out of it.
        image_tokens: how often it writes the image token for an image; processors that repeat the token want it once.

    Raises:
        ValueError: the tokenizer lacks an end token that the template needs.
    """
    write = _Writer(tokenizer)
    system = _system(template, write)
    in_user = "{% if loop.first %}" + system + "{% endif %}" if template.system_in_user else ""
    answer = template.assistant
    before, moved = _moved_space(answer.before, tokenizer)
    return "".join(
        [
            "{% set mark = "
            + _literal(IMAGE_TOKEN)
            + " %}{% set image = "
            + _image(template, tokenizer, image_tokens)
            + " %}",
            "{% set separator = " + _literal(template.separator) + " %}",
            _macros(template.image),
            "{% set turns = messages %}{% set system = " + _literal((template.default_system or "").strip()) + " %}",
            "{% if messages and messages[0]['role'] == 'system' %}{% set system = content(messages[0]) %}"
            "{% set turns = messages[1:] %}{% endif %}",
            write(template.start, text_follows=_opens_with_text(template)),
            "" if template.system_in_user else system,
            "{% for message in turns %}{% if message['role'] == 'user' %}",
            write(template.user.before) + in_user + _user_content(template.user, write) + write(template.user.after),
            "{% elif message['role'] == 'assistant' %}",
            write(before) + "{% set text = content(message) %}" + _chunked(template),
            "{% generation %}{% if text %}" + write((moved, answer.lead)) + "{{ text }}" + write((answer.tail,)),
            "{% endif %}" + write(answer.end) + "{% endgeneration %}" + write(answer.after),
            "{% else %}{{ raise_exception('A system turn may only stand first.') }}{% endif %}{% endfor %}",
            "{% if add_generation_prompt %}" + write(answer.before) + "{% endif %}",
        ]
    )


def _chunked(template: ChatTemplate) -> str:
    """What puts the end of a chunk before every image of an answer's text but the first."""
    if template.document is None or not template.document.chunk_end:
        return ""
    end = _literal("".join(map(_spelled, template.document.chunk_end)))
    joined = "pieces[0] + image + (pieces[1:] | join(" + end + " + image))"
    return "{% set pieces = text.split(image) %}{% if pieces | length > 1 %}{% set text = " + joined + " %}{% endif %}"


def _macros(around: ImageFormat) -> str:
    """The macros of contents, with the text that they put after an image."""
    content, images, lead = CONTENT_MACRO, IMAGES_MACRO, ""
    if around.lead:
        lead = "{% set lead = " + _literal(around.lead) + " %}"
        for text, instead in LED_TEXT:
            content = content.replace(text, instead)
    if around.joined and around.before:
        before, after = (_literal("".join(map(_spelled, pieces))) for pieces in (around.before, around.after))
        start, end = "{% filter replace(" + f"{after} + {before}, {after}" + ") %}", "{% endfilter %}"
        content, images = (
            macro.replace("(message) %}", "(message) %}" + start).replace("{% endmacro %}", end + "{% endmacro %}")
            for macro in (content, images)
        )
    return lead + content + images


def question_jinja(template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The Jinja text for a processor that itself writes all but the content of a conversation's only question.

    It raises for conversations of more turns, which such a processor cannot write.
    """
    bare = template.model_copy(update={"user": TurnFormat(), "assistant": AnswerFormat()})
    roles = "messages | rejectattr('role', 'equalto', 'system') | map(attribute='role') | list"
    error = "{{ raise_exception('This model is asked one question at a time: expected one user turn.') }}"
    return "{% if " + roles + " != ['user'] %}" + error + "{% endif %}" + jinja(bare, tokenizer)


class _Writer:
    """Writes pieces as Jinja output expressions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, pieces: Sequence[Piece], *, text_follows: bool = False) -> str:
        """`text_follows`: whether a start token at the end is followed by text of the template."""
        following = [*(isinstance(piece, str) for piece in pieces[1:]), text_follows]
        return "".join(self._piece(piece, text) for piece, text in zip(pieces, following, strict=False))

    def _piece(self, piece: Piece, text_follows: bool) -> str:
        if isinstance(piece, str):
            return "{{ " + _literal(piece) + " }}" if piece else ""
        if piece.role == "eos":
            return "{{ eos_token }}"
        if piece.role is None:
            return "{{ " + _literal(piece.token or "") + " }}"
        if not self._tokenizer.starts_with_bos:
            return ""
        # transformers puts the space of SentencePiece models only before the very first character of a string.
        return "{{ bos_token }}" + ("{{ ' ' }}" if text_follows and self._tokenizer.adds_prefix_space else "")


def _image(template: ChatTemplate, tokenizer: Tokenizer, image_tokens: int) -> str:
    """The Jinja expression of one image and what stands around it."""
    before, after = (
        [_literal(_spelled(piece)) for piece in pieces] for pieces in (template.image.before, template.image.after)
    )
    token = "mark" if tokenizer.image_token == IMAGE_TOKEN else _literal(tokenizer.image_token)
    return " + ".join([*before, f"{token} * {image_tokens}", *after])


def _user_content(user: TurnFormat, write: _Writer) -> str:
    text = "images(message)" if user.images_only else "content(message)"
    if not (user.lead or user.after_images):
        return "{{ " + text + " }}"
    written = "{% set text = " + text + " %}"
    if user.lead:
        written += "{% if text and not text.startswith(image) %}" + write((user.lead,)) + "{% endif %}"
    if not user.after_images:
        return written + "{{ text }}"
    behind = write(user.after_images)
    return (
        written
        + "{% if image in text %}{% set around = text.rsplit(image, 1) %}{{ around[0] + image }}"
        + behind
        + "{{ around[1] }}{% else %}"
        + behind
        + "{{ text }}{% endif %}"
    )


def _system(template: ChatTemplate, write: _Writer) -> str:
    if template.system is None:
        return ""
    return (
        "{% if system %}"
        + write((*template.system.before, template.system.lead))
        + "{{ system }}"
        + write(template.system.after)
        + "{% endif %}"
    )


def _moved_space(pieces: tuple[Piece, ...], tokenizer: Tokenizer) -> tuple[tuple[Piece, ...], str]:
    """The pieces before an answer, and their last character if it is white space that the answer's first token takes.

    That is so for a tokenizer that drops white space at the end of a text: what is written before an answer has no such
    token, so the one made of it belongs to the answer.
    """
    last = pieces[-1] if pieces else None
    if not isinstance(last, str) or last == last.rstrip():
        return pieces, ""
    if tokenizer.encode(last, start=False) != tokenizer.encode(last.rstrip(), start=False):
        return pieces, ""
    return (*pieces[:-1], last[:-1]), last[-1]


def _spelled(piece: Piece) -> str:
    """A piece that stands around an image."""
    return piece if isinstance(piece, str) else piece.token or ""


def _opens_with_text(template: ChatTemplate) -> bool:
    """Whether text of the template or the system comes first after `start`."""
    first = template.user.before[:1]
    return bool(first) and not isinstance(first[0], Special)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
