"""Whether a chat template and a tokenizer fit: asked before a run starts, not found out from a bad model."""

from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.rendered import RenderError
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.transforms.chat_template import render, render_prompt, required_tokens, written
from data_pipelines.transforms.templates import ChatTemplate

QUESTIONS = ("What is this?", "How many dogs are there, 3 or 4?", "Où est-ce ?\nAnswer in one word.", "這是什麼？ 🐈")
ANSWERS = ("blue", "A cat.", "42", "(0.25, 0.5)", '\'twas a "dog"', "…", "été 12\n\n- one\n- two", "貓 🐈‍⬛", "<b>")


def check_template(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Renders sample conversations and compares them with how the exported tokenizer reads the same conversations.

    Raises:
        ValueError: the tokenizer lacks special tokens (all are named), or the two readings differ.
    """
    missing = [name for name in required_tokens(template, tokenizer) if not tokenizer.has_special(name)]
    if missing:
        raise ValueError(
            f"chat template {template.name!r} needs the special tokens {', '.join(missing)}, which the tokenizer does "
            "not have. Use a template that fits the tokenizer, or add the tokens to it."
        )
    for record in _samples():
        try:
            ours = render(record, template, tokenizer, image_tokens=1)
        except RenderError as error:
            raise ValueError(f"chat template {template.name!r} does not fit the tokenizer: {error.detail}") from error
        text = written(record, template, tokenizer)
        theirs = tokenizer.encode_marked(text)
        prompt = render_prompt(record, template, tokenizer, image_tokens=1).tokens
        if ours.tokens.tolist() != theirs or ours.tokens[: len(prompt)].tolist() != prompt.tolist():
            raise ValueError(
                f"chat template {template.name!r} does not fit the tokenizer: {text!r} is rendered as "
                f"{ours.tokens.tolist()} but read back as {theirs}. A tokenizer that strips white space around special "
                "tokens (lstrip) or changes text beside them cannot be used with this template."
            )


def _samples() -> list[Record]:
    image = ImagePart(ByteRange("sample"))
    records = []
    for number, answer in enumerate(ANSWERS):
        question = TextPart(QUESTIONS[number % len(QUESTIONS)])
        turns = (
            Turn("user", (image, question), learn=False),
            Turn("assistant", (TextPart(answer),), learn=True),
            Turn("user", (question,), learn=False),
            Turn("assistant", (TextPart(answer),), learn=True),
        )
        records.append(Record(f"sample:{number}", turns))
    return records
