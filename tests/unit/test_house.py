"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from primus.config.schema.keys import STAGES

ROOT = Path(__file__).parents[2]
CODE = sorted(path for folder in ("primus", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
RULES = sorted(ROOT.glob("rules/*.smk"))
MAKE_TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def tracked_text() -> dict[str, str]:
    """Every tracked file that is text, by path."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = {}
    for name in filter(None, names):
        try:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
    return found


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method in `tree`."""
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def swallowed(tree: ast.AST) -> list[int]:
    """Lines of handlers that catch everything and do nothing."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]


def unquoted(text: str) -> list[str]:
    """Interpolations in the shell commands of a rules file that the shell would split or run."""
    commands = re.findall(r"^ {4}shell:\n((?: {8}.*\n)+)", text, re.MULTILINE)
    fields = [
        field
        for command in commands
        for field in re.findall(r"\{([^{}]+)\}", command.replace("{{", "").replace("}}", ""))
    ]
    return [field for field in fields if not field.endswith(":q")]


def test_the_checks_see_what_they_look_for() -> None:
    source = "def f():\n    try:\n        g()\n    except Exception:\n        pass\n"
    assert swallowed(ast.parse(source)) == [4]
    rule = 'rule a:\n    shell:\n        "a {input.x} {{b}} "\n        "{output:q}"\n'
    assert unquoted(rule) == ["input.x"]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    long = {
        f.name: length
        for f in functions(ast.parse(text))
        if (length := (f.end_lineno or f.lineno) - f.lineno + 1) > 60
    }
    assert not long


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_module_is_short(stage: str) -> None:
    assert len((ROOT / f"primus/{stage}.py").read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize("stage", STAGES)
def test_help_of_a_stage_imports_nothing_heavy(stage: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['primus.{stage}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('primus.{stage}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'megatron', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--settings" in done.stdout
    assert "--output" in done.stdout


def test_nothing_is_named_utils() -> None:
    assert not [name for name in tracked_text() if Path(name).name in ("utils.py", "helpers.py")]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_is_swallowed_and_no_yaml_runs_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not swallowed(ast.parse(text))
    assert "yaml.load(" not in text
    # What refuses to unpickle is a pickle.Unpickler itself; tests/unit/test_security_checkpoint.py.
    if path.name != "pickles.py":
        assert not re.search(r"^\s*(import|from) pickle\b", text, re.MULTILINE)


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_shell_commands_quote_what_they_insert(path: Path) -> None:
    assert not unquoted(path.read_text(encoding="utf-8"))


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    forbidden = re.compile(
        r"(pypi|pythonhosted|(deb|security)\.debian|download\.pytorch)\.(org|net)"
        r"|/(work/main|work/shared|home/\w+|root/)"
    )
    this = str(Path(__file__).relative_to(ROOT))
    found = {
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}": match[0]
        for name, text in tracked_text().items()
        if name != this
        for match in forbidden.finditer(text)
    }
    assert not found


def test_readme_starts_with_commands_that_exist() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [line.split()[:2] for line in blocks[0].splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_make_targets_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"`make ([a-z][a-z-]*)`", (ROOT / name).read_text()))
    named |= set(re.findall(r"^make ([a-z][a-z-]*)", (ROOT / name).read_text(), re.MULTILINE))
    assert named, "no make target is named"
    assert named <= MAKE_TARGETS


def test_every_page_of_documentation_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = [name for name in tracked_text() if re.fullmatch(r"docs/[^/]+\.md", name)]
    assert pages
    assert not [page for page in pages if f"({page})" not in readme]


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{name}: {target}"
        for name, text in tracked_text().items()
        if name.endswith(".md")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        if "://" not in target and not (ROOT / name).parent.joinpath(target).exists()
    ]
    assert not broken


def test_the_readme_maps_every_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = {name.split("/")[0] for name in tracked_text() if "/" in name}
    folders |= {
        "/".join(name.split("/")[:2])
        for name in tracked_text()
        if re.match(r"primus/[a-z]+/", name)
    }
    assert not [folder for folder in folders if f"`{folder}/`" not in readme]


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of the modules that are imported, wherever that stands."""
    whole = [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    parts = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    return {name.partition(".")[0] for name in (*whole, *parts)}


def undeclared(names: set[str], project: dict[str, Any]) -> list[str]:
    """Names that are neither Python's, ours, nor of a dependency or extra of the project."""
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(one for extra in extras for one in extra)]
    declared = {canonicalize_name(Requirement(one).name) for one in asked}
    installed = importlib.metadata.packages_distributions()
    return [
        name
        for name in sorted(names - sys.stdlib_module_names - {"primus"})
        # What is not installed, an extra, has to be called as its package is.
        if not declared & {canonicalize_name(one) for one in installed.get(name, [name])}
    ]


def test_every_package_that_is_imported_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        name
        for path in (ROOT / "primus").rglob("*.py")
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {"torch", "yaml", "huggingface_hub", "lm_eval"} <= names
    assert not undeclared(names, project)


def test_an_import_that_nobody_asked_for_is_seen() -> None:
    source = "import os, yaml\ndef f():\n    from torch.a import b\n    import c_d.e\n"
    names = imported(ast.parse(source))
    assert {"os", "yaml", "torch", "c_d"} <= names
    extras = {"x": ["C.D[more]>=1"]}
    project = {"dependencies": ["torch==1"], "optional-dependencies": extras}
    assert undeclared(names, project) == ["yaml"]


def test_no_rule_has_an_f_string_as_its_docstring() -> None:
    """From Python 3.12 on Snakemake does not parse it, and the tests run on 3.11 alone."""
    files = [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]
    assert len(files) > 10
    begins = re.compile(r"""^\s*(rule|checkpoint)\b.*:\n\s*r?f["']""", re.MULTILINE)
    assert [path.name for path in files if begins.search(path.read_text())] == []
    assert begins.search('    rule:\n        f"""train {name}"""\n')


def locked(name: str) -> dict[str, str]:
    """Version of each package in a lock file."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_the_lock_holds_every_dependency_and_no_gpu_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dev = (ROOT / "requirements/dev.in").read_text()
    for asked, lock in (
        (project["dependencies"], locked("lock.txt")),
        (re.findall(r"^[^#\n]+", dev, re.MULTILINE), locked("lock-dev.txt")),
    ):
        names = {re.split(r"[<>=\[]", requirement)[0] for requirement in asked} - {"torch"}
        assert names <= set(lock)
        assert not [name for name in lock if name.startswith(("nvidia", "cuda", "triton"))]
    shared = locked("lock.txt").keys() & locked("lock-dev.txt").keys()
    assert shared
    assert not [n for n in shared if locked("lock.txt")[n] != locked("lock-dev.txt")[n]]


def test_what_is_carried_to_a_gpu_has_the_locked_versions() -> None:
    text = (ROOT / "benchmarks/carried.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    assert "megatron-core" in pins
    assert pins.items() <= locked("lock.txt").items()


def test_the_locks_have_hashes_and_name_no_place() -> None:
    for path in (ROOT / "requirements").glob("lock*.txt"):
        text = path.read_text()
        pins = re.findall(r"^\S+==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", text, re.M)
        assert len(pins) == len(locked(path.name)) > 10
        assert not re.search(r"^--|://|^-[fie]", text, re.MULTILINE)


@pytest.mark.skipif("CI" not in os.environ, reason="a developer may have other versions installed")
def test_the_environment_is_the_locked_one() -> None:
    pins = locked("lock.txt") | locked("lock-dev.txt")
    wrong = {
        name: (version, found)
        for name, version in pins.items()
        if (found := importlib.metadata.version(name)) != version
    }
    assert not wrong


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by name alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]
