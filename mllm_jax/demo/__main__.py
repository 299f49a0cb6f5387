"""`python -m mllm_jax.demo`: from handwritten digits to an exported, talking multimodal LLM."""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mllm_jax.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--run-file", type=Path, default=Path("configs/demo.yaml"), help="what is trained (default: %(default)s)"
    )
    parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="replace a value of the run file")
    options = parser.parse_args()

    from mllm_jax.demo.run import run_demo

    try:
        return run_demo(options.output, options.run_file, tuple(options.overrides))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
