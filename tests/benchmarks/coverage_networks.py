"""The networks of the coverage benchmark: torchvision's, and of timm small ones and one of each family."""

import contextlib
from importlib.util import find_spec

import torch
from torch import Tensor, nn

CLASSES = 10
_SIZES = (64, 96, 128)  # pixels a side, tried before a network's own: less takes less time

# One a family, the smallest or a usual small one.
TIMM_FAMILIES = (
    "beit_base_patch16_224", "caformer_s18", "cait_xxs24_224", "coat_tiny", "coatnet_nano_rw_224",
    "convit_tiny", "convmixer_1024_20_ks9_p14", "convnext_zepto_rms", "cpubone_nano", "crossvit_tiny_240",
    "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c",
    "dpn48b", "eca_botnext26ts_256", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "efficientnet_lite0", "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224",
    "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "ghostnetv2_100",
    "gmlp_s16_224", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small", "iformer_t",
    "inception_next_atto", "lcnet_050", "lcnetv2_small", "levit_128s", "lowformer_b0", "mambaout_femto",
    "maxvit_rmlp_pico_rw_256", "mixer_s32_224", "mobilenetv4_conv_small_050", "mobileone_s0", "mobilevit_xxs",
    "mobilevitv2_050", "mvitv2_tiny", "nest_tiny", "nextvit_small", "nf_resnet26", "pit_ti_224",
    "poolformer_s12", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9",
    "res2net50_14w_8s", "resmlp_12_224", "resnest14d", "resnet10t", "resnetv2_18", "resnext50_32x4d",
    "rexnet_100", "rexnetr_100", "selecsls42", "semnasnet_050", "sequencer2d_s", "seresnet18", "shvit_s1",
    "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256", "tf_efficientnet_lite0", "tiny_vit_5m_224", "tinynet_e",
    "tnt_s_legacy_patch16_224", "tresnet_m", "twins_pcpvt_small", "vgg11_bn", "visformer_tiny",
    "vit_relpos_small_patch16_224", "vit_tiny_patch16_224", "volo_d1_224", "vovnet39a", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip


def all_names() -> list[str]:
    """Every classification network of torchvision, timm's test networks, and one of each of timm's families."""
    import torchvision

    names = [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    if find_spec("timm") is None:
        return names
    import timm

    known = set(timm.list_models())
    names += [f"timm/{name}" for name in timm.list_models("test_*")]
    return names + [f"timm/{name}" for name in TIMM_FAMILIES if name in known]


def build(name: str) -> tuple[nn.Module, int]:
    """A network with fresh weights, in eval mode, and the smallest size of square images that it takes."""
    library, _, short = name.partition("/")
    network, own = (_from_timm if library == "timm" else _from_torchvision)(short)
    network.eval()
    for pixels in sorted({*_SIZES, own}):
        with contextlib.suppress(Exception), torch.no_grad():  # a size that it does not take
            if network(torch.zeros(2, 3, pixels, pixels)).shape == (2, CLASSES):
                return network, pixels
    raise ValueError(f"received {name}, which takes no images of {_SIZES} or {own} pixels; expected one of these")


def _from_torchvision(name: str) -> tuple[nn.Module, int]:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    # The weights of a vision transformer may be for another size than the one that it is built for.
    return network, getattr(network, "image_size", weights.transforms().crop_size[0])


def _from_timm(name: str) -> tuple[nn.Module, int]:
    import timm

    network = timm.create_model(name, num_classes=CLASSES)
    return network, network.default_cfg["input_size"][-1]


def images_for(pixels: int, count: int) -> Tensor:
    """Smooth images (N, 3, H, W) with some noise, as photographs have more of the low frequencies."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, (pixels, pixels), mode="bilinear", align_corners=False)
    return smooth + 0.2 * torch.randn(count, 3, pixels, pixels, generator=generator)
