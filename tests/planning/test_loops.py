"""How often loops run, where XLA writes it down and where only the loop says it."""

import re

import jax
import jax.numpy as jnp
import pytest

from mllm_jax.planning.hlo_text import parse_program
from mllm_jax.planning.loops import trip_count

LOOP = """
HloModule loop

%condition (c: (s32[], f32[4])) -> pred[] {
  %c = (s32[], f32[4]) parameter(0)
  %end = s32[] constant(END)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %end), direction=DIRECTION
}

%body (b: (s32[], f32[4])) -> (s32[], f32[4]) {
  %b = (s32[], f32[4]) parameter(0)
  %i.1 = s32[] get-tuple-element(%b), index=0
  %x = f32[4] get-tuple-element(%b), index=1
  %by = s32[] constant(BY)
  %next = s32[] add(%i.1, %by)
  %next.1 = s32[] add(%by, %next)
  ROOT %after = (s32[], f32[4]) tuple(%next.1, %x)
}

ENTRY %main (x.1: f32[4]) -> f32[4] {
  %x.1 = f32[4] parameter(0)
  %first = s32[] constant(FIRST)
  %copied = s32[] copy(%first)
  %start = (s32[], f32[4]) tuple(%copied, %x.1)
  %loop = (s32[], f32[4]) while(%start), condition=%condition, body=%body
  ROOT %y = f32[4] get-tuple-element(%loop), index=1
}
"""


def turns(text: str) -> list[int | None]:
    program = parse_program(text)
    return [
        trip_count(program, computation, each)
        for computation in program.computations.values()
        for each in computation.values()
        if each.opcode == "while"
    ]


@pytest.mark.parametrize(
    ("first", "end", "by", "direction", "expected"),
    [(0, 12, 1, "LT", 6), (0, 13, 1, "LT", 7), (3, 12, 1, "LT", 5), (0, 12, 1, "LE", 7), (9, 0, -1, "GT", 5)],
)
def test_a_loop_that_only_its_condition_describes(first, end, by, direction, expected):
    """The body adds twice, as one does that XLA has unrolled."""
    text = LOOP
    for name, value in (("FIRST", first), ("END", end), ("BY", by), ("DIRECTION", direction)):
        text = text.replace(name, str(value))
    assert turns(text) == [expected]


def test_a_loop_that_counts_from_what_the_data_say_is_not_known():
    text = LOOP.replace("%copied = s32[] copy(%first)", "%copied = s32[] convert(%x.1)")
    assert turns(text.replace("END", "3").replace("BY", "1").replace("DIRECTION", "LT").replace("FIRST", "0")) == [None]


def nested(x):
    def outer(carry, _):
        return jax.lax.fori_loop(2, 7, lambda _, y: jnp.sin(y) @ y, carry), None

    return jax.lax.scan(outer, x, length=11)[0]


def test_loops_of_a_compiled_program_with_and_without_what_xla_writes_down():
    text = jax.jit(nested).lower(jnp.zeros((8, 8))).compile().as_text()
    assert "known_trip_count" in text and sorted(turns(text)) == [5, 11]
    assert sorted(turns(re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", text))) == [5, 11]
