"""What the documents say is so: links lead somewhere, programs run, commands parse.

A fenced block of Markdown is checked by its first line: ```` ```python program ```` is a complete program and is run,
```` ```python examples/my_method.py ```` has to be that file, and in shell blocks every `slugbench ...` is parsed.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from .toys import ROOT, run_python, tracked_files

DOCUMENTS = [path for path in tracked_files() if path.suffix == ".md"]
SHELLS = {"sh", "bash", "shell", "console"}


class Block(NamedTuple):
    """A fenced block."""

    path: Path
    line: int
    language: str
    label: str
    """The rest of the first line."""
    text: str


def blocks(path: Path, text: str) -> list[Block]:
    found = []
    for token in MarkdownIt().parse(text):
        if token.type == "fence":
            language, _, label = token.info.strip().partition(" ")
            found.append(Block(path, (token.map or [0])[0] + 1, language, label.strip(), token.content))
    return found


def links(text: str) -> list[str]:
    """Targets of links and images, of HTML ones too."""
    found = []
    for token in MarkdownIt().enable("table").parse(text):
        for child in [token, *(token.children or [])]:
            found += [str(child.attrs[name]) for name in ("href", "src") if name in child.attrs]
            if child.type.startswith("html"):
                found += re.findall(r"""(?:href|src)=["']([^"']+)""", child.content)
    return found


def anchors(text: str) -> set[str]:
    """What `#...` may name: headings as GitHub slugs them, and HTML ids."""
    found: set[str] = set(re.findall(r"""<\w+[^>]*\b(?:id|name)=["']([^"']+)""", text))
    tokens = MarkdownIt().parse(text)
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            title = "".join(child.content for child in inline.children or [] if child.type in {"text", "code_inline"})
            slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
            repeated = [slug, *(f"{slug}-{i}" for i in range(1, len(found) + 2))]
            found.add(next(name for name in repeated if name not in found))
    return found


def dead_links(path: Path, root: Path) -> list[str]:
    """Relative links of a document whose file or anchor is not there, or that lead out of the checkout."""
    dead = []
    for link in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
            continue  # another site: whether it is up is not ours to test
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        there = target.exists() and target.is_relative_to(root)
        if not there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def commands(block: Block) -> list[list[str]]:
    """The arguments of every `slugbench ...` in a shell block, with or without a prompt."""
    if block.language not in SHELLS:
        return []
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                if command[:1] == ["slugbench"]:
                    found.append(command[1:])
                command = []
            else:
                command.append(word)
    return found


BLOCKS = [block for path in DOCUMENTS for block in blocks(path, (ROOT / path).read_text(encoding="utf-8"))]


def named(found: list[Block]) -> list[pytest.param]:
    return [pytest.param(block, id=f"{block.path}:{block.line}") for block in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_lead_somewhere(path):
    assert dead_links(ROOT / path, ROOT) == []


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.language == "python" and b.label == "program"]))
def test_programs_run(block, tmp_path):
    run_python(block.text, cwd=tmp_path)


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.label.endswith(".py")]))
def test_files_are_shown_as_they_are(block):
    assert block.text == (ROOT / block.label).read_text(encoding="utf-8"), (
        f"{block.path}, line {block.line}: not {block.label}"
    )


@pytest.mark.parametrize("block", named([b for b in BLOCKS if commands(b)]))
def test_commands_parse(block, capsys):
    cli = pytest.importorskip("slugbench.bench.cli", reason="there is no command line yet")
    for command in commands(block):
        try:
            cli.parser().parse_args(command)
        except SystemExit as ended:
            assert not ended.code, (
                f"{block.path}, line {block.line}: slugbench {shlex.join(command)}: {capsys.readouterr().err}"
            )


def test_the_readme_shows_a_command_and_its_parser_is_strict(capsys):
    """Guards the tests above against passing because they found nothing."""
    cli = pytest.importorskip("slugbench.bench.cli", reason="there is no command line yet")
    assert [b for b in BLOCKS if b.path == Path("README.md") and commands(b)]
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["no-such-command"])


# ---------------------------------------------------------------- these checks can fail

PAGE = """# A title, with `code`!
[here](#a-title-with-code) [gone](#gone) [file](there.md#second-1) [missing](missing.md) [image](there.md)
[site](https://example.org/missing) <a href="missing.html">x</a> `[not](a-link.md)` [ref][r] [out](../out.md)

[r]: there.md#third

```md
[nor](this.md)
```
"""


def test_dead_links_are_found(tmp_path):
    for name, text in {
        "root/page.md": PAGE,
        "root/there.md": "# Second\n# Second\n<a id='own'></a>\n",
        "out.md": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    gone = ["#gone", "missing.md", "missing.html", "there.md#third", "../out.md"]
    assert dead_links(tmp_path / "root" / "page.md", tmp_path / "root") == gone


def test_commands_are_found_behind_prompts_pipes_and_line_ends():
    text = """$ slugbench run quick \\
      --out 'a b'  # why
make test
cd x && slugbench list | head > y
echo slugbench no
slugbench --help
"""
    block = Block(Path("x.md"), 1, "console", "", text)
    assert commands(block) == [["run", "quick", "--out", "a b"], ["list"], ["--help"]]
    assert commands(block._replace(language="text")) == []


def test_blocks_know_their_line_and_label():
    (block,) = blocks(Path("x.md"), "one\n\n```python program\nprint(1)\n```\n")
    assert block == (Path("x.md"), 3, "python", "program", "print(1)\n")
