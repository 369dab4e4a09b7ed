"""Puts what commands left into the README's blocks: `python .ci/readme.py BLOCK=FILE[#TITLE] ...`.

Numbers are never typed into the README. Between `<!-- BLOCK -->` and `<!-- end of BLOCK -->` goes the text of a file, or of
it the paragraph that begins with a title:

    python .ci/readme.py leaderboard=runs/quick/report/leaderboard.txt test=pytest.txt \
        "results=docs/results/standard/leaderboard.txt#identities: single requests"
"""

import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def main(arguments: list[str]) -> None:
    """Replace the blocks named."""
    text = README.read_text()
    for name, source in (argument.split("=", 1) for argument in arguments):
        file, _, title = source.partition("#")
        content = Path(file).read_text().strip()
        if title:
            content = next(part for part in content.split("\n\n") if part.startswith(title))
        block = f"<!-- {name} -->\n```\n{content}\n```\n<!-- end of {name} -->"
        before, opened, rest = text.partition(f"<!-- {name} -->")
        _, closed, after = rest.partition(f"<!-- end of {name} -->")
        if not (opened and closed):
            sys.exit(f"the README has no block {name}.")
        text = before + block + after
    README.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
