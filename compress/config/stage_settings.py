"""Every setting of the stages, its default, its meaning and its range.

Those of the search are in search_settings.py, those of exits and widths in conditional_settings.py.
"""

from dataclasses import dataclass, field, fields
from typing import Optional

from compress.config.options import option

SCHEDULES = ("cosine", "linear", "step", "constant")
SCHEDULE_HELP = (
    "of the learning rate after train.warmup; cosine and linear fall to 0, step to a tenth at half and at three "
    "quarters of the steps"
)


@dataclass
class TeacherConfig:
    """The network to compress."""

    model: str = option(
        "mobilenet_v2",
        "a name of python -m compress.models, or torchvision/NAME or timm/NAME; boxes: ssdlite/NAME, or "
        "ssdlite320_mobilenet_v3_large",
    )
    factory: Optional[str] = option(
        None, "package.module:function that returns a network of your own, in place of teacher.model"
    )
    stem: str = option(
        "auto",
        "small: strides for few pixels; imagenet: as published; auto: small up to 64 pixels",
        choices=("auto", "small", "imagenet"),
    )
    checkpoint: Optional[str] = option(None, "weights to load: .safetensors, .pt, .pth or .th (tensors only)")
    checkpoint_key: Optional[str] = option(
        None, "which weights of a checkpoint with several; null: the averaged ones (EMA), or the only ones"
    )
    weights: Optional[str] = option(
        None,
        "pretrained weights: torchvision's name, e.g. IMAGENET1K_V1, or timm's tag; a detector's backbone has them",
    )
    backbone_checkpoint: Optional[str] = option(
        None, "boxes: weights of a classifier for the backbone of ssdlite/NAME, a file as in teacher.checkpoint"
    )
    anchor_scales: list[float] = option(
        [0.2, 0.95],
        "boxes: sides of the anchors as shares of the image's: the smallest and the largest, evenly spaced over the "
        "feature maps, or one for each map and one more",
    )
    anchor_ratios: list[float] = option([2.0, 3.0], "boxes: aspect ratios of the anchors beside squares, both ways")
    epochs: int = option(12, "0 with a checkpoint: the teacher is taken as it is", low=0, high=10000)
    lr: float = option(0.05, "peak learning rate", low=1e-7, high=10)
    schedule: str = option("cosine", SCHEDULE_HELP, choices=SCHEDULES)
    freeze_epochs: int = option(
        0, "fine-tuning: so many epochs at the start train the last layer alone", low=0, high=10000
    )
    lr_decay: float = option(
        1.0, "fine-tuning: each block's learning rate is this share of that of the block after it", low=0.01, high=1.0
    )


ENERGY_LIMIT = "estimated_energy_share"
FILE_LIMITS = ("size_bytes", "latency_ms", "speedup")  # on the file that ships, whose figures are measured


@dataclass
class PruneTargetConfig:
    """What the smaller network may cost, in place of a ratio; the smallest change that meets all that are set."""

    macs_share: Optional[float] = option(None, "share of the MACs that stays", low=0.01, high=1.0)
    params_share: Optional[float] = option(None, "share of the parameters that stays", low=0.01, high=1.0)
    estimated_energy_share: Optional[float] = option(
        None,
        "share of the estimated energy of an image that stays, in the precision that ships (compress/evaluation)",
        low=0.01,
        high=1.0,
    )
    size_bytes: Optional[int] = option(None, "of the model.onnx that the last stage writes", low=1, high=1e12)
    latency_ms: Optional[float] = option(
        None, "of one image in that file, in ONNX Runtime on this CPU with these threads", low=1e-3, high=1e6
    )
    speedup: Optional[float] = option(None, "of that file over the teacher's", low=0.1, high=1000)
    max_drop_points: Optional[float] = option(
        None,
        "points of the validation metric that it may lose before it is fine-tuned; alone: the smallest such network",
        low=0.0,
        high=100,
    )

    def asked(self) -> dict[str, float]:
        """Returns the limits that are set, by name."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}

    def asked_of_file(self) -> dict[str, float]:
        """Returns those of them that are on the file that ships."""
        return {name: value for name, value in self.asked().items() if name in (ENERGY_LIMIT, *FILE_LIMITS)}


@dataclass
class PruneConfig:
    """Which filters are removed, and the fine-tuning that follows."""

    ratio: float = option(0.5, "share of the filters removed, where no target is set", low=0.0, high=0.95)
    target: PruneTargetConfig = field(default_factory=PruneTargetConfig)
    layer_ratios: list[str] = option(
        [], 'ratios of single layers in place of that one, by patterns of names: ["layer3.*=0.6", "layer1.*=0"]'
    )
    importance: str = option(
        "l1",
        "what ranks the filters: their norms, batch norm's weights, their distances, the loss's gradients, their "
        "outputs, or chance",
        choices=("l1", "l2", "random", "bn_scale", "lamp", "fpgm", "taylor", "obdc", "hessian", "activation"),
    )
    scope: str = option(
        "local",
        "local: the ratio in every layer; global: over all layers; isomorphic: over layers of one role; sensitivity: "
        "where the network's outputs change the least for what is saved",
        choices=("local", "global", "isomorphic", "sensitivity"),
    )
    round_to: int = option(8, "widths are kept multiples of this", low=1, high=256)
    steps: int = option(1, "the filters go in so many steps, which share the epochs", low=1, high=100)
    reconstruction_samples: int = option(
        1024, "train images on which the layers are refitted to the lost inputs; 0: not at all", low=0, high=1000000
    )
    reinitialize: bool = option(False, "draw all remaining weights anew: a control that shows what they are worth")
    sparsity: str = option(
        "group_norm",
        "sparsity learning: what weakens filters before they go: group lasso, a growing penalty of the weakest, or one "
        "of batch norm's weights",
        choices=("group_norm", "growing_reg", "bn_scale"),
    )
    sparsity_epochs: int = option(0, "epochs of sparsity learning; 0: none", low=0, high=10000)
    sparsity_weight: float = option(1e-4, "weight of its penalty", low=0.0, high=10)
    distill: bool = option(False, "the fine-tuning learns from the teacher, as distill does by default")
    epochs: int = option(2, "epochs of fine-tuning", low=0, high=10000)
    lr: float = option(0.005, "peak learning rate", low=1e-7, high=10)
    schedule: str = option("cosine", SCHEDULE_HELP, choices=SCHEDULES)

    @property
    def removes_filters(self) -> bool:
        """Whether it asks for any filter to go."""
        return bool(self.ratio or self.layer_ratios or self.target.asked())


@dataclass
class FactorizeConfig:
    """Which layers are replaced by products of smaller ones, and the fine-tuning that follows."""

    ratio: float = option(
        0.3, "share of the MACs of layers with factors that goes, where no target is set", low=0.0, high=0.95
    )
    target: PruneTargetConfig = field(default_factory=PruneTargetConfig)
    method: str = option(
        "spatial_svd",
        "of convolutions: k x 1 and 1 x k, or 1 x 1, k x k and 1 x 1; linear layers and 1 x 1 have an SVD",
        choices=("spatial_svd", "tucker2"),
    )
    scope: str = option(
        "sensitivity",
        "sensitivity: ranks fall where the network's outputs change the least for what is saved; local: alike in all "
        "layers",
        choices=("sensitivity", "local"),
    )
    round_to: int = option(8, "ranks are multiples of this", low=1, high=256)
    reconstruction_samples: int = option(
        1024, "train images on which the factors are fitted to the layers' outputs; 0: not at all", low=0, high=1000000
    )
    reinitialize: bool = option(False, "draw all weights anew: a control that shows what they are worth")
    distill: bool = option(False, "the fine-tuning learns from the teacher, as distill does by default")
    epochs: int = option(2, "epochs of fine-tuning", low=0, high=10000)
    lr: float = option(0.005, "peak learning rate", low=1e-7, high=10)
    schedule: str = option("cosine", SCHEDULE_HELP, choices=SCHEDULES)

    @property
    def replaces_layers(self) -> bool:
        """Whether it asks for any layer to be factorized."""
        return bool(self.ratio or self.target.asked())


@dataclass
class DistillConfig:
    """Distillation from one teacher or several."""

    student: Optional[str] = option(
        None, "null: the network of the stage before; a name as in teacher.model: a new student"
    )
    student_image_size: Optional[int] = option(
        None,
        "pixels a side to which the student itself resizes images, not of boxes; a new student is built for this size, "
        "with the stem that teacher.stem=auto chooses for it; null: data.image_size",
        low=8,
        high=1024,
    )
    losses: list[str] = option(
        ["kd"],
        'of the outputs: kd, kd_standardized, dkd, dist, mlkd; of layers: at, rkd, fitnet, review; "NAME" has the '
        'published weight, "NAME=WEIGHT" another one',
    )
    temperature: float = option(2.0, "softens both distributions", low=0.1, high=100)
    alpha: float = option(0.9, "weight of the losses of the outputs; the labels weigh 1 - alpha", low=0.0, high=1.0)
    hint_layers: list[str] = option(
        [],
        "modules of both networks whose outputs are compared, e.g. [layer1,layer2], by fitnet if distill.losses has no "
        "loss of layers; []: for these losses the last ones of up to four resolutions",
    )
    hint_weight: float = option(10.0, "weight of fitnet where distill.losses gives none", low=0.0, high=1e6)
    teachers: list[str] = option(
        [],
        "run folders, stage folders or checkpoint files, whose outputs are averaged; teacher: that of this run; []: "
        "only that one",
    )
    teacher_weights: str = option(
        "equal",
        "in that mean: equal, or in proportion to the validation metric",
        choices=("equal", "accuracy"),
    )
    rounds: int = option(
        1,
        "trainings, each of the network that came to this stage, each with the network of the training before for its "
        "teacher",
        low=1,
        high=100,
    )
    epochs: int = option(10, "epochs of each round", low=0, high=10000)
    lr: float = option(0.01, "peak learning rate", low=1e-7, high=10)
    schedule: str = option("cosine", SCHEDULE_HELP, choices=SCHEDULES)


@dataclass
class QuantizeConfig:
    """Quantization to int8, after training or with it."""

    mode: str = option("qat", "ptq: calibration only; qat: quantization-aware training", choices=("ptq", "qat"))
    target: str = option(
        "auto",
        "the CPU that will run the file; auto: this one",
        choices=("auto", "x86_avx2", "x86_vnni", "arm"),
    )
    calibration: str = option(
        "mse",
        "ptq: how a range is chosen from its values",
        choices=("min_max", "moving_average", "percentile", "mse", "entropy"),
    )
    calibration_samples: int = option(512, "train images that set the activation ranges", low=1, high=1000000)
    equalize: bool = option(False, "ptq: even out the ranges of channels between layers first")
    rounding: str = option(
        "nearest",
        "ptq: nearest, or adaround: each weight up or down, learned on the calibration images",
        choices=("nearest", "adaround"),
    )
    rounding_steps: int = option(1000, "adaround: steps a layer", low=1, high=1000000)
    correct_bias: bool = option(True, "ptq: let each bias take up the mean error of its channel, layer by layer")
    max_drop_points: Optional[float] = option(
        None,
        "points of the validation metric that int8 may lose; layers stay float to keep it; null: none does",
        low=0,
        high=100,
    )
    allow_float: bool = option(False, "take an int8 file in which most of the arithmetic stays float")
    epochs: int = option(3, "qat: epochs", low=0, high=10000)
    lr: float = option(0.002, "qat: peak learning rate", low=1e-7, high=10)
    schedule: str = option("cosine", f"qat: {SCHEDULE_HELP}", choices=SCHEDULES)
    temperature: float = option(2.0, "qat: as distill.temperature", low=0.1, high=100)
    alpha: float = option(0.9, "qat: weight of the teacher's term; 0: labels only", low=0.0, high=1.0)
