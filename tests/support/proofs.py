"""What tests prove of the families of models: said by the tests, read by docs/families.md."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

Proof = Literal["import", "train", "generate", "export"]
PROOFS: tuple[Proof, ...] = get_args(Proof)
PAGE = Path(__file__).parents[2] / "docs" / "families.md"
PROPERTY = "proven"
"""Name under which pytest keeps a proof with its test."""
YES, NO = "yes", "-"
ROW = re.compile(
    rf"^\| `(?P<family>[^`]+)` \|(?P<cells>(?: (?:{YES}|{NO}) \|){{{len(PROOFS)}}}) (?P<error>[0-9.e+-]+) \|$",
    re.MULTILINE,
)


class Proven(NamedTuple):
    family: str
    """`model_type` of the config.json."""
    proof: Proof
    error: float | None
    """Largest absolute difference in float32, where one was measured."""


class Row(NamedTuple):
    """What the page says of a family."""

    proofs: frozenset[str]
    error: float


class Prover(Protocol):
    def __call__(self, family: Path | str, proof: Proof, error: float | None = None) -> None:
        """Says that the running test proves something of a family: that of a Hugging Face folder, or one by name."""


def row_of(proofs: Iterable[Proven]) -> Row:
    """All that was proven of a family, with the largest error."""
    given = list(proofs)
    errors = (each.error for each in given if each.error is not None)
    return Row(frozenset(each.proof for each in given), max(errors, default=0.0))


def written_row(family: str, row: Row) -> str:
    """The family's line of the page."""
    cells = [YES if proof in row.proofs else NO for proof in PROOFS]
    return f"| `{family}` | {' | '.join(cells)} | {row.error:.1e} |"


def page_rows() -> dict[str, Row]:
    """The families on the page; none where there is no page."""
    found: dict[str, Row] = {}
    if not PAGE.is_file():
        return found
    for match in ROW.finditer(PAGE.read_text()):
        cells = match["cells"].removesuffix("|").split("|")
        proofs = frozenset(proof for proof, cell in zip(PROOFS, cells, strict=True) if cell.strip() == YES)
        found[match["family"]] = Row(proofs, float(match["error"]))
    return found
