"""TinyNet under the tests that transformers runs on its own vision models.

`run.py` copies this file to tests/models/tinynet/test_modeling_tinynet.py of transformers' source distribution: the
relative imports resolve there, and nowhere else.
"""

import copy
import unittest
import unittest.mock

import numpy as np
import torch
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.pipelines import ImageClassificationPipeline, ImageFeatureExtractionPipeline
from transformers.testing_utils import torch_device

from modeling_tinynet import (
    TinyNetBackbone,
    TinyNetConfig,
    TinyNetForImageClassification,
    TinyNetImageProcessor,
    TinyNetModel,
)

from ... import test_modeling_common
from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from ...test_modeling_common import ModelTesterMixin, floats_tensor
from ...test_pipeline_mixin import PipelineTesterMixin, pipeline_test_mapping, transformers_module

# The mixins look up by name what a class is for, in tables that list every model inside transformers.
MODEL_MAPPING_NAMES["tinynet"] = "TinyNetModel"
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["tinynet"] = "TinyNetForImageClassification"
MODEL_FOR_BACKBONE_MAPPING_NAMES["tinynet"] = "TinyNetBackbone"
IMAGE_PROCESSOR_MAPPING_NAMES["tinynet"] = {"torchvision": "TinyNetImageProcessor"}
transformers_module.TinyNetImageProcessor = TinyNetImageProcessor


def examples() -> list[Image.Image]:
    """Images of unequal sizes and of the modes that transformers' own pipeline tests take."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    return [image, image.resize((50, 40)), *(image.convert(mode) for mode in ("RGBA", "LA", "L"))]


class ImageClassificationPipelineTests:
    """What `PipelineTesterMixin` asks of a task; transformers' class of this name loads its images from the Hub."""

    def get_test_pipeline(self, model, tokenizer, image_processor, dtype):
        return ImageClassificationPipeline(model, image_processor=image_processor, top_k=2, dtype=dtype), examples()

    def run_pipeline_test(self, pipeline, examples):
        batch = pipeline(examples)
        assert len(batch) == len(examples)
        assert [pipeline(example) for example in examples] == batch
        for scores in batch:
            first, second = scores
            assert 1 >= first["score"] >= second["score"] >= 0
            assert {first["label"], second["label"]} < set(pipeline.model.config.id2label.values())


class ImageFeatureExtractionPipelineTests:
    """As above, for features."""

    def get_test_pipeline(self, model, tokenizer, image_processor, dtype):
        return ImageFeatureExtractionPipeline(model, image_processor=image_processor, dtype=dtype), examples()

    def run_pipeline_test(self, pipeline, examples):
        size = pipeline.model.config.hidden_size
        for features in pipeline(examples):
            assert np.shape(features) == (1, size, 1, 1)
        assert np.shape(pipeline(examples[0], pool=True)) == (1, size)


pipeline_test_mapping["image-classification"]["test"] = f"{__name__}.ImageClassificationPipelineTests"
pipeline_test_mapping["image-feature-extraction"]["test"] = f"{__name__}.ImageFeatureExtractionPipelineTests"


class TinyNetModelTester:
    is_training = True
    batch_size = 3
    image_size = 32
    num_hidden_layers = 2

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        """A stage that does not expand and one that does, each with a shortcut."""
        return TinyNetConfig(
            image_size=self.image_size,
            depth_multiplier=1.0,
            stem_channels=8,
            head_channels=24,
            kernel_sizes=[3, 5],
            strides=[1, 2],
            expand_ratios=[1, 6],
            out_channels=[8, 16],
            num_block_repeats=[1, 2],
            dropout_rate=0.0,
            num_labels=10,
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


class TinyNetModelTest(ModelTesterMixin, PipelineTesterMixin, unittest.TestCase):
    all_model_classes = (TinyNetModel, TinyNetForImageClassification, TinyNetBackbone)
    pipeline_model_mapping = {
        "image-feature-extraction": TinyNetModel,
        "image-classification": TinyNetForImageClassification,
    }
    has_attentions = False
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = TinyNetModelTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=TinyNetConfig,
            has_text_modality=False,
            common_properties=["num_channels", "image_size", "hidden_size", "hidden_sizes", "num_hidden_layers"],
            image_size=64,
            hidden_act="relu",
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="The input layer is a convolution, not an nn.Embedding")
    def test_model_get_set_embeddings(self):
        pass

    def test_reverse_loading_mapping(self):
        """The conversion of body and backbone changes the stem's weights, and renames nothing."""
        headless = (TinyNetModel, TinyNetBackbone)
        self.all_model_classes = (TinyNetForImageClassification,)
        super().test_reverse_loading_mapping()
        self.all_model_classes = headless
        super().test_reverse_loading_mapping(check_keys_were_modified=False)

    def test_hidden_states_output(self):
        """The mixin's own expects (batch, sequence, channels) of each state."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        shapes = [(3, 8, 16, 16), (3, 8, 16, 16), (3, 16, 8, 8)]
        for model_class in self.all_model_classes:
            by_config = copy.deepcopy(config)
            by_config.output_hidden_states = True
            with torch.no_grad():
                for outputs in (
                    model_class(config).to(torch_device)(**inputs, output_hidden_states=True),
                    model_class(by_config).to(torch_device)(**inputs),
                ):
                    self.assertEqual([tuple(state.shape) for state in outputs.hidden_states], shapes)

    def test_can_load_ignoring_mismatched_shapes(self):
        """The mixin's own, but that takes each field with "_std" in its name, so `image_std`, for an initialiser's."""
        with unittest.mock.patch.object(test_modeling_common, "_config_zero_init", copy.deepcopy):
            super().test_can_load_ignoring_mismatched_shapes()


class TinyNetBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (TinyNetBackbone,)
    config_class = TinyNetConfig
    has_attentions = False

    def setUp(self):
        self.model_tester = TinyNetModelTester(self)


class TinyNetImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18})


class TinyNetImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = TinyNetImageProcessingTester
    test_cast_dtype = True
