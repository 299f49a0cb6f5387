"""docs/families.md lists the families that can be imported, each with what the tests have proven."""

from mllm_jax.interop.families.choice import COMPOSITE_FAMILIES
from mllm_jax.interop.families.parts import DECODER_FAMILIES, ENCODER_FAMILIES
from tests.support.proofs import Proven, page_rows, row_of, written_row

OF_NO_FOLDER = {"open_flamingo"}
"""Families whose checkpoints are no Hugging Face folders."""
ALL = (*COMPOSITE_FAMILIES, *ENCODER_FAMILIES, *DECODER_FAMILIES)


def test_the_page_lists_exactly_the_families_that_can_be_imported() -> None:
    rows = page_rows()
    for family in ALL:
        assert rows.keys() & set(family.model_types), f"no test proves {family.model_types}: add one, run make families"
    known = OF_NO_FOLDER | {name for family in ALL for name in family.model_types}
    assert rows.keys() >= OF_NO_FOLDER
    assert rows.keys() <= known, f"no family has {rows.keys() - known}: run make families"


def test_every_row_is_an_import_within_the_bound() -> None:
    for family, row in page_rows().items():
        assert "import" in row.proofs and row.error < 1e-4, family


def test_a_row_says_what_was_proven_with_the_largest_error() -> None:
    proofs = [Proven("gpt2", "import", 2e-6), Proven("gpt2", "import", 1.26e-5), Proven("gpt2", "train", None)]
    assert written_row("gpt2", row_of(proofs)) == "| `gpt2` | yes | yes | - | - | 1.3e-05 |"
