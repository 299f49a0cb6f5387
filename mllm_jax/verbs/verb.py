"""How a verb is added to the command."""

import argparse
from collections.abc import Callable


def add_verb(
    verbs, name: str, summary: str, run: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    """The parser of a new verb (or of an action of one), which `run` does; its exit code, or None for 0."""
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser
