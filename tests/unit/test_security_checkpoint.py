"""A crafted checkpoint runs no code: what no hash vouches for is not unpickled."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest

from primus.artifacts.manifest import FileRecord
from primus.artifacts.run import CheckpointManifest
from primus.artifacts.tokens import TokenizerManifest
from primus.errors import ArtifactError
from primus.trainer import checkpoint_directory
from tests.unit.crafted import Payload
from tests.unit.damage import manifest

ROOT = Path(__file__).parents[2]
CODE = sorted((ROOT / "primus").rglob("*.py"))
# Whoever may read what can hold a pickle. The first two verify, and ask the last, before they do,
# which is tested below and in the tests of the trainer and of the export; two more are the first's.
RESTRICTED = "primus/pickles.py"
UNPICKLERS = {
    *("primus/trainer/checkpoint.py", "primus/huggingface/checkpoint.py"),
    *("primus/trainer/checkpoint_read.py", "primus/trainer/checkpoint_layout.py", RESTRICTED),
}
READS_PICKLES = {
    *("dist_checkpointing.load", "dist_checkpointing.load_tensors_metadata"),
    *("dist_checkpointing.load_common_state_dict", "dist_checkpointing.load_plain_tensors"),
    *("FileSystemReader", "dcp_load", "torch.load", "read_metadata"),
}
NEVER = {
    *("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "eval", "exec"),
    *("numpy.load", "np.load", "os.system", "os.popen", "subprocess.getoutput", "yaml.load"),
    *("yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "subprocess.getstatusoutput"),
}


def used(tree: ast.AST) -> set[str]:
    """Dotted names of what a module calls, imports, or derives from."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function):
                found.add(ast.unparse(function))
            case ast.Import(names=names):
                found.update(name.name for name in names)
            case ast.ImportFrom(module=module, names=names):
                found.update([module or "", *(name.name for name in names)])
            case ast.ClassDef(bases=bases):
                found.update(ast.unparse(base) for base in bases)
    return found


def test_pickle_is_used_to_refuse_alone() -> None:
    text = (ROOT / RESTRICTED).read_text(encoding="utf-8")
    attributes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    of_pickle = {node.attr for node in attributes if ast.unparse(node.value) == "pickle"}
    assert of_pickle == {"Unpickler", "UnpicklingError"}


def keywords(tree: ast.AST) -> list[tuple[str, str]]:
    """Keyword arguments of every call, as text."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(k.arg, ast.unparse(k.value)) for call in calls for k in call.keywords if k.arg]


def test_the_search_sees_what_it_looks_for() -> None:
    tree = ast.parse("import pickle\nfrom a import dcp_load\ntorch.load(x, weights_only=False)")
    assert {"pickle", "dcp_load", "torch.load"} <= used(tree)
    assert keywords(tree) == [("weights_only", "False")]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_and_pickles_are_read_by_few(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = used(tree)
    assert not names & (NEVER - {"pickle"} if str(path.relative_to(ROOT)) == RESTRICTED else NEVER)
    if str(path.relative_to(ROOT)) not in UNPICKLERS:
        assert not names & READS_PICKLES
    unsafe = {
        ("shell", "True"),
        ("trust_remote_code", "True"),
        ("weights_only", "False"),
        ("allow_pickle", "True"),
        ("use_safetensors", "False"),
    }
    assert not unsafe & set(keywords(tree))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).endswith("from_pretrained"):
            assert ("trust_remote_code", "False") in keywords(call), ast.unparse(call)


def checkpoint(root: Path) -> Path:
    """A published checkpoint whose pickles are harmless."""
    directory = root / "iter_0000003"
    directory.mkdir(parents=True)
    for name in (".metadata", "common.pt", "__0_0.distcp"):
        (directory / name).write_bytes(pickle.dumps({}))
    content = json.loads(manifest(CheckpointManifest)) | {
        "files": {
            path.name: FileRecord.of(path).model_dump() for path in sorted(directory.iterdir())
        }
    }
    (directory / "manifest.json").write_text(json.dumps(content))
    checkpoint_directory.verify(directory, "text")
    return directory


@pytest.mark.fault(
    40,
    injected="a checkpoint whose .metadata or common.pt would run code, listed or not",
    observed="refused by its manifest before anything is unpickled",
)
@pytest.mark.parametrize("name", [".metadata", "common.pt"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_crafted_pickle_is_refused(tmp_path: Path, name: str, listed: bool) -> None:
    directory, made = checkpoint(tmp_path), tmp_path / "made"
    (directory / name).write_bytes(pickle.dumps(Payload(made)))
    if not listed:
        path = directory / "manifest.json"
        content = json.loads(path.read_text())
        del content["files"][name]
        path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=name):
        checkpoint_directory.verify(directory, "text")
    if not listed:
        # What every load asks for first, on every rank.
        with pytest.raises(ArtifactError, match="not in its manifest"):
            checkpoint_directory.load_manifest(directory, "text")
    assert not made.exists()
    pickle.loads((directory / name).read_bytes())  # noqa: S301
    assert made.exists(), "the payload is a real one"


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a/../../x", "", "..", "a\x1bb", "a\nb"]
)
@pytest.mark.parametrize("kind", [CheckpointManifest, TokenizerManifest])
def test_a_manifest_names_no_file_outside_its_directory(kind: type, name: str) -> None:
    content = json.loads(manifest(kind))
    content["files"] = {name: content["files"]["name"]}
    with pytest.raises(ArtifactError, match="does not lie beside the manifest"):
        kind.from_content(content, "manifest.json")
