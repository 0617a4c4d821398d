"""Print the differences to the numbers of the authors' code as a markdown table:  python benchmarks/golden_table.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from golden_cases import CASES, worst_differences, worst_of  # noqa: E402

COLUMNS = ("logits", "states", "loss", "gradients")


def columns(found):
    """The differences of one case by column; everything except logits, loss and gradients counts as a state."""
    states = [difference for key, difference in found.items() if key not in COLUMNS]
    return {"states": worst_of(states), **{key: found[key] for key in COLUMNS if key in found}}


def main():
    """One row for each case and attention implementation; `-` where nothing was recorded."""
    print(f"| case | attention | {' | '.join(COLUMNS)} |")
    print(f"|---|---|{'---|' * len(COLUMNS)}")
    for name in CASES:
        for attention in ("eager", "sdpa"):
            worst = columns(worst_differences(name, attention))
            cells = (f"{worst[key].worst:.1e}" if key in worst else "-" for key in COLUMNS)
            print(f"| {name} | {attention} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
