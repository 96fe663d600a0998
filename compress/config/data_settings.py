"""The settings of a data set: which images, how they are split, and how they reach the network."""

from dataclasses import dataclass
from typing import Optional

from compress.config.options import option

# Their images are resized and cropped as they are decoded.
FILES_WITH_CLASSES = ("imagefolder", "csv", "webdataset", "huggingface")


@dataclass
class DataConfig:
    """Which images, how they are split, and how they reach the network."""

    name: str = option(
        "digits",
        "the data set",
        choices=("digits", "fashion_mnist", "cifar10", "npz", *FILES_WITH_CLASSES, "voc", "coco"),
    )
    root: Optional[str] = option(None, "its folder, or the .npz or .csv file")
    images: Optional[str] = option(None, "csv: the folder that its paths start from; null: the one it is in")
    shards: list[str] = option(
        [],
        'webdataset: tar files of each split, where their names do not begin with it: ["train=a/{000..099}.tar",'
        '"test=b/*.tar"]; or pipe:COMMAND, whose output is kept',
    )
    columns: list[str] = option(
        [],
        "csv, huggingface: columns without a usual name, by what they hold (image, label, split, group): "
        '["image=Image Index","group=Patient ID"]',
    )
    task: str = option(
        "classification",
        "classification: one class an image; multilabel: any number of labels, rows of 0 and 1 (npz, csv, "
        "webdataset); detection: boxes (voc, coco)",
        choices=("classification", "multilabel", "detection"),
    )
    image_size: Optional[int] = option(
        None,
        "images are resized to this many pixels a side; null: that of teacher.weights, else 320 (detection), 224 "
        "(other image files) or 32; 0: npz: as large as the arrays are",
        low=0,
        high=1024,
    )
    resize: Optional[str] = option(
        None,
        "image files with classes: how they become squares; crop (as null): the middle is kept; stretch: all of it, "
        "whatever the proportions; pad: all of it, between black bars",
        choices=("crop", "stretch", "pad"),
    )
    crop_share: Optional[float] = option(
        None,
        "image files: share of the resized shorter side that the middle square keeps; null: of teacher.weights, else 1",
        low=0.1,
        high=1.0,
    )
    interpolation: Optional[str] = option(
        None,
        "image files: how they are resized; null: that of teacher.weights, else bilinear",
        choices=("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"),
    )
    channels: Optional[int] = option(
        None, "of image files: 1 grey, 3 colour (as null), 4 with transparency; arrays have their own", low=1, high=4
    )
    batch_size: int = option(128, "images a training step", low=2, high=65536)
    sampler: str = option(
        "random",
        "of an epoch's images; balanced: as many of each class, of rare ones again and again (not for boxes)",
        choices=("random", "balanced"),
    )
    val_from: str = option(
        "train",
        "where validation images come from if there is no validation split; test: a share of the test split, which no "
        "figure then counts, for a teacher that was trained on all of train",
        choices=("train", "test"),
    )
    val_fraction: float = option(0.1, "share of that split that becomes validation", low=0.01, high=0.5)
    test_fraction: float = option(
        0.2,
        "csv without splits, voc and coco without test or val images: share of the images that becomes the test split",
        low=0.01,
        high=0.5,
    )
    mean: Optional[list[float]] = option(
        None, "a channel each, of pixels in [0, 1]; null: that of teacher.weights, else of the train split"
    )
    std: Optional[list[float]] = option(None, "as mean")
    augment: Optional[str] = option(
        None,
        "augmentation by level, in place of the keys below; light: crops and flips; standard: resized crops and flips; "
        "strong: these, TrivialAugment and erasing; null: as the keys say; not for boxes",
        choices=("none", "light", "standard", "strong"),
    )
    resized_crop: Optional[float] = option(
        None,
        "augmentation: crops of random size and proportions, resized: the smallest share of the area that one keeps; "
        "null: none",
        low=0.01,
        high=1.0,
    )
    auto_augment: str = option(
        "none",
        "augmentation: a random change of colours or shape (trivial: TrivialAugment) or two of them (randaugment)",
        choices=("none", "trivial", "randaugment"),
    )
    erasing: float = option(0.0, "augmentation: probability that a random rectangle becomes black", low=0.0, high=1.0)
    crop_padding: int = option(
        2, "augmentation: random crops from an image padded by this many pixels; not for boxes", low=0, high=64
    )
    flip: bool = option(False, "augmentation: random left-right flips; not for boxes")
    box_augmentation: str = option(
        "ssd",
        "augmentation of images with boxes: hflip: left-right flips; ssdlite: crops around boxes too; ssd: also "
        "smaller images on a plain ground, and changed colours",
        choices=("none", "hflip", "ssdlite", "ssd"),
    )
    workers: int = option(2, "processes that decode image files", low=0, high=64)
