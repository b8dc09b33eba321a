"""The detector's network: a small two-dimensional RetinaNet (Lin et al., ICCV 2017), from MONAI's parts.

MONAI's own extractor of features and one of its matchers ask for torchvision, which few have in the build of their
torch; this module does without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

STRIDE = 16
"""Rows and columns of what the network sees are whole multiples of it."""

_WIDTHS = (24, 32, 48, 64)
_PYRAMID = 32
_ANCHORS = ((7.0, 7.0), (10.0, 10.0))  # pixels, at the finest level; twice and four times that at the others
_SCALES = (1, 2, 4)


class Features(nn.Module):
    """Maps of 1/4, 1/8 and 1/16 of the image's rows and columns, finest first: a residual network's (one block a stage)
    in a feature pyramid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = _PYRAMID
        self.body = ResNet(
            "basic",
            [1, 1, 1, 1],
            list(_WIDTHS),
            spatial_dims=2,
            n_input_channels=channels,
            conv1_t_size=5,
            conv1_t_stride=2,
            no_max_pool=True,
            feed_forward=False,
        )
        self.pyramid = FeaturePyramidNetwork(2, list(_WIDTHS[1:]), _PYRAMID)

    def forward(self, image: Tensor) -> list[Tensor]:
        body = self.body
        x = body.layer1(body.act(body.bn1(body.conv1(image))))
        maps = {}
        for name in ("layer2", "layer3", "layer4"):
            x = maps[name] = getattr(body, name)(x)
        return list(self.pyramid(maps).values())


class NoduleDetector(RetinaNetDetector):
    """Losses in training, boxes else. Boxes are (row, column, row, column) in pixels; the only label is 0."""

    def __init__(self, channels: int) -> None:
        network = RetinaNet(2, 1, len(_ANCHORS), Features(channels), size_divisible=STRIDE)
        super().__init__(network, AnchorGeneratorWithAnchorShape(_SCALES, _ANCHORS))
        self.set_atss_matcher(num_candidates=4, center_in_gt=False)
        self.set_hard_negative_sampler(batch_size_per_image=64, positive_fraction=0.25, pool_size=12, min_neg=16)
        self.set_box_selector_parameters(score_thresh=0.02, topk_candidates_per_level=200, nms_thresh=0.2)

    def compute_anchor_matched_idxs(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], num_anchor_locs_per_level: Sequence[int]
    ) -> list[Tensor]:
        """As its base, which fails without torchvision: adaptive selection (Zhang et al., CVPR 2020), no other."""
        return [
            self.proposal_matcher(
                target[self.target_box_key], boxes, num_anchor_locs_per_level, self.num_anchors_per_loc
            )[1]
            for boxes, target in zip(anchors, targets, strict=True)
        ]


def losses(detector: NoduleDetector, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Sum of the losses of classes and boxes, of ``images`` (batch, channels, rows, columns) with ``boxes`` (n, 4)."""
    targets = [{"boxes": one, "labels": torch.zeros(len(one), dtype=torch.long)} for one in boxes]
    return sum(detector(images, targets).values())
