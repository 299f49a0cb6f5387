"""docs/plan.md says what `mllm plan` does, and prints."""

import re
import shlex
from pathlib import Path

from mllm_jax.cli import build_parser, main
from mllm_jax.planning.command import DOES_NOT_FIT_EXIT_CODE
from mllm_jax.planning.kernels import KERNEL_SHARE_OF_PEAK
from mllm_jax.planning.memory import LARGE_PARAMETER
from mllm_jax.planning.stage_plan import REAL_OVER_PREDICTED, REAL_RANGE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/plan.md").read_text(encoding="utf-8")


def test_the_page_names_every_option_and_no_other():
    parsed = vars(build_parser().parse_args(["plan", "run.yaml", "--topology", "cpu"]))
    known = {f"--{name.replace('_', '-')}" for name in parsed} - {"--run", "--run-file", "--overrides", "--traceback"}
    assert known == set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE))


def test_the_command_of_the_page_prints_what_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    (block,) = re.findall(r"```console\n\$ mllm (.*?)```", PAGE, re.DOTALL)
    command, _, output = block.partition("\n")
    assert main(shlex.split(command)) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    assert printed == [line.rstrip() for line in output.strip().splitlines()]


def test_the_numbers_of_the_page_are_those_of_the_code():
    assert DOES_NOT_FIT_EXIT_CODE == 3 and "3 where one does not" in PAGE
    assert KERNEL_SHARE_OF_PEAK == 0.5 and "half of the peak" in PAGE
    assert LARGE_PARAMETER == 16e6 and "A parameter of 16 MB" in PAGE
    assert f"{REAL_OVER_PREDICTED} of what is predicted so ({REAL_RANGE[0]} to {REAL_RANGE[1]})" in PAGE
