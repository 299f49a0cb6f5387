"""Reads a run file: YAML, `extends:`, `variants:`, and `key.path=value` overrides, remembering where each value was
written."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class RunFileError(ValueError):
    """A run file that cannot start a run; the message says where, what was found and what is allowed."""


@dataclass(frozen=True)
class RawRun:
    """The merged, unvalidated content of a run file and the place each value came from."""

    path: Path
    values: dict[str, Any]
    origins: dict[KeyPath, str]

    def origin(self, key: KeyPath) -> str:
        """The `file:line` (or `command line`) that wrote `key` or its nearest written parent."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        return str(self.path)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but with `1e-3` as the number that everyone means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"
    ),
    list("-+0123456789."),
)


_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def read_run_file(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RawRun:
    """Reads what `path` extends, `path`, the variant that is chosen, and the command line's overrides, in this order of
    increasing weight.

    Raises:
        RunFileError: a file that is missing or not YAML, a duplicate key, a circular `extends`, a variant that is not
            there, a malformed override.
    """
    values, origins = _read_extended(Path(path), chain=())
    chosen = [override for override in overrides if override.startswith("variant=")]
    for override in chosen:
        _apply_override(values, origins, override)
    _apply_variant(values, origins)
    for override in (override for override in overrides if override not in chosen):
        _apply_override(values, origins, override)
    return RawRun(Path(path), values, origins)


def _read_extended(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    resolved = path.resolve()
    if resolved in chain:
        names = " -> ".join(str(p) for p in (*chain, resolved))
        raise RunFileError(f"{path}: `extends` goes round in a circle: {names}")
    values, origins = _read_yaml(path)
    _extend_variants(values, origins, path, (*chain, resolved))
    return _over_base(values, origins, path, (*chain, resolved))


def _over_base(
    values: dict[str, Any], origins: dict[KeyPath, str], path: Path, chain: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Values written in `path` over those of the file that their `extends` names."""
    base = values.pop("extends", None)
    if base is None:
        return values, origins
    if not isinstance(base, str):
        raise RunFileError(f"{origins[('extends',)]}: extends: found {base!r}, expected the path of another run file")
    base_path = path.parent / base
    if not base_path.is_file():
        raise RunFileError(f"{origins[('extends',)]}: extends: there is no file {base_path}")
    base_values, base_origins = _read_extended(base_path, chain)
    _merge(base_values, values, (), base_origins, origins)
    return base_values, base_origins


def _extend_variants(values: dict[str, Any], origins: dict[KeyPath, str], path: Path, chain: tuple[Path, ...]) -> None:
    """Writes out what the variants of one file extend."""
    variants = values.get("variants", {})
    if not (isinstance(variants, dict) and all(isinstance(variant, dict) for variant in variants.values())):
        raise RunFileError(
            f"{origins[('variants',)]}: variants: expected a mapping of names to changes of this file, such as "
            "{tiny: {stages: {align: {steps: 10}}}}"
        )
    for name, variant in variants.items():
        key = ("variants", name)
        own = {place[2:]: line for place, line in origins.items() if place[:2] == key}
        variants[name], own = _over_base(variant, own, path, chain)
        origins.update({(*key, *place): line for place, line in own.items()})


def _apply_variant(values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
    """Lays the chosen variant over the values; neither the variants nor the choice stays among them."""
    variants, chosen = values.pop("variants", {}), values.pop("variant", None)
    if chosen is None:
        return
    if chosen not in variants:
        known = ", ".join(variants) or "none"
        raise RunFileError(f"{origins[('variant',)]}: variant: found {chosen!r}; this run file has: {known}")
    key = ("variants", chosen)
    written = {place[2:]: line for place, line in origins.items() if place[:2] == key and len(place) > 2}
    _merge(values, variants[chosen], (), origins, written)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFileError(f"{path}: there is no such run file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path}: cannot be read as a UTF-8 text file: {error}") from None
    origins: dict[KeyPath, str] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = {} if node is None else _construct(loader, node, (), path, origins)
    except yaml.YAMLError as error:
        raise RunFileError(f"{path}: is not valid YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise RunFileError(
            f"{path}: found a {type(values).__name__} at the top, expected a mapping (`model:`, `data:` ...)"
        )
    return values, origins


def _construct(loader: _Loader, node: yaml.Node, key: KeyPath, path: Path, origins: dict[KeyPath, str]) -> Any:
    origins.setdefault(key, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTION_TAGS:
        raise RunFileError(f"{origins[key]}: {format_key(key)}: is not valid YAML for a run file: the tag {node.tag}")
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(loader.construct_object(key_node, deep=True))
            place = f"{path}:{key_node.start_mark.line + 1}"
            if name in mapping:
                raise RunFileError(f"{place}: {format_key((*key, name))}: this key is written twice")
            origins[(*key, name)] = place
            mapping[name] = _construct(loader, value_node, (*key, name), path, origins)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*key, i), path, origins) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _merge(
    base: dict[str, Any],
    over: dict[str, Any],
    key: KeyPath,
    origins: dict[KeyPath, str],
    over_origins: dict[KeyPath, str],
) -> None:
    """Merges mappings key by key; a mapping over a list of named entries merges into the entries of these names."""
    for name, value in over.items():
        here = (*key, name)
        old = base.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value, here, origins, over_origins)
        elif isinstance(old, list) and isinstance(value, dict):
            for entry_name, entry in value.items():
                index = _named_index(old, entry_name, here, over_origins.get((*here, entry_name), ""))
                moved = {
                    (*here, index, *k[len(here) + 1 :]): v
                    for k, v in over_origins.items()
                    if k[: len(here) + 1] == (*here, entry_name)
                }
                _merge(old[index], entry, (*here, index), origins, moved)
        else:
            base[name] = copy.deepcopy(value)
            for known in [k for k in origins if k[: len(here)] == here]:
                del origins[known]
            origins.update({k: v for k, v in over_origins.items() if k[: len(here)] == here})


def _named_index(entries: list[Any], name: str | int, key: KeyPath, place: str) -> int:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if name in names:
        return names.index(name)
    if str(name).lstrip("-").isdigit() and -len(entries) <= int(name) < len(entries):
        return int(name) % len(entries)
    known = ", ".join(str(n) for n in names)
    raise RunFileError(f"{place}: {format_key(key)}: there is no entry {name!r}; the entries are: {known or '(none)'}")


def _apply_override(values: dict[str, Any], origins: dict[KeyPath, str], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name or any(not part for part in name.split(".")):
        raise RunFileError(f"command line: found {override!r}, expected key.path=value, such as stages.align.steps=100")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RunFileError(f"command line: {name}: the value is not valid YAML: {error}") from None
    target: Any = values
    key: KeyPath = ()
    *parents, last = name.split(".")
    for part in parents:
        target, key = _descend(target, key, part, override)
    if isinstance(target, list):
        index = _named_index(target, last, key, "command line")
        target[index], key = value, (*key, index)
    else:
        target[last], key = value, (*key, last)
    for known in [k for k in origins if k[: len(key)] == key]:
        del origins[known]
    origins[key] = "command line"


def _descend(target: Any, key: KeyPath, part: str, override: str) -> tuple[Any, KeyPath]:
    if isinstance(target, list):
        index = _named_index(target, part, key, "command line")
        child, here = target[index], (*key, index)
    else:
        if target.get(part) is None:
            target[part] = {}
        child, here = target[part], (*key, part)
    if not isinstance(child, (dict, list)):
        raise RunFileError(f"command line: {override}: {format_key(here)} is {child!r}, which has no keys below it")
    return child, here


def format_key(key: KeyPath) -> str:
    """`("stages", 0, "steps")` as `stages[0].steps`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "(top)"
