"""Configuration of the Faster R-CNN family that the published VisualBERT checkpoints took their regions from."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_region_encoder import PortableConfig

NORM_STATISTICS = ("frozen", "running", "batch")
NUM_SPATIAL_FEATURES = 6  # x1, y1, x2, y2, width, height; all in units of the image

# The 80 categories of COCO in the order of their ids; "_" joins the words of a name.
_COCO = """
person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter bench bird
cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard
sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork knife spoon
bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table
toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors
teddy_bear hair_drier toothbrush
"""
COCO_CLASSES = tuple(name.replace("_", " ") for name in _COCO.split())
WHOLE_IMAGE = "whole image"  # class 0 of the VCR detector


@dataclass(frozen=True)
class DetectorDesign:
    """What all detectors with the same `head` have in common; configuration, model and image processor read it.

    Args:
        strides: Pixels of the input between two cells, for each map that proposes boxes; empty if all boxes are given.
        images: Fields of the image processor of the published detectors.
        has_pyramid: Whether regions are read from a feature pyramid rather than from one map.
        legacy_boxes: Whether boxes are made of whole pixels and so are x2 - x1 + 1 wide.
        has_attributes: Whether attributes of a region are found.
        has_hidden_features: Whether the feature of a region comes from a linear layer, `hidden_dim` wide, rather than
            from the last stage of the ResNet.
        first_class: Column of the first class in the class logits: 1 if the background comes before it.
    """

    strides: tuple[int, ...]
    images: dict[str, Any]
    has_pyramid: bool = False
    legacy_boxes: bool = False
    has_attributes: bool = False
    has_hidden_features: bool = True
    first_class: int = 0

    @property
    def reads_objects(self) -> bool:
        """Whether objects are described whose boxes, classes and outlines are given, and none are found."""
        return not self.strides


_SHORT_AND_LONG = {"shortest_edge": 800, "longest_edge": 1333}
DESIGNS = {  # by `head`
    "c4": DetectorDesign(
        strides=(16,),
        images={"recipe": "interpolate", "size": _SHORT_AND_LONG},
        has_attributes=True,
        has_hidden_features=False,
    ),
    "fpn": DetectorDesign(
        strides=(4, 8, 16, 32, 64),
        images={"recipe": "factor", "size": _SHORT_AND_LONG, "pad_to_multiple": 32},
        has_pyramid=True,
        legacy_boxes=True,
        first_class=1,
    ),
    "given": DetectorDesign(
        strides=(),
        images={
            "recipe": "fit",
            "size": {"height": 384, "width": 768},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "channel_order": "RGB",
        },
    ),
}


@strict
class RegionDetectorConfig(PortableConfig):
    r"""
    Configuration of [`RegionDetector`]: a ResNet or ResNeXt, how boxes are proposed and described, and which are kept.

    The defaults are those of the bottom-up attention detector (`RegionDetectorConfig.bottom_up_attention_vg()`); the
    other published ones are `pythia_x101()`, `pythia_x152()`, `detectron_r101_coco()` and `vcr_resnet50()`.

    Args:
        head (`str`, *optional*, defaults to `"c4"`):
            The part that describes a region. `"c4"`: RoIPool on one map and the last stage of the ResNet, attributes,
            continuous boxes. `"fpn"`: RoIAlign on a feature pyramid and two linear layers, legacy boxes (x2 - x1 + 1 pixels
            wide).
            `"given"`: boxes, masks and classes are inputs (VCR), RoIAlign on one map and the last stage of the ResNet.
        depths (`list[int]`, *optional*, defaults to `[3, 4, 23, 3]`):
            Blocks of the four stages.
        stem_channels, res2_channels (`int`, *optional*, default to 64 and 256):
            Channels after the first convolution and after the first stage; each further stage doubles them.
        groups, group_width (`int`, *optional*, default to 1 and 64):
            Groups of the 3x3 convolutions, and channels of each group in the first stage.
        stride_in_1x1 (`bool`, *optional*, defaults to `True`):
            Whether a stage shrinks the map in its first 1x1 convolution rather than in its first 3x3 convolution.
        ceil_pooling (`bool`, *optional*, defaults to `True`):
            Caffe's pooling after the first convolution: no padding, sizes rounded up. Otherwise padding 1, rounded down.
        last_stage_dilation (`int`, *optional*, defaults to 2):
            Dilation of the 3x3 convolutions of the last stage, for `"c4"`.
        norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the batch normalisations.
        norm_statistics (`str`, *optional*, defaults to `"frozen"`):
            `"frozen"`: batch normalisation is a fixed scale and shift. `"running"`: ordinary batch normalisation.
            `"batch"`: the backbone uses the statistics of the batch even in evaluation, and the rest is as with
            `"running"`; this is what the authors' `freeze_detector` meant in the torch version of its time.
        freeze_backbone (`bool`, *optional*, defaults to `False`):
            Leave the backbone (not the head) unchanged when the detector is trained: the authors' `freeze_detector`.
        fpn_channels (`int`, *optional*, defaults to 256):
            Channels of the feature pyramid.
        rpn_channels (`int`, *optional*, defaults to 512):
            Channels of the proposal network.
        anchor_sizes (`list[list[int]]`, *optional*, defaults to `[[64, 128, 256, 512]]`):
            Sides of the anchors, for each map that proposes boxes.
        anchor_ratios (`list[float]`, *optional*, defaults to `[0.5, 1.0, 2.0]`):
            Height / width of the anchors.
        rpn_pre_nms, rpn_post_nms (`int`, *optional*, default to 6000 and 300):
            Proposals of each map before and after nms.
        rpn_total (`int`, *optional*, defaults to 300):
            Proposals for an image.
        rpn_nms_threshold (`float`, *optional*, defaults to 0.7):
            IoU above which the weaker of two proposals is dropped.
        roi_size (`int`, *optional*, defaults to 14):
            Bins on each side of a pooled region.
        sampling_ratio (`int`, *optional*, defaults to 0):
            Samples of RoIAlign on each side of a bin; 0 adapts to the size of the region.
        canonical_scale, canonical_level (`int`, *optional*, default to 224 and 4):
            A box with sides of this length is read from this level of the pyramid.
        hidden_dim (`int`, *optional*, defaults to 1024):
            `"fpn"`: width of fc6 and fc7, and so of the region feature. `"given"`: length of the region feature.
        num_classes (`int`, *optional*, defaults to 1600):
            Number of classes, not counting the background; for `"given"` class 0 is the whole image. `id2label` names them.
        num_attributes (`int`, *optional*, defaults to 400):
            `"c4"`: number of attributes, not counting "none of them".
        attribute_names (`list[str]`, *optional*):
            Names of the attributes.
        class_embedding_dim (`int`, *optional*, defaults to 256):
            Length of the class embedding from which attributes (`"c4"`) or features (`"given"`) are computed.
        attribute_hidden_dim (`int`, *optional*, defaults to 512):
            `"c4"`: hidden size of the attribute classifier.
        mask_channels, mask_size (`int`, *optional*, default to 32 and 14):
            `"given"`: number of channels that a region's mask is added to, and side of that mask.
        dropout (`float`, *optional*, defaults to 0.1):
            `"given"`: dropout before the last linear layer.
        class_loss_weight (`float`, *optional*, defaults to 1.0):
            `"given"`: weight of the class loss in the loss of a model trained together with this detector, as in R2C.
        nms_thresholds (`list[float]`, *optional*, defaults to `[0.5, 0.6, 0.7]`):
            Thresholds of the nms among the regions to return. `"c4"` takes the first that leaves `min_regions`, or else
            the last; `"fpn"` has one, applied class by class.
        min_regions, max_regions (`int`, *optional*, default to 36 and 36):
            How many regions to return. If fewer than `min_regions` are confident, the best are taken.
        score_threshold (`float`, *optional*):
            `"fpn"`: score from which a region counts as confident. If their number is within the limits, they come in the
            order of the proposals. Without it the `max_regions` best are returned, best first.
        spatial_features (`bool`, *optional*, defaults to `False`):
            Append the six spatial numbers of a region's box (corners, width and height, in units of the image) to its
            feature, as Flickr30k's have them. It may be switched on in a loaded detector: no weight depends on it.
    """

    model_type = "region_detector"

    head: str = "c4"
    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3)
    stem_channels: int = 64
    res2_channels: int = 256
    groups: int = 1
    group_width: int = 64
    stride_in_1x1: bool = True
    ceil_pooling: bool = True
    last_stage_dilation: int = 2
    norm_eps: float | int = 1e-5
    norm_statistics: str = "frozen"
    freeze_backbone: bool = False
    fpn_channels: int = 256
    rpn_channels: int = 512
    anchor_sizes: list[Any] | tuple[Any, ...] = ((64, 128, 256, 512),)
    anchor_ratios: list[float | int] | tuple[float | int, ...] = (0.5, 1.0, 2.0)
    rpn_pre_nms: int = 6000
    rpn_post_nms: int = 300
    rpn_total: int = 300
    rpn_nms_threshold: float | int = 0.7
    roi_size: int = 14
    sampling_ratio: int = 0
    canonical_scale: int = 224
    canonical_level: int = 4
    hidden_dim: int = 1024
    num_classes: int = 1600
    num_attributes: int = 400
    attribute_names: list[str] | None = None
    class_embedding_dim: int = 256
    attribute_hidden_dim: int = 512
    mask_channels: int = 32
    mask_size: int = 14
    dropout: float | int = 0.1
    class_loss_weight: float | int = 1.0
    nms_thresholds: list[float | int] | tuple[float | int, ...] = (0.5, 0.6, 0.7)
    min_regions: int = 36
    max_regions: int = 36
    score_threshold: float | int | None = None
    spatial_features: bool = False

    def __post_init__(self, **kwargs):
        if self.id2label is not None:
            self.num_classes = len(self.id2label)
        else:
            kwargs["num_labels"] = self.num_classes
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Part of `validate()`, which runs when the configuration is made and when it is saved."""
        for name, value, known in (
            ("head", self.head, DESIGNS),
            ("norm_statistics", self.norm_statistics, NORM_STATISTICS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r}; expected one of {', '.join(known)}")
        if len(self.depths) != 4:
            raise ValueError(f"depths {list(self.depths)}; expected the blocks of four stages")
        maps = len(self.design.strides)
        if maps and len(self.anchor_sizes) != maps:
            raise ValueError(f"anchor_sizes for {len(self.anchor_sizes)} maps; expected {maps} for head {self.head!r}")
        if self.attribute_names is not None and len(self.attribute_names) != self.num_attributes:
            raise ValueError(f"{len(self.attribute_names)} attribute_names; expected {self.num_attributes}")
        if not 1 <= self.min_regions <= self.max_regions:
            raise ValueError(
                f"min_regions {self.min_regions}, max_regions {self.max_regions}; expected 1 <= min <= max"
            )

    @property
    def design(self) -> DetectorDesign:
        """What follows from the kind of `head`."""
        return DESIGNS[self.head]

    @property
    def reads_objects(self) -> bool:
        """Whether it is VCR's detector: it describes objects whose boxes, classes and outlines are given, and finds none."""
        return self.design.reads_objects

    @property
    def legacy_boxes(self) -> bool:
        """Whether boxes are made of whole pixels and so are x2 - x1 + 1 wide."""
        return self.design.legacy_boxes

    @property
    def appearance_dim(self) -> int:
        """Length of what the network says of one region."""
        return self.hidden_dim if self.design.has_hidden_features else self.res2_channels * 8

    @property
    def region_dim(self) -> int:
        """Length of one region feature."""
        return self.appearance_dim + NUM_SPATIAL_FEATURES * self.spatial_features

    def to_dict(self) -> dict[str, Any]:
        """Without `spatial_features` where it is off: stores name their detector by hashes of this, and those of earlier
        versions, which did not know it, stay valid."""
        fields = super().to_dict()
        if not self.spatial_features:
            fields.pop("spatial_features", None)
        return fields

    @property
    def published_name(self) -> str | None:
        """The published detector of this design, by its name in `assets/published.yaml`; None for other ones, such as X-152."""
        if max(self.depths) > 23:
            return None
        if self.design.has_pyramid:
            return "pythia-x101" if self.groups > 1 else "detectron-r101"
        return "vcr-r50" if self.reads_objects else "frcnn-vg"

    @property
    def num_anchors(self) -> int:
        """Number of anchors of one cell."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)

    @classmethod
    def bottom_up_attention_vg(cls, **fields: Any) -> "RegionDetectorConfig":
        """ResNet-101-C4 on Visual Genome with attributes: `unc-nlp/frcnn-vg-finetuned`; Flickr30k and LXMERT use it."""
        return cls(**fields)

    @classmethod
    def pythia_x101(cls, **fields: Any) -> "RegionDetectorConfig":
        """ResNeXt-101 64x4d with a pyramid on Visual Genome: Pythia's `detectron_model.pth`, the VQA checkpoints."""
        published = {
            "head": "fpn",
            "groups": 64,
            "group_width": 4,
            "stride_in_1x1": False,
            "ceil_pooling": False,
            "norm_eps": 0.0,
            "fpn_channels": 512,
            "rpn_channels": 512,
            "anchor_sizes": [[32], [64], [128], [256], [512]],
            "rpn_pre_nms": 6000,
            "rpn_post_nms": 1000,
            "rpn_total": 2000,
            "roi_size": 7,
            "sampling_ratio": 2,
            "hidden_dim": 2048,
            "nms_thresholds": [0.5],
            "min_regions": 100,
            "max_regions": 100,
        }
        return cls(**{**published, **fields})

    @classmethod
    def pythia_x152(cls, **fields: Any) -> "RegionDetectorConfig":
        """ResNeXt-152 32x8d with a pyramid on Visual Genome: `detectron_model_x152.pth`, ViLBERT 12-in-1."""
        return cls.pythia_x101(**{"depths": [3, 8, 36, 3], "groups": 32, "group_width": 8, **fields})

    @classmethod
    def detectron_r101_coco(cls, **fields: Any) -> "RegionDetectorConfig":
        """ResNet-101 with a pyramid on COCO: Detectron's model 35861858, the NLVR2 checkpoints."""
        published = {
            "groups": 1,
            "group_width": 64,
            "stride_in_1x1": True,
            "fpn_channels": 256,
            "rpn_channels": 256,
            "rpn_pre_nms": 1000,
            "rpn_total": 1000,
            "hidden_dim": 1024,
            "min_regions": 150,
            "max_regions": 150,
            "score_threshold": 0.2,
        }
        return cls.pythia_x101(**{**published, **_named(COCO_CLASSES, fields), **fields})

    @classmethod
    def vcr_resnet50(cls, **fields: Any) -> "RegionDetectorConfig":
        """ResNet-50 on given boxes: R2C's SimpleDetector, trained together with the VCR checkpoints."""
        published = {
            "head": "given",
            "depths": [3, 4, 6, 3],
            "ceil_pooling": False,
            "last_stage_dilation": 1,
            "norm_statistics": "running",
            "roi_size": 7,
            "hidden_dim": 512,
            "class_embedding_dim": 128,
        }
        return cls(**{**published, **_named((WHOLE_IMAGE, *COCO_CLASSES), fields), **fields})


def _named(names: tuple[str, ...], fields: dict) -> dict[str, dict]:
    """Names of the classes, unless `fields` set other classes."""
    if fields.keys() & {"num_classes", "id2label"}:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


__all__ = ["COCO_CLASSES", "DESIGNS", "NUM_SPATIAL_FEATURES", "DetectorDesign", "RegionDetectorConfig"]
