"""The chat templates that models are trained with. Each one is a value; rendering knows none of them by name."""

from data_pipelines.transforms.chat_template import AnswerFormat, ChatTemplate, Special, TurnFormat

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

TEMPLATES: dict[str, ChatTemplate] = {
    template.name: template for template in (PLAIN, VICUNA_V1, LLAMA2, LLAMA3, CHATML)
}
