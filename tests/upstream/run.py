"""
Runs the tests that transformers' own repository runs on every vision model against TinyNet:

    python tests/upstream/run.py [--sdist PATH] [arguments of pytest]

They come from the source distribution of the installed transformers, which is downloaded once into build/ and unpacked
into a temporary folder; `tinynet_tests.py` joins them there as tests/models/tinynet/test_modeling_tinynet.py. Beside
the test extra this needs `parameterized`. Exits with pytest's code.

The distribution holds the top level of tests/ only. Of what that imports from further down,
- the configuration's common arguments (tests/utils) are written anew below;
- the mixin of the exporters' tests is empty here: `test_exports_with_a_dynamic_batch` is what we have of them;
- the mixin of the generation tests is empty: TinyNet does not generate;
- the checks of a single pipeline (tests/pipelines), which want images from the network, are ours.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).resolve().parents[2]
TEST_MODULE = "tests/models/tinynet/test_modeling_tinynet.py"
# Written where the distribution has no such file.
STAND_INS = {
    "pytest.ini": "[pytest]\n",
    # Executed to get at the installed `transformers`; the distribution's own copy must not be imported beside it.
    "src/transformers/__init__.py": "",
    "tests/__init__.py": "",
    "tests/models/__init__.py": "",
    "tests/models/tinynet/__init__.py": "",
    "tests/utils/__init__.py": "",
    # Every field of PreTrainedConfig that a user sets, each with a value that is not its default.
    "tests/utils/test_configuration_utils.py": """config_common_kwargs = {
        "return_dict": False,
        "output_hidden_states": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["TinyNetModel"],
        "id2label": {0: "label"},
        "label2id": {"label": 0},
        "problem_type": "regression",
    }""",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin: ...",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin: ...",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url): return url",
}


def download_sdist(folder: Path) -> Path:
    """The source distribution of the installed transformers, downloaded unless it is in `folder` already."""
    requirement = f"transformers=={transformers.__version__}"
    sdist = folder / f"transformers-{transformers.__version__}.tar.gz"
    if not sdist.exists():
        # The distribution is built as far as its metadata, for which pip makes an environment of its own.
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers", "--dest", folder]
        subprocess.run([sys.executable, "-m", *command, requirement], check=True)
    return sdist


def unpack_tests(sdist: Path, folder: Path) -> None:
    """The distribution's tests/ below `folder`, with our test module among them and stand-ins for what is missing."""
    top = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        members = [member for member in archive if member.name.startswith(f"{top}/tests/")]
        archive.extractall(folder, members, filter="data")
    (folder / top / "tests").rename(folder / "tests")
    for name, text in STAND_INS.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    shutil.copy(Path(__file__).with_name("tinynet_tests.py"), folder / TEST_MODULE)


def write_tiny_models(folder: Path) -> None:
    """One small saved folder for each class a pipeline runs, laid out as transformers' create_dummy_models.py does."""
    from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor, TinyNetModel

    config = TinyNetConfig.from_variant("tinynet_e", image_size=32, num_labels=3)
    summary = {}
    for model_class in (TinyNetModel, TinyNetForImageClassification):
        path = folder / config.model_type / model_class.__name__
        model_class(config).save_pretrained(path)
        TinyNetImageProcessor.from_config(config).save_pretrained(path)
        summary[model_class.__name__] = {"tokenizer_classes": [], "processor_classes": ["TinyNetImageProcessor"]}
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run transformers' own tests of vision models against TinyNet.")
    parser.add_argument("--sdist", type=Path, help="transformers-<version>.tar.gz; downloaded when not given")
    arguments, pytest_arguments = parser.parse_known_args()
    sys.path.insert(0, str(ROOT))
    sdist = arguments.sdist or download_sdist(ROOT / "build")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack_tests(sdist, folder)
        write_tiny_models(folder / "tiny_models")
        environment = {
            **os.environ,
            "HF_HOME": str(folder / "hf_home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TRANSFORMERS_TINY_MODEL_PATH": str(folder / "tiny_models"),
        }
        command = ["pytest", "-q", "-W", "ignore::pytest.PytestUnknownMarkWarning", TEST_MODULE, *pytest_arguments]
        return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
