"""TinyNet image classifiers for transformers; importing this makes its Auto classes and pipelines know them."""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .adapters_tinynet import TINYNET_LORA
from .configuration_tinynet import TINYNET_VARIANTS, TinyNetConfig
from .image_processing_tinynet import TinyNetImageProcessor
from .modeling_tinynet import TinyNetBackbone, TinyNetForImageClassification, TinyNetModel, TinyNetPreTrainedModel

__version__ = "0.1.0.dev0"

AutoConfig.register(TinyNetConfig.model_type, TinyNetConfig, exist_ok=True)
AutoModel.register(TinyNetConfig, TinyNetModel, exist_ok=True)
AutoModelForImageClassification.register(TinyNetConfig, TinyNetForImageClassification, exist_ok=True)
AutoBackbone.register(TinyNetConfig, TinyNetBackbone, exist_ok=True)
AutoImageProcessor.register(
    TinyNetConfig, image_processor_classes={"torchvision": TinyNetImageProcessor}, exist_ok=True
)

__all__ = [
    "TINYNET_LORA",
    "TINYNET_VARIANTS",
    "TinyNetBackbone",
    "TinyNetConfig",
    "TinyNetForImageClassification",
    "TinyNetImageProcessor",
    "TinyNetModel",
    "TinyNetPreTrainedModel",
]
