"""What liars can do to a group of peers that agree on coefficients: per step, in a toy, and to a language model.

    python benchmarks/peers_robustness.py push                   # push of the worst liar, by rule, n, f and K
    python benchmarks/peers_robustness.py toy                    # small models, many seeds, liars who know the defence
    python benchmarks/peers_robustness.py real --data DIR        # SmolLM2 135M, LoRA, SST-2: hours on two cores
    python benchmarks/peers_robustness.py real --collect         # write the file of what is finished by now

Results are written as they come, to ``peers-push.jsonl``, ``peers-toy.jsonl`` and ``peers-real.jsonl``; what is in them
is not computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("push", "toy", "real"))
    parser.add_argument("--data", type=Path, help="Folder with SST-2, of the part real.")
    parser.add_argument("--runs", type=Path, default=Path("runs/peers-real"), help="Run folder of the part real.")
    parser.add_argument("--workers", type=int, default=1, help="Runs side by side, of the part real.")
    parser.add_argument("--collect", action="store_true", help="Only write what is finished.")
    parser.add_argument("--out", type=Path, help="Result file.")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"peers-{arguments.part}.jsonl"
    if arguments.part == "push":
        from robustness_parts import push

        push.run(out)
    elif arguments.part == "toy":
        from robustness_parts import toy

        toy.run(out)
    else:
        from robustness_parts import real

        if arguments.collect:
            real.write(arguments.runs, out)
        elif arguments.data is None:
            parser.error("the part real needs --data, a folder with SST-2")
        else:
            real.run(arguments.data, arguments.runs, out, workers=arguments.workers)


if __name__ == "__main__":
    main()
