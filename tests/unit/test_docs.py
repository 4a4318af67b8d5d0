"""The documents tell the truth: examples run, the diagram is the core's, links and session names lead somewhere. (What
the command line's pages show is run by tests/ops/test_operator_docs.py.)

Convention: every ```python and shell block of the guides (the README, the pages of the extensions) is run, but for one
that an HTML comment precedes: `<!-- not run: reason -->`. Python blocks get a fresh database with the schema, as
PGQUEUE_DATABASE_URL. Of shell blocks the commands of this package and Alembic run, against an empty database, and for
the others (pip, nox, locust, servers and workers that would not end) names are checked.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documents import Block, anchor, blocks, commands

from pgqueue_ref.core.states import mermaid

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
GUIDES = [README, *sorted(ROOT.glob("docs/extensions/*.md"))]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)
ENDLESS = {"worker", "api", "dev", "watch"}
SHELL = {"", "sh", "bash", "shell"}  # `console` blocks are played by tests/ops


MIGRATE = Block("sh", "pgqueue-ref migrate", 1, "")


def is_cheap(command: str) -> bool:
    if not re.match(r"(\w+=\S+ )*(pgqueue-ref|alembic|python -m pgqueue_ref[\w.]*)( |$)", command):
        return False
    words = shlex.split(command, comments=True)
    return "|" not in words and ("--once" in words or not ENDLESS & set(words))


def guide_blocks() -> list[Block]:
    return [
        block._replace(document=str(guide.relative_to(ROOT))) for guide in GUIDES for block in blocks(guide.read_text())
    ]


def examples() -> list[Block]:
    return [block for block in guide_blocks() if block.language == "python" and not block.not_run]


def scripts() -> list[Block]:
    shells = [block for block in guide_blocks() if block.language in SHELL and not block.not_run]
    return [block for block in shells if any(map(is_cheap, commands(block)))]


def place(block: Block) -> str:
    return f"{block.document}:{block.line}"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with `python`, `pgqueue-ref` and `alembic` as this very interpreter runs them."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, module in {"python": "", "pgqueue-ref": "-m pgqueue_ref", "alembic": "-m alembic"}.items():
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        program.chmod(0o755)
    return directory


def environment(dsn: str, programs: Path | None = None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQUEUE_")}
    path = f"{programs}:{kept.get('PATH', '')}" if programs else kept.get("PATH", "")
    return kept | {"PGQUEUE_DATABASE_URL": dsn, "PYTHONPATH": str(ROOT), "PATH": path}


def run_python(block: Block, dsn: str, directory: Path) -> None:
    (directory / "example.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=directory, env=environment(dsn), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def run_shell(block: Block, dsn: str, programs: Path) -> None:
    script = "\n".join(command for command in commands(block) if is_cheap(command))
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", script], cwd=ROOT, env=environment(dsn, programs), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_guide_has_an_example_that_runs(guide: Path) -> None:
    assert str(guide.relative_to(ROOT)) in {block.document for block in examples()}


def test_the_readme_has_commands_that_run() -> None:
    assert "README.md" in {block.document for block in scripts()}


@pytest.mark.parametrize("block", examples(), ids=place)
def test_a_python_example_runs(block: Block, empty_database: str, tmp_path: Path, programs: Path) -> None:
    run_shell(MIGRATE, empty_database, programs)
    run_python(block, empty_database, tmp_path)


def test_the_suite_of_the_testing_guide_passes(empty_database: str, tmp_path: Path) -> None:
    for block in blocks((ROOT / "docs" / "testing.md").read_text()):
        if block.language == "python":
            (tmp_path / block.text.splitlines()[0].removeprefix("# ")).write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:locust", "-p", "no:schemathesis"], cwd=tmp_path,
        env=environment("") | {"PGQUEUE_TEST_DSN": empty_database}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.parametrize("block", scripts(), ids=place)
def test_the_cheap_commands_of_a_guide_run(block: Block, empty_database: str, programs: Path) -> None:
    run_shell(block, empty_database, programs)


def test_the_state_diagram_of_the_readme_is_the_core_s() -> None:
    diagrams = [block.text.strip() for block in blocks(README.read_text()) if block.language == "mermaid"]
    assert mermaid() in diagrams


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_session_names_lead_somewhere(document: Path) -> None:
    assert dead_references(document) == []


def test_the_command_of_continuous_integration_names_sessions_that_exist() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"\bnox\b.*-s", run)
    assert unknown_sessions(run) == []


def dead_references(document: Path) -> list[str]:
    markdown = document.read_text()
    prose = re.sub(r"^ *```.*?^ *```\s*$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in targets if not leads_somewhere(target, document)] + unknown_sessions(markdown)


def leads_somewhere(target: str, document: Path) -> bool:
    """A file of this project, or a heading; addresses elsewhere are not looked up."""
    if re.match(r"[a-z]+:", target):
        return True
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    return file.exists() and (not anchor or anchor in anchors(file))


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)}


def unknown_sessions(text: str) -> list[str]:
    """Names after `nox -s` that the noxfile does not define."""
    defined = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    named = re.findall(r"\bnox -s((?: +[a-z_]+)+)", text)
    return sorted({f"nox -s {name}" for names in named for name in names.split() if name not in defined})


# -- the rules above, on a document of our own -----------------------------------------------------------------

SAMPLE = """
```python
import os
from pgqueue_ref import Queue
with Queue.connect(os.environ["PGQUEUE_DATABASE_URL"]) as queue:
    assert queue.push("mail").created
```

<!-- not run: it starts an hour of load -->
```python
raise SystemExit(1)
```

```sh
# a comment
python -m pip install nox && python -m nox -s load
$ pgqueue-ref migrate
pgqueue-ref push mail \\
    --key once
pgqueue-ref worker --app myapp:kinds
```
"""


def test_blocks_are_found_and_run_as_the_convention_says(
    database: str, empty_database: str, tmp_path: Path, programs: Path
) -> None:
    good, excused, shell = blocks(SAMPLE)
    assert (good.language, good.not_run, good.line) == ("python", "", 3)
    assert excused.not_run == "it starts an hour of load"
    run_python(good, database, tmp_path)
    with pytest.raises(AssertionError):
        run_python(good, empty_database, tmp_path)
    assert [command for command in commands(shell) if is_cheap(command)] == [
        "pgqueue-ref migrate",
        "pgqueue-ref push mail      --key once",
    ]
    run_shell(shell, empty_database, programs)
    with pytest.raises(AssertionError):
        run_shell(Block("sh", "pgqueue-ref pusj", 1, ""), empty_database, programs)


def test_dead_references_are_found(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(
        "# One thing\n[a](x.md#one-thing) [b](nothing.md) [c](#two) [d](https://example.org)\n`nox -s lint nothing`\n"
    )
    assert dead_references(document) == ["nothing.md", "#two", "nox -s nothing"]
