"""Rules of the tree that no linter knows: who may import whom, what the wheel holds, no pickle, no machine paths."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WHEEL = "modeling_tinynet"
ENTRY_POINTS = {"train", "eval", "convert"}
MAY_IMPORT = {
    WHEEL: set(),
    "training": {WHEEL, "training"},
    "hub_card": {WHEEL, "hub_card", "training"},  # see SHARED_WITH_HUB_CARD
    "conversion": {WHEEL, "conversion"},
}
# Modules of training/ that hub_card and conversion share with it, and how all commands end: they import nothing but
# Python's own and each other, so that what is shared is these files and not the trainer.
SHARED = {"training.errors", "training.command"}
# The folders and files of training/, each with what it may import: itself and what stands before it.
LAYERS = [
    "errors",
    "command",
    "system",
    "config",
    "data",
    "transforms",
    "loading",
    "modeling",
    "optim",
    "evaluation",
    "reporting",
    "run",
    "engine",
    "explain",
    "doctor",
    "audit",
    "prepare",
    "compare",
]
SHARED_WITH_HUB_CARD = {"training.run.finished_run"}
# Distributions whose import name is another.
IMPORT_NAMES = {
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "pillow-jxl-plugin": "pillow_jxl",
    "markdown-it-py": "markdown_it",
    "protobuf": "google",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Written so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(tmp|root|home|work|Users)/")


def project_files() -> list[Path]:
    """Files under version control or about to be: what .gitignore names is not the project's."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [Path(name) for name in names if name and (ROOT / name).is_file()]


FILES = project_files()
TREES = {path: ast.parse((ROOT / path).read_bytes()) for path in FILES if path.suffix == ".py"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {path.with_suffix("").parts[0] for path in TREES}


def place(path: Path, node: ast.AST) -> str:
    return f"{path}:{node.lineno}"


def imports(tree: ast.Module) -> Iterator[tuple[str, ast.Import | ast.ImportFrom]]:
    """Absolute imports, in functions too, as (top-level name, node)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], node


def torch_function(node: ast.AST) -> str | None:
    """The attribute's name if `node` is `torch.<name>`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        return node.attr
    return None


def in_wheel() -> list[Path]:
    return [path for path in TREES if path.parts[0] == WHEEL]


def test_imports_go_in_one_direction():
    wrong = [
        f"{place(path, node)} imports {name}"
        for path, tree in TREES.items()
        for name, node in imports(tree)
        if path.parts[0] in MAY_IMPORT and name in OURS - MAY_IMPORT[path.parts[0]]
        if not (path.parts[0] == "conversion" and getattr(node, "module", None) in SHARED)
    ]
    assert wrong == []


def test_what_hub_card_and_conversion_share_with_training_imports_only_python_and_itself():
    wrong = [
        f"{place(path, node)} imports {name}"
        for path in [Path(f"{module.replace('.', '/')}.py") for module in SHARED]
        for name, node in imports(TREES[path])
        if name not in sys.stdlib_module_names and getattr(node, "module", None) not in SHARED
    ]
    assert wrong == []
    assert len(TREES[Path("training/__init__.py")].body) == 1  # its docstring: it is imported too


def test_folders_of_training_import_in_one_direction():
    layers = {path.parts[1].removesuffix(".py") for path in TREES if path.parts[0] == "training"} - {"__init__"}
    assert layers == set(LAYERS)
    wrong = [
        f"{place(path, node)} imports {node.module}"
        for path, tree in TREES.items()
        if path.parts[0] == "training" and path.parts[1] != "__init__.py"
        for name, node in imports(tree)
        if name == "training"
        and LAYERS.index(node.module.split(".")[1]) > LAYERS.index(path.parts[1].removesuffix(".py"))
    ]
    assert wrong == []


def test_nothing_but_tests_imports_an_entry_point():
    wrong = [
        f"{place(path, node)} imports {name}"
        for path, tree in TREES.items()
        for name, node in imports(tree)
        if path.parts[0] != "tests" and name in ENTRY_POINTS
    ]
    assert wrong == []


def is_main_block(node: ast.AST) -> bool:
    """`if __name__ == "__main__":`"""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def test_every_command_ends_by_run_command():
    """It alone says what is wrong, in one way, and ends loader workers; and one class reads command lines."""
    commands = {
        path: [node for node in tree.body if is_main_block(node)][-1]
        for path, tree in TREES.items()
        if path.parts[0] not in {"tests", "benchmarks"} and any(map(is_main_block, tree.body))
    }
    wrong = [str(path) for path, block in commands.items() if "run_command(main" not in ast.unparse(block)]
    assert wrong == ["train.py"]  # whose tests and drills call the same line as `run`
    assert "return run_command(main" in ast.unparse(TREES[Path("train.py")])
    assert "sys.exit(run(sys.argv[1:]))" in ast.unparse(commands[Path("train.py")])
    parsers = [
        place(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "argparse.ArgumentParser"
        if path.parts[0] not in {"tests", "benchmarks"}
    ]
    assert parsers == []


def test_convert_shares_the_reader_of_class_names_and_no_more_with_training():
    """It has to run where the packages that train are not installed; of those, that reader needs none."""
    files = [path for path in TREES if path.parts[0] in {"convert.py", "conversion"}]
    shared = {node.module for path in files for name, node in imports(TREES[path]) if name == "training"}
    assert shared == {"training.data.class_names", *SHARED}
    files += [Path(f"{module.replace('.', '/')}.py") for module in shared]
    assert undeclared(files, extras=["convert"]) == []


def test_hub_card_shares_the_reader_of_finished_runs_and_no_more_with_training():
    files = [path for path in TREES if path.parts[0] == "hub_card"]
    assert {
        node.module for path in files for name, node in imports(TREES[path]) if name == "training"
    } == SHARED_WITH_HUB_CARD | SHARED
    code = (
        f"import sys, {', '.join(SHARED_WITH_HUB_CARD)}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    assert answer.stdout == "[]\n"  # whoever publishes does not load the trainer


def test_wheel_is_one_flat_folder_with_sibling_imports():
    nested = [str(path) for path in in_wheel() if len(path.parts) != 2]
    not_siblings = [
        place(path, node)
        for path in in_wheel()
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ImportFrom) and (node.level > 1 or (node.level == 1 and "." in (node.module or "")))
    ]
    assert nested == []
    assert not_siblings == []


def undeclared(paths: list[Path], extras: list[str]) -> list[str]:
    """Imports of what is neither ours, nor Python's, nor among the dependencies and the extras named."""
    requirements = [*PROJECT["dependencies"], *(r for e in extras for r in PROJECT["optional-dependencies"][e])]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]
    known = {IMPORT_NAMES.get(name, name) for name in names} | set(sys.stdlib_module_names) | OURS
    return [
        f"{place(path, node)} imports {name}"
        for path in paths
        for name, node in imports(TREES[path])
        if name not in known
    ]


def test_wheel_imports_only_its_dependencies():
    assert undeclared(in_wheel(), extras=[]) == []


def test_the_rest_imports_only_what_its_extras_declare():
    rest = [path for path in TREES if path.parts[0] not in {"tests", "benchmarks"}]
    assert undeclared(rest, extras=["train", "fast", "formats", "convert"]) == []


def test_tests_and_benchmarks_import_only_what_the_test_extra_declares():
    proofs = [path for path in TREES if path.parts[0] in {"tests", "benchmarks"}]
    assert undeclared(proofs, extras=["train", "fast", "convert", "test"]) == []


def test_every_requirement_has_a_lower_bound():
    """`make oldest` installs it; without one, what is allowed is whatever was ever published."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wrong = [
        requirement
        for group in groups
        for requirement in group
        if not requirement.startswith(PROJECT["name"]) and not re.fullmatch(r"[\w-]+>=[\d.]+", requirement)
    ]
    assert wrong == []


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    assert [line.split()[1] for line in shown.splitlines()] == phony.split()


def test_the_workflow_runs_the_same_checks_from_the_oldest_python_on():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands == {"checks": [".ci/run"], "oldest": ["make oldest"]}
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert jobs["checks"]["strategy"]["matrix"]["python"][0] == oldest
    assert jobs["oldest"]["steps"][1]["with"]["python-version"] == oldest
    assert f"OLDEST_PYTHON ?= python{oldest}\n" in (ROOT / "Makefile").read_text()


def test_wheel_annotations_are_not_strings():
    """The future import turns `config_class` into a string and makes `@strict` accept wrong types."""
    wrong = [place(path, node) for path in in_wheel() for name, node in imports(TREES[path]) if name == "__future__"]
    assert wrong == []


def test_built_wheel_holds_only_the_model_package(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {path.as_posix() for path in FILES if path.parts[0] == WHEEL}
    assert f"{WHEEL}/py.typed" in packed


def test_names_say_what_a_module_is_for():
    assert [str(path) for path in TREES if path.name in {"utils.py", "helpers.py", "common.py", "misc.py"}] == []


def test_nothing_is_pickled():
    wrong = [
        f"{place(path, node)} imports {name}"
        for path, tree in TREES.items()
        for name, node in imports(tree)
        if path.parts[0] != "tests" and name in PICKLERS
    ]
    wrong += [
        f"{place(path, node)} uses torch.save"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if path.parts[0] != "tests" and torch_function(node) == "save"
    ]
    assert wrong == []


def test_torch_load_reads_weights_only():
    calls = [
        (path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and torch_function(node.func) == "load"
    ]
    wrong = [
        place(path, call)
        for path, call in calls
        if not any(
            keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            for keyword in call.keywords
        )
    ]
    assert wrong == []


def test_torch_functions_are_called_by_their_full_name():
    """`from torch import load` would pass the two tests above unseen."""
    wrong = [
        place(path, node)
        for path, tree in TREES.items()
        for name, node in imports(tree)
        if name == "torch" and isinstance(node, ast.ImportFrom) and {"load", "save"} & {a.name for a in node.names}
    ]
    assert wrong == []


def test_no_file_names_a_path_of_one_machine():
    wrong = []
    for path in FILES:
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # images and checkpoints
        wrong += [
            f"{path}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if MACHINE_PATH.search(line)
        ]
    assert wrong == []


@pytest.mark.parametrize("line", ["see /" + "tmp/x", "path: /" + "home/me/x", "'/" + "root/.cache'"])
def test_machine_paths_are_recognised(line):
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["https://example.org/home/page", "../work/x", "src/tmp/x", "~/tmp/x"])
def test_other_paths_are_not_machine_paths(line):
    assert not MACHINE_PATH.search(line)
