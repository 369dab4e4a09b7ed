"""Puts what the README's two commands print under them: `python .ci/readme.py RUN_FOLDER PYTEST_OUTPUT`.

Numbers are never typed into the README; this writes what `make leaderboard` and `make test` left.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def main(run: Path, tests: Path) -> None:
    """Replace the blocks between the markers."""
    board = (run / "report" / "leaderboard.txt").read_text().rstrip()
    text = README.read_text()
    for name, content in (
        ("leaderboard", f"{board}\n\n{run / 'report' / 'index.html'}"),
        ("test", tests.read_text().strip()),
    ):
        block = f"<!-- {name} -->\n```\n{content}\n```\n<!-- end of {name} -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end of {name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
    README.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
