"""A folder that brings its own code, loaded by a process that cannot import the package."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import skimage.data
import torch
from PIL import Image
from transformers.dynamic_module_utils import custom_object_save

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from tests import launcher

AUTO_MAP = {
    "AutoConfig": "configuration_tinynet.TinyNetConfig",
    "AutoModel": "modeling_tinynet.TinyNetModel",
    "AutoModelForImageClassification": "modeling_tinynet.TinyNetForImageClassification",
    "AutoBackbone": "modeling_tinynet.TinyNetBackbone",
    "AutoImageProcessor": "image_processing_tinynet.TinyNetImageProcessor",
}

# Computes on copies: a tensor mapped from the file may start anywhere, and is then rounded otherwise.
SCRIPT = """
import copy, importlib, json, sys

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
)

sys.modules["modeling_tinynet"] = None  # however it is installed, importing it now fails
try:
    importlib.import_module("modeling_tinynet")
except ImportError:
    pass
else:
    sys.exit("modeling_tinynet can be imported: the test would prove nothing")

folder, image = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
classifier = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
backbone = type(AutoBackbone.from_config(config, trust_remote_code=True)).from_pretrained(folder)
classify = pipeline("image-classification", model=folder, trust_remote_code=True)

pixel_values = processor(Image.open(image), return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    tensors = {
        "pixel_values": pixel_values,
        "pooler_output": copy.deepcopy(model).eval()(pixel_values).pooler_output,
        "logits": copy.deepcopy(classifier).eval()(pixel_values).logits,
        "feature_map": copy.deepcopy(backbone).eval()(pixel_values).feature_maps[-1],
    }
save_file(tensors, "tensors.safetensors")
objects = {
    "AutoConfig": config,
    "AutoImageProcessor": processor,
    "AutoModel": model,
    "AutoModelForImageClassification": classifier,
    "AutoBackbone": backbone,
}
print(json.dumps({
    "classes": {name: [type(made).__module__, type(made).__name__] for name, made in objects.items()},
    "config": config.to_dict(),
    "preprocessor_config": processor.to_dict(),
    "pipeline": classify(image, top_k=3),
}))
"""


@dataclass
class Remote:
    """What the other process found, and what this one expects of it."""

    folder: Path
    model: TinyNetForImageClassification
    processor: TinyNetImageProcessor
    image: Path
    tensors: dict[str, torch.Tensor]
    report: dict


@pytest.fixture(scope="module")
def remote(tmp_path_factory) -> Remote:
    folder, elsewhere = tmp_path_factory.mktemp("tinynet-e"), tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    model = TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e", auto_map=AUTO_MAP)).eval()
    torch.nn.init.normal_(model.classifier.weight)  # else a thousand classes score nearly the same
    processor = TinyNetImageProcessor.from_config(model.config)
    processor.auto_map = {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
    for made in (model, processor):
        made.save_pretrained(folder)
        custom_object_save(made, folder)  # the file of its class, and the siblings which that imports
    image = elsewhere / "coffee.png"
    Image.fromarray(skimage.data.coffee()).save(image)

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(elsewhere / "modules"), "HF_HUB_OFFLINE": "1"}
    process = launcher.run(["-c", SCRIPT, folder, image], cwd=elsewhere, env=environment)
    assert process.returncode == 0, process.stderr
    tensors = safetensors.torch.load_file(elsewhere / "tensors.safetensors")
    return Remote(folder, model, processor, image, tensors, json.loads(process.stdout))


def test_every_auto_class_takes_the_folders_own_code(remote):
    for auto_class, (module, name) in remote.report["classes"].items():
        assert module.startswith("transformers_modules.")
        assert f"{module.rsplit('.')[-1]}.{name}" == AUTO_MAP[auto_class]
    assert set(remote.report["classes"]) == set(AUTO_MAP)


@pytest.mark.parametrize("name", ["config", "preprocessor_config"])
def test_every_setting_of_the_files_arrives(remote, name):
    saved = json.loads((remote.folder / f"{name}.json").read_text())
    assert {key: remote.report[name].get(key) for key in saved} == saved


def test_outputs_are_the_packages_to_the_bit(remote):
    pixel_values = remote.processor(Image.open(remote.image), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        outputs = remote.model(pixel_values, output_hidden_states=True)
        pooler_output = remote.model.tinynet(pixel_values).pooler_output
    assert torch.equal(remote.tensors["pixel_values"], pixel_values)
    assert torch.equal(remote.tensors["logits"], outputs.logits)
    assert torch.equal(remote.tensors["pooler_output"], pooler_output)
    assert torch.equal(remote.tensors["feature_map"], outputs.hidden_states[-1])


def test_the_pipeline_names_the_best_classes(remote):
    best = remote.tensors["logits"][0].softmax(-1).topk(3)
    expected = [
        {"label": remote.model.config.id2label[index.item()], "score": pytest.approx(score.item(), rel=1e-5)}
        for score, index in zip(best.values, best.indices, strict=True)
    ]
    assert remote.report["pipeline"] == expected
