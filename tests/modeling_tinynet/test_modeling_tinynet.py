"""The network against timm's, with the same weights, and the parts of the PreTrainedModel contract people lean on."""

import copy
import json

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification

from modeling_tinynet import (
    TINYNET_VARIANTS,
    TinyNetBackbone,
    TinyNetConfig,
    TinyNetForImageClassification,
    TinyNetModel,
)


def randomize_batch_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters away from their trivial initial values, so that a mix-up cannot hide."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, mean, std in (
                (module.running_mean, 0.0, 0.1),
                (module.running_var, 1.0, 0.1),
                (module.weight.data, 1.0, 0.1),
                (module.bias.data, 0.0, 0.1),
            ):
                tensor.copy_(torch.normal(mean, std, tensor.shape, generator=generator).abs())
    return model


def twins(variant: str, **config) -> tuple[nn.Module, TinyNetForImageClassification]:
    """timm's network and ours with the same weights."""
    theirs = randomize_batch_norms(timm.create_model(variant, num_classes=config.get("num_labels", 1000)))
    ours = TinyNetForImageClassification(TinyNetConfig.from_variant(variant, **config))
    state_dict = {
        key if key.startswith("classifier.") else f"tinynet.{key}": tensor
        for key, tensor in theirs.state_dict().items()
    }
    ours.load_state_dict(state_dict, strict=True)
    return theirs, ours


def images_for(config: TinyNetConfig, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.num_channels, config.image_size, config.image_size, generator=generator)


def realigned(model: nn.Module) -> nn.Module:
    """
    A copy in freshly allocated memory. from_pretrained maps the file, whose tensors start anywhere; for those, oneDNN
    on one thread picks a depthwise kernel that rounds differently, which would blur a comparison to the bit.
    """
    return copy.deepcopy(model).eval()


@pytest.fixture
def small_config() -> TinyNetConfig:
    return TinyNetConfig.from_variant("tinynet_e", num_labels=5, image_size=32, dropout_rate=0.0)


@pytest.fixture
def small_model(small_config) -> TinyNetForImageClassification:
    torch.manual_seed(0)
    return randomize_batch_norms(TinyNetForImageClassification(small_config)).eval()


@pytest.mark.parametrize("recording_gradients", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_logits_and_every_hidden_state_match_timm_to_the_bit(variant, memory_format, recording_gradients):
    theirs, ours = (model.eval().to(memory_format=memory_format) for model in twins(variant))
    images = images_for(ours.config).to(memory_format=memory_format)
    with torch.set_grad_enabled(recording_gradients):
        outputs = ours(images, output_hidden_states=True)
        features = theirs.forward_features(images)
        stages = [theirs.bn1(theirs.conv_stem(images))]
        for stage in theirs.blocks:
            stages.append(stage(stages[-1]))
        assert (outputs.logits - theirs(images)).abs().max() == 0.0
        assert (ours.tinynet(images).last_hidden_state - features).abs().max() == 0.0
    assert len(outputs.hidden_states) == len(stages) == 8
    for hidden_state, stage in zip(outputs.hidden_states, stages, strict=True):
        assert (hidden_state - stage).abs().max() == 0.0


def test_pooled_features_match_timm():
    theirs, ours = twins("tinynet_e", num_labels=5, image_size=64)
    images = images_for(ours.config)
    pooled = theirs.eval().forward_head(theirs.forward_features(images), pre_logits=True)
    assert (ours.eval().tinynet(images).pooler_output - pooled).abs().max() == 0.0


@pytest.mark.parametrize("variant", TINYNET_VARIANTS)
def test_training_gradients_match_timm(variant):
    theirs, ours = twins(variant, num_labels=10, image_size=96, dropout_rate=0.0)
    images, labels = images_for(ours.config, batch=4), torch.tensor([3, 1, 4, 1])
    nn.functional.cross_entropy(theirs.train()(images), labels).backward()
    ours.train()(images, labels=labels).loss.backward()
    ours_by_name = {name.removeprefix("tinynet."): parameter for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(ours_by_name[name].grad, parameter.grad, rtol=1e-5, atol=1e-5 * scale)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.tinynet.get_buffer(name), buffer, rtol=1e-5, atol=1e-5)


def test_drop_path_rates_match_timm():
    theirs = timm.create_model("tinynet_b", drop_path_rate=0.1)
    ours = TinyNetModel(TinyNetConfig.from_variant("tinynet_b", drop_path_rate=0.1))
    for their_stage, our_stage in zip(theirs.blocks, ours.blocks, strict=True):
        for their_block, our_block in zip(their_stage, our_stage, strict=True):
            assert our_block.drop_path.drop_prob == pytest.approx(getattr(their_block.drop_path, "drop_prob", 0.0))


def test_drop_path_draws_timms_masks():
    _, ours = twins("tinynet_e", num_labels=10, image_size=64, dropout_rate=0.0, drop_path_rate=0.5)
    theirs = timm.create_model("tinynet_e", num_classes=10, drop_path_rate=0.5)
    theirs.load_state_dict({key.removeprefix("tinynet."): tensor for key, tensor in ours.state_dict().items()})
    images = images_for(ours.config, batch=8)
    outputs = []
    for model in (theirs, ours):
        torch.manual_seed(7)
        logits = model.train()(images)
        outputs.append(logits if isinstance(logits, torch.Tensor) else logits.logits)
    assert torch.equal(*outputs)


def test_initialisation_has_timms_spread():
    torch.manual_seed(0)
    ours = TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_c"))
    theirs = timm.create_model("tinynet_c").state_dict()
    for name, tensor in ours.state_dict().items():
        reference = theirs[name.removeprefix("tinynet.")].double()
        if reference.ndim <= 1:
            assert torch.equal(tensor.double(), reference), name
        else:
            # The standard error of a sample's standard deviation is std / sqrt(2 n); five of them on each side.
            tolerance = 5 * 2 * reference.std() / (2 * reference.numel()) ** 0.5
            assert abs(tensor.double().std() - reference.std()) < tolerance, name


def test_from_pretrained_does_not_initialise_loaded_weights(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    loaded = TinyNetForImageClassification.from_pretrained(tmp_path)
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_saved_file_has_timms_keys_and_loads_in_timm(small_model, small_config, tmp_path):
    small_model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    theirs = timm.create_model("tinynet_e", num_classes=5)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)
    images = images_for(small_config)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(images), small_model(images).logits)


def test_base_model_and_backbone_load_from_a_classifier(small_model, small_config, tmp_path):
    small_model.save_pretrained(tmp_path)
    images = images_for(small_config)
    hidden_states = small_model(images, output_hidden_states=True).hidden_states
    model, info = TinyNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(realigned(model)(images).last_hidden_state, small_model.tinynet(images).last_hidden_state)
    backbone, info = TinyNetBackbone.from_pretrained(tmp_path, out_indices=[0, 3, 7], output_loading_info=True)
    assert not any(info.values())
    outputs = realigned(backbone)(images)
    assert outputs.hidden_states is None
    assert backbone.channels == [32, 24, 160] == [feature_map.shape[1] for feature_map in outputs.feature_maps]
    for feature_map, index in zip(outputs.feature_maps, (0, 3, 7), strict=True):
        assert torch.equal(feature_map, hidden_states[index])


def test_classifier_loads_from_a_base_model(small_model, tmp_path):
    small_model.tinynet.save_pretrained(tmp_path)
    loaded, info = TinyNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["classifier.bias", "classifier.weight"]
    assert torch.equal(loaded.tinynet.conv_head.weight, small_model.tinynet.conv_head.weight)


def test_auto_classes_know_tinynet(small_model, small_config, tmp_path):
    small_model.save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is TinyNetForImageClassification
    assert type(AutoModel.from_pretrained(tmp_path)) is TinyNetModel
    assert type(AutoBackbone.from_config(small_config)) is TinyNetBackbone


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (torch.tensor([0, 4]), nn.functional.cross_entropy),
        (torch.tensor([[0.0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]), nn.functional.binary_cross_entropy_with_logits),
    ],
)
def test_loss_follows_the_labels(small_model, small_config, labels, loss):
    images = images_for(small_config)
    outputs = small_model(images, labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))


def test_regression_loss():
    model = TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e", num_labels=1, image_size=32)).eval()
    outputs = model(images_for(model.config), labels=torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(outputs.loss, nn.functional.mse_loss(outputs.logits[:, 0], torch.tensor([0.5, -1.0])))


def test_return_dict_false_gives_a_tuple(small_model, small_config):
    images = images_for(small_config)
    assert torch.equal(small_model(images, return_dict=False)[0], small_model(images).logits)
    assert isinstance(small_model.tinynet(images, return_dict=False), tuple)


def test_checkpointed_gradients_are_the_same(small_model, small_config):
    images, labels = images_for(small_config, batch=4), torch.tensor([0, 1, 2, 3])
    checkpointed = copy.deepcopy(small_model)
    checkpointed.gradient_checkpointing_enable()
    # BatchNorm would update its statistics twice under recomputation in training mode; frozen statistics are exact.
    for model in (small_model, checkpointed):
        for module in model.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        model(images, labels=labels).loss.backward()
    for ours, theirs in zip(checkpointed.parameters(), small_model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_inference_leaves_the_images_alone(small_model, small_config):
    images = images_for(small_config)
    before = images.clone()
    with torch.inference_mode():
        small_model(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("mode", ["training", "evaluation", "inference"])
def test_compiles_without_graph_breaks(small_model, small_config, mode):
    images = images_for(small_config, batch=4)
    model = small_model.train(mode == "training")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    reference = copy.deepcopy(model)
    with torch.inference_mode(mode == "inference"):
        torch.testing.assert_close(compiled(images).logits, reference(images).logits)


@pytest.mark.parametrize("recording_gradients", [False, True])
def test_exports_with_a_dynamic_batch(small_model, small_config, recording_gradients):
    images = images_for(small_config)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.set_grad_enabled(recording_gradients):
        program = torch.export.export(small_model, (images,), dynamic_shapes={"pixel_values": {0: batch}})
    more_images = torch.cat([images, images + 1])
    torch.testing.assert_close(program.module()(more_images).logits, small_model(more_images).logits)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("recording_gradients", [False, True])
@pytest.mark.parametrize("model_class", [TinyNetForImageClassification, TinyNetModel, TinyNetBackbone])
def test_a_trace_holds_with_and_without_gradients(model_class, recording_gradients, small_config):
    """`torch.jit.trace` checks its graph against one recorded without gradients."""
    small_config.return_dict = False
    model = randomize_batch_norms(model_class(small_config)).eval()
    with torch.set_grad_enabled(recording_gradients):
        traced = torch.jit.trace(model, images_for(small_config))
    images = images_for(small_config, batch=5)
    for replaying_gradients in (False, True):
        with torch.set_grad_enabled(replaying_gradients):
            for ours, theirs in zip(tree_leaves(traced(images)), tree_leaves(model(images)), strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_matches_timms(dtype, tmp_path):
    theirs, ours = twins("tinynet_e", num_labels=5, image_size=64)
    ours.save_pretrained(tmp_path)
    half = TinyNetForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    images = images_for(ours.config).to(dtype)
    with torch.inference_mode():
        assert torch.equal(realigned(half)(images).logits, theirs.eval().to(dtype)(images))


def test_device_map_auto_offloads_what_does_not_fit(small_model, small_config, tmp_path):
    small_model.save_pretrained(tmp_path / "model")
    images = images_for(small_config)
    mapped = TinyNetForImageClassification.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": 3_000_000}, offload_folder=tmp_path / "offload"
    ).eval()
    assert "disk" in mapped.hf_device_map.values()
    with torch.no_grad():
        torch.testing.assert_close(mapped(images).logits, small_model(images).logits)


def test_hooks_keep_what_they_saw_while_gradients_are_recorded(small_model, small_config):
    """Grad-CAM and feature extractors hold on to outputs that inference would overwrite."""
    seen = {}
    for name, module in small_model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
            module.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    copies = {}
    for name, module in small_model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, args, output, name=name: copies.update({name: output.clone()}))
    small_model(images_for(small_config)).logits.sum().backward()
    assert len(seen) > 20
    assert all(torch.equal(seen[name], copies[name]) for name in seen)


def test_return_dict_may_be_off_in_the_configuration(small_model, small_config):
    images = images_for(small_config)
    logits = small_model(images).logits
    small_model.config.return_dict = False
    outputs = small_model(images)
    assert isinstance(outputs, tuple) and torch.equal(outputs[0], logits)


def test_headless_classifier_gives_features(small_config):
    small_config.num_labels = 0
    model = TinyNetForImageClassification(small_config).eval()
    images = images_for(small_config)
    assert torch.equal(model(images).logits, model.tinynet(images).pooler_output)
    assert small_config.parameter_count == sum(parameter.numel() for parameter in model.parameters())


def test_a_subclass_saves_timms_keys_too(small_config, tmp_path):
    class OwnClassifier(TinyNetForImageClassification):
        pass

    OwnClassifier(small_config).save_pretrained(tmp_path)
    keys = safetensors.torch.load_file(tmp_path / "model.safetensors").keys()
    assert set(keys) == set(timm.create_model("tinynet_e", num_classes=5).state_dict())


def test_other_activations_and_gray_images():
    config = TinyNetConfig.from_variant(
        "tinynet_e", image_size=32, num_labels=3, hidden_act="relu", num_channels=1, image_mean=[0.5], image_std=[0.5]
    )
    model = TinyNetForImageClassification(config).eval()
    images = images_for(config)
    with torch.no_grad():
        without_gradients = model(images).logits
    assert torch.equal(model(images).logits, without_gradients)


# timm-format repositories, as timm wrote them over the years.


@pytest.fixture
def timm_folder(tmp_path):
    def write(variant: str, form: str, num_classes: int = 1000) -> tuple[nn.Module, str]:
        model = randomize_batch_norms(timm.create_model(variant, num_classes=num_classes))
        pretrained_cfg = {
            key: model.pretrained_cfg[key]
            for key in (
                "input_size",
                "mean",
                "std",
                "crop_pct",
                "interpolation",
                "first_conv",
                "classifier",
                "crop_mode",
            )
        }
        if form == "written by timm":
            timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        else:
            if form == "flat":
                config = {"architecture": variant, "num_classes": num_classes, "num_features": 1280, **pretrained_cfg}
            else:
                config = {
                    "architecture": variant,
                    "num_classes": num_classes,
                    "num_features": 1280,
                    "pretrained_cfg": {**pretrained_cfg, "num_classes": num_classes},
                }
            if form == "model_args":
                config["model_args"] = {"num_classes": num_classes, "in_chans": 3, "global_pool": "avg"}
            (tmp_path / "config.json").write_text(json.dumps(config))
            safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
        return model.eval(), str(tmp_path)

    return write


@pytest.mark.parametrize("form", ["written by timm", "model_args", "pretrained_cfg", "flat"])
@pytest.mark.parametrize("variant", ["tinynet_a", "tinynet_e"])
def test_timm_folder_loads_natively(variant, form, timm_folder):
    theirs, folder = timm_folder(variant, form)
    ours, info = TinyNetForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert ours.config.variant == variant
    assert ours.config.image_size == theirs.pretrained_cfg["input_size"][1]
    assert ours.config.crop_pct == theirs.pretrained_cfg["crop_pct"]
    assert ours.config.id2label[207] == "golden retriever"
    images = images_for(ours.config)
    with torch.no_grad():
        assert torch.equal(realigned(ours)(images).logits, theirs(images))


@pytest.mark.parametrize(
    "labels",
    [
        {"label_names": ["cat", "dog"]},
        {"labels": ["cat", "dog"]},
        {"label_names": {"0": "cat", "1": "dog"}},
        {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat", "n2": "dog"}},
    ],
    ids=["list", "old list", "dictionary", "WordNet ids"],
)
def test_timm_folder_with_own_class_names(timm_folder, tmp_path, labels):
    _, folder = timm_folder("tinynet_e", "pretrained_cfg", num_classes=2)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **labels}))
    model = TinyNetForImageClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert model.config.label2id == {"cat": 0, "dog": 1}
    assert model.classifier.out_features == 2


def test_saved_folder_loads_in_timms_create_model(small_model, small_config, tmp_path):
    small_model.save_pretrained(tmp_path)
    theirs = timm.create_model("tinynet_e", num_classes=5, checkpoint_path=str(tmp_path / "model.safetensors"))
    images = images_for(small_config)
    with torch.no_grad():
        assert torch.equal(realigned(theirs)(images), small_model(images).logits)


def test_timm_folder_swaps_its_head_for_fine_tuning(timm_folder):
    theirs, folder = timm_folder("tinynet_e", "written by timm")
    model, info = TinyNetForImageClassification.from_pretrained(
        folder, num_labels=10, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.classifier.weight.shape == (10, 1280)
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.tinynet.conv_head.weight, theirs.conv_head.weight)
    assert model.config.id2label[0] == "LABEL_0"


def test_timm_folder_saved_again_is_ours(timm_folder, tmp_path):
    theirs, folder = timm_folder("tinynet_e", "written by timm")
    TinyNetForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    state_dict = safetensors.torch.load_file(tmp_path / "ours" / "model.safetensors")
    theirs.load_state_dict(state_dict, strict=True)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "tinynet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "efficientnet_b0"}, "architecture must be one of tinynet_a.*got 'efficientnet_b0'"),
        ({"model_args": {"act_layer": "relu"}}, "model_args .*act_layer.* change the network"),
        ({"global_pool": "max"}, "global_pool 'max' change the network"),
        ({"label_names": ["cat", "dog"]}, "config.json names 2 classes but has 1000"),
    ],
)
def test_foreign_timm_folder_is_refused_in_words(timm_folder, tmp_path, change, message):
    _, folder = timm_folder("tinynet_e", "pretrained_cfg")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        TinyNetForImageClassification.from_pretrained(folder)
