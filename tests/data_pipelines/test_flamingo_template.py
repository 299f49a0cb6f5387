"""The template `flamingo` beside the strings and labels that OpenFlamingo makes of the same pairs and documents.

From its `train/data.py` and `train_utils.py`: a pair is `<image>TEXT<|endofchunk|>EOS`, all learned but the image and
the first token. A document is its sentences joined by spaces, with `<|endofchunk|><image>` (of the first image
`<image>`) before the sentence that an image belongs to, without the spaces around these, and `<|endofchunk|>EOS` at its
end; learned is what lies between an image and the `<|endofchunk|>` after it, that included.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipelines.record import ByteRange, ImagePart, Record, TextPart, Turn
from data_pipelines.transforms.chat_template import render, stop_ids, written
from data_pipelines.transforms.jinja import jinja
from data_pipelines.transforms.template_check import check_template
from data_pipelines.transforms.templates import TEMPLATES
from tests.support.small_tokenizers import small_tokenizer

FLAMINGO = TEMPLATES["flamingo"]
IMAGE = ImagePart(ByteRange("cat.jpg"))
END = "<|endofchunk|>"
KINDS = ("bytes", "default", "bpe")
SENTENCES = st.lists(st.sampled_from(["A cat.", "It sleeps", "two dogs, 3 cats", "été"]), min_size=1, max_size=4)
CHUNKS = st.lists(st.one_of(st.just([]), SENTENCES), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """Our tokenizer, and the one that transformers loads from the files that we export."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = small_tokenizer(request.param, folder)
    (folder / "exported").mkdir()
    for name, contents in tokenizer.hugging_face_files(jinja(FLAMINGO, tokenizer)).items():
        (folder / "exported" / name).write_bytes(contents)
    return tokenizer, AutoTokenizer.from_pretrained(folder / "exported")


def document(opening, chunks):
    """A document as sources give it: texts that no image parts are one; text before the first image is not learned."""
    parts = [TextPart(" ".join(opening), learn=False)] if opening else []
    for chunk in chunks:
        parts += [IMAGE, *([TextPart(" ".join(chunk))] if chunk else [])]
    return Record("key", (Turn("assistant", tuple(parts), learn=True),))


def ids_of(text, ours, theirs):
    """As a tokenizer whose sequences start with a token of their own reads a text."""
    start = theirs.bos_token if ours.starts_with_bos else ""
    return theirs(start + text, add_special_tokens=False)["input_ids"]


def labels_of_document(ids, image, end):
    """Which tokens OpenFlamingo learns of a document."""
    learned, inside = [], False
    for index in ids:
        inside = inside or index == image
        learned.append(inside and index != image)
        inside = inside and index != end
    return learned


@settings(max_examples=40, deadline=None)
@given(opening=st.one_of(st.just([]), SENTENCES), chunks=CHUNKS)
def test_documents_have_its_ids_and_labels(both, opening, chunks):
    ours, theirs = both
    rendered = render(document(opening, chunks), FLAMINGO, ours, 1)
    text = " ".join(opening) + END.join(f"<image>{' '.join(chunk)}" for chunk in chunks) + END + theirs.eos_token
    ids = ids_of(text, ours, theirs)
    assert rendered.tokens.tolist() == ids
    special = theirs.convert_tokens_to_ids(["<image>", END])
    assert rendered.supervised.tolist() == labels_of_document(ids, *special)
    assert [ids[start] for start in rendered.image_starts] == [special[0]] * len(chunks)


@settings(max_examples=20, deadline=None)
@given(sentences=SENTENCES)
def test_pairs_have_its_ids_and_labels(both, sentences):
    ours, theirs = both
    caption = " ".join(sentences)
    asked = Turn("user", (IMAGE, TextPart("What is this?")), learn=False)
    rendered = render(Record("key", (asked, Turn("assistant", (TextPart(caption),), learn=True))), FLAMINGO, ours, 1)
    ids = ids_of(f"<image>{caption}{END}{theirs.eos_token}", ours, theirs)
    assert rendered.tokens.tolist() == ids
    image = theirs.convert_tokens_to_ids("<image>")
    assert rendered.supervised.tolist() == [bool(number) and index != image for number, index in enumerate(ids)]


def test_the_exported_template_writes_documents_alike(both):
    ours, theirs = both
    conversation = document([], [["A cat."], [], ["A dog.", "It sleeps"]])
    shown = [
        {"role": turn.role, "content": [{"type": "image"} if part is IMAGE else {"type": "text", "text": part.text}]}
        for turn in conversation.turns
        for part in turn.parts
    ]
    shown = [{"role": "assistant", "content": [part for message in shown for part in message["content"]]}]
    text = theirs.apply_chat_template(shown, tokenize=False)
    assert text == written(conversation, FLAMINGO, ours)
    assert text.endswith(f"<image>A cat.{END}<image>{END}<image>A dog. It sleeps{END}{theirs.eos_token}")


def test_it_fits_tokenizers_and_generation_stops_at_the_end_of_a_chunk(both):
    ours, _ = both
    check_template(FLAMINGO, ours)
    assert ours.special_id(END) in stop_ids(FLAMINGO, ours)
