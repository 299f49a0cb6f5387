"""Chat templates as data, and those that models are trained with; rendering knows none of them by name."""

from typing import Literal

from data_pipelines.config_class import Config


class Special(Config):
    """A special token in a template, by its name or by the role that the tokenizer gives it."""

    token: str | None = None
    role: Literal["bos", "eos"] | None = None
    """bos: written only for tokenizers whose sequences begin with one; eos: must be there."""


Piece = str | Special


class TileFormat(Config):
    """What stands between the tiles of an image that is split; never learned."""

    before: tuple[Piece, ...] = ()
    """Before a tile of the grid; `{row}` and `{column}` in a special token's name are its own, from 1."""
    row_end: str = ""
    """After the last tile of a row."""
    grid_end: str = ""
    """After the last row, before the `before` of the whole image."""


class ImageFormat(Config):
    """What stands around an image's tokens; never learned."""

    before: tuple[Piece, ...] = ()
    after: tuple[Piece, ...] = ()
    joined: bool = False
    """Whether an image right after another goes without `before`: what ends the one begins the other."""
    lead: str = ""
    """Text that opens a text part right after an image, and is learned with it."""
    tiles: TileFormat | None = None
    """Of an image that is split: `before` stands before the tile that shows all of it, which comes last; None: nothing
    stands between tiles, and `before` stands before all of them."""

    @property
    def bare(self) -> "ImageFormat":
        """What is left to write around an image where another writes its special tokens."""
        return ImageFormat(lead=self.lead)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of its special tokens."""
        specials = (piece for piece in (*self.before, *self.after) if isinstance(piece, Special))
        return tuple(special.token for special in specials if special.token)


class TurnFormat(Config):
    """What stands around the content of a system or user turn."""

    before: tuple[Piece, ...] = ()
    lead: str = ""
    """Text that opens a content whose first part is text."""
    after_images: tuple[Piece, ...] = ()
    """What stands behind the last image of a user's content, or before a content without one."""
    after: tuple[Piece, ...] = ()
    images_only: bool = False
    """Whether the turn's text is left out."""


class AnswerFormat(Config):
    """What stands around an assistant's content; a prompt for generation ends after `before`."""

    before: tuple[Piece, ...] = ()
    lead: str = ""
    """Text that opens a content and is learned with it; left out when the content is empty."""
    tail: str = ""
    """Text that closes a content and is learned with it; left out when the content is empty."""
    end: tuple[Piece, ...] = ()
    """The end of the turn, learned with the content."""
    after: tuple[Piece, ...] = ()
    chunk_end: tuple[Piece, ...] = ()
    """Before every image of the content but the first, learned: where what is said of the image before it ends."""


class ChatTemplate(Config):
    """How a conversation becomes one sequence of special tokens and texts."""

    name: str
    start: tuple[Piece, ...] = ()
    """What stands before everything else, once."""
    system: TurnFormat | None = None
    """None: system turns are left out."""
    system_in_user: bool = False
    """Whether the system turn stands inside the first user turn, before its content."""
    default_system: str | None = None
    """The system content of conversations that bring none; None or empty: no system turn."""
    user: TurnFormat
    assistant: AnswerFormat
    document: AnswerFormat | None = None
    """Of an assistant's content that shows images itself, as interleaved documents do; None: as of any other."""
    image: ImageFormat = ImageFormat()
    separator: str = "\n"
    """Text between two parts of a content."""

    @property
    def answers(self) -> tuple[AnswerFormat, ...]:
        """All formats of an assistant's content."""
        return (self.assistant,) if self.document is None else (self.assistant, self.document)

    @property
    def chunk_tokens(self) -> tuple[str, ...]:
        """The names of the special tokens between chunks, which tokenizers of language models do not have."""
        specials = (piece for answer in self.answers for piece in answer.chunk_end if isinstance(piece, Special))
        return tuple(special.token for special in specials if special.token)

    def with_system(self, content: str | None) -> "ChatTemplate":
        """The same template with another default system content."""
        return self.model_copy(update={"default_system": content})


BOS = Special(role="bos")
EOS = Special(role="eos")
IM_START, IM_END = Special(token="<|im_start|>"), Special(token="<|im_end|>")
HEADER_START, HEADER_END = Special(token="<|start_header_id|>"), Special(token="<|end_header_id|>")
END_OF_TURN = Special(token="<|eot_id|>")

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA_LLAMA2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


def _chatml_turn(role: str) -> TurnFormat:
    return TurnFormat(before=(IM_START, f"{role}\n"), after=(IM_END, "\n"))


def _llama3_header(role: str) -> tuple[Special, str, Special, str]:
    return (HEADER_START, role, HEADER_END, "\n\n")


PLAIN = ChatTemplate(
    name="plain",
    start=(BOS,),
    user=TurnFormat(images_only=True),
    assistant=AnswerFormat(end=("\n",)),
)
"""LLaVA's alignment stage: the image, then its caption and a newline; what the user says is not used."""

DOCUMENT = PLAIN.model_copy(update={"name": "document", "assistant": AnswerFormat(end=(EOS,))})
"""Interleaved documents, and pairs beside them: each text as it is, images where they stand in it, the end token."""

END_OF_CHUNK = Special(token="<|endofchunk|>")

FLAMINGO = PLAIN.model_copy(
    update={
        "name": "flamingo",
        "assistant": AnswerFormat(end=(END_OF_CHUNK, EOS)),
        "document": AnswerFormat(chunk_end=(END_OF_CHUNK,), end=(END_OF_CHUNK,), after=(EOS,)),
        "separator": "",
    }
)
"""OpenFlamingo's: every text that follows an image ends with a token of its own, in pairs and in documents; the end
token after the last text of a document is not learned."""

VICUNA_V1 = ChatTemplate(
    name="vicuna_v1",
    start=(BOS,),
    system=TurnFormat(after=(" ",)),
    default_system=VICUNA_SYSTEM,
    user=TurnFormat(before=("USER: ",), after=(" ",)),
    assistant=AnswerFormat(before=("ASSISTANT:",), lead=" ", end=(EOS,)),
)

LLAMA2 = ChatTemplate(
    name="llama2",
    system=TurnFormat(before=("<<SYS>>\n",), after=("\n<</SYS>>\n\n",)),
    system_in_user=True,
    default_system=LLAVA_LLAMA2_SYSTEM,
    user=TurnFormat(before=(BOS, "[INST] "), after=(" [/INST]",)),
    assistant=AnswerFormat(lead=" ", tail=" ", end=(EOS,)),
)

LLAMA3 = ChatTemplate(
    name="llama3",
    start=(Special(token="<|begin_of_text|>"),),
    system=TurnFormat(before=_llama3_header("system"), after=(END_OF_TURN,)),
    user=TurnFormat(before=_llama3_header("user"), after=(END_OF_TURN,)),
    assistant=AnswerFormat(before=_llama3_header("assistant"), end=(END_OF_TURN,)),
)

CHATML = ChatTemplate(
    name="chatml",
    system=_chatml_turn("system"),
    user=_chatml_turn("user"),
    assistant=AnswerFormat(before=(IM_START, "assistant\n"), end=(IM_END,), after=("\n",)),
)

INTERNVL_IMAGE = ImageFormat(before=(Special(token="<img>"),), after=(Special(token="</img>"),))
INTERNVL = CHATML.model_copy(update={"name": "internvl", "image": INTERNVL_IMAGE})

QWEN2_VL = CHATML.model_copy(
    update={
        "name": "qwen2_vl",
        "default_system": "You are a helpful assistant.",
        "image": ImageFormat(before=(Special(token="<|vision_start|>"),), after=(Special(token="<|vision_end|>"),)),
        "separator": "",
    }
)

END_OF_UTTERANCE = Special(token="<end_of_utterance>")
AROUND_IMAGE = Special(token="<fake_token_around_image>")
IDEFICS2_IMAGE = ImageFormat(before=(AROUND_IMAGE,), after=(AROUND_IMAGE,), joined=True, lead=" ")
IDEFICS3_IMAGE = ImageFormat(
    before=(AROUND_IMAGE, Special(token="<global-img>")),
    after=(AROUND_IMAGE,),
    tiles=TileFormat(before=(AROUND_IMAGE, Special(token="<row_{row}_col_{column}>")), row_end="\n", grid_end="\n"),
)

IDEFICS3 = ChatTemplate(
    name="idefics3",
    start=(Special(token="<|begin_of_text|>"),),
    system=TurnFormat(before=("System:",), lead=" ", after=(END_OF_UTTERANCE, "\n")),
    user=TurnFormat(before=("User:",), lead=" ", after=(END_OF_UTTERANCE, "\n")),
    assistant=AnswerFormat(before=("Assistant:",), lead=" ", end=(END_OF_UTTERANCE,), after=("\n",)),
    image=IDEFICS3_IMAGE,
    separator="",
)
"""Idefics3's, for images that are split and for those that are not."""

IDEFICS2 = IDEFICS3.model_copy(update={"name": "idefics2", "start": (BOS,), "image": IDEFICS2_IMAGE})

SMOLVLM = IDEFICS3.model_copy(update={"name": "smolvlm", "start": (IM_START,)})

GEMMA_END = Special(token="<end_of_turn>")


def _gemma_turn(role: str) -> tuple[Special, str]:
    return (Special(token="<start_of_turn>"), f"{role}\n")


GEMMA = ChatTemplate(
    name="gemma",
    start=(BOS,),
    system=TurnFormat(after=("\n\n",)),
    system_in_user=True,
    user=TurnFormat(before=_gemma_turn("user"), after=(GEMMA_END, "\n")),
    assistant=AnswerFormat(before=_gemma_turn("model"), end=(GEMMA_END,), after=("\n",)),
)

PALIGEMMA = ChatTemplate(
    name="paligemma",
    user=TurnFormat(after_images=(Special(token="<bos>"),)),
    assistant=AnswerFormat(before=("\n",), end=(EOS,)),
    separator="",
)
"""PaliGemma's: the images, the start token, the question and a newline; made for one question and its answer."""

PHI3_END = Special(token="<|end|>")


def _phi3_turn(role: str) -> TurnFormat:
    return TurnFormat(before=(Special(token=f"<|{role}|>"), "\n"), after=(PHI3_END, "\n"))


PHI3 = ChatTemplate(
    name="phi3",
    start=(BOS,),
    system=_phi3_turn("system"),
    user=_phi3_turn("user"),
    assistant=AnswerFormat(before=(Special(token="<|assistant|>"), "\n"), end=(PHI3_END,), after=("\n",)),
)

MISTRAL = ChatTemplate(
    name="mistral",
    start=(BOS,),
    system=TurnFormat(after=("\n\n",)),
    system_in_user=True,
    user=TurnFormat(before=("[INST] ",), after=(" [/INST]",)),
    assistant=AnswerFormat(lead=" ", end=(EOS,)),
)
"""Mistral 7B Instruct's up to v0.2, for tokenizers that read [INST] as text."""

TEMPLATES: dict[str, ChatTemplate] = {
    template.name: template
    for template in (
        *(
            PLAIN,
            DOCUMENT,
            FLAMINGO,
            VICUNA_V1,
            LLAMA2,
            LLAMA3,
            CHATML,
            INTERNVL,
            IDEFICS2,
            IDEFICS3,
            SMOLVLM,
            QWEN2_VL,
        ),
        *(GEMMA, PALIGEMMA, PHI3, MISTRAL),
    )
}
