"""Turns validation errors into sentences: where it was written, the key path, what was found, what is allowed."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from data_pipelines.suggestion import suggest
from mllm_jax.run_file import KeyPath, RawRun, format_key


def sentences(
    error: ValidationError, root: type[BaseModel], raw: RawRun, prefix: KeyPath = (), values: Any = None
) -> list[str]:
    """One sentence for every error that pydantic found in `values` (default: all of `raw`), which stand at `prefix`."""
    values = raw.values if values is None else values
    details = error.errors(include_url=False)
    # A sequence whose items are wrong is reported as too short as well.
    places = [detail["loc"] for detail in details]
    wrong_inside = {loc[:length] for loc in places for length in range(len(loc))}
    kept = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in wrong_inside]
    return [_sentence(detail, root, raw, prefix, values) for detail in kept]


def _sentence(detail: ErrorDetails, root: type[BaseModel], raw: RawRun, prefix: KeyPath, values: Any) -> str:
    key = (*prefix, *_written_key(detail["loc"], values))
    place = f"{raw.origin(key)}: {format_key(key)}"
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        allowed = sorted(_fields_at(root, detail["loc"][:-1]))
        return f"{place}: unknown key.{suggest(str(detail['loc'][-1]), allowed)} Keys here: {', '.join(allowed)}."
    if kind == "missing":
        return f"{place}: this key is needed and has no default."
    if kind == "literal_error":
        allowed_text = detail["ctx"]["expected"]
        allowed = [a.strip(" '") for a in allowed_text.replace(" or ", ",").split(",")]
        return f"{place}: found {found!r}, expected {allowed_text}.{suggest(str(found), allowed)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [t.strip(" '") for t in detail["ctx"].get("expected_tags", "").split(",") if t.strip()]
        tag = detail["ctx"].get("tag")
        if tag is None:
            return f"{place}: needs the key {detail['ctx']['discriminator']} to say which kind it is."
        return f"{place}.kind: found {tag!r}, expected one of {', '.join(tags)}.{suggest(tag, tags)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind in ("value_error", "assertion_error"):
        return f"{place}: {message}"
    return f"{place}: found {_short(found)}, expected {message}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _written_key(loc: tuple[int | str, ...], values: Any) -> KeyPath:
    """`loc` without the parts that pydantic adds for union members, which no file holds."""
    key: list[int | str] = []
    for index, part in enumerate(loc):
        holds = (isinstance(values, dict) and part in values) or (
            isinstance(values, list | tuple) and isinstance(part, int)
        )
        if holds:
            values = values[part]  # type: ignore[index]
            key.append(part)
        elif index == len(loc) - 1 and isinstance(values, dict):
            key.append(part)
    return tuple(key)


def _fields_at(root: Any, loc: tuple[int | str, ...]) -> set[str]:
    """The keys that the config class at `loc` knows."""
    here: list[Any] = [root]
    for part in loc:
        here = [step for candidate in here for step in _step(candidate, part)]
    fields: set[str] = set()
    for candidate in here:
        for model in _models(candidate):
            fields |= set(model.model_fields)
    return fields


def _step(annotation: Any, part: int | str) -> list[Any]:
    steps: list[Any] = []
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            field = option.model_fields.get(str(part))
            if field is not None:
                steps.append(field.annotation)
            elif _kind(option) == part or option.__name__ == part:
                steps.append(option)
            elif "__pydantic_extra__" in option.__annotations__:
                steps += _step(get_type_hints(option, include_extras=True)["__pydantic_extra__"], part)
        elif get_origin(option) in (tuple, list) and isinstance(part, int):
            steps.append(get_args(option)[0])
        elif get_origin(option) is dict:
            steps.append(get_args(option)[1])
    return steps


def _kind(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field and get_origin(field.annotation) is Literal else None


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [o for o in _options(annotation) if isinstance(o, type) and issubclass(o, BaseModel)]
