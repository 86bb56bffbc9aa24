"""Who hands maps to whom in mmdet's necks and heads, so that codes pass where producer and consumers share a grid.

A link says: everything that ``producer`` makes goes to ``consumers`` and nowhere else, through a ReLU at most, and
codes pass through what lies between unharmed (``F.relu`` leaves codes as they are, and so do reshapes). Only stock
forwards are known; a subclass that has its own gets no links, and floats between its layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.necks import FPN, PAFPN, ChannelMapper
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import nn


class Link(NamedTuple):
    """One producer.

    Attributes:
        producer: a layer, a RoI extractor, or the index of one of the backbone's outputs.
        consumers: layers that read what it makes.
        relu: whether a ReLU stands between, which the producer then does.
        channels_last: in which layout codes are wanted; a linear layer reads maps channels first.
    """

    producer: Any
    consumers: tuple[nn.Module, ...]
    relu: bool = False
    channels_last: bool = True


def links(detector: nn.Module) -> Iterator[Link]:
    """All links of a detector."""
    for module in detector.modules():
        kind: Any = type(module)
        for stock, forward, find in FINDERS:
            if isinstance(module, stock) and getattr(kind, forward) is getattr(stock, forward):
                yield from find(module)
    if (roi_head := getattr(detector, 'roi_head', None)) is not None:
        yield from _roi_links(roi_head)
    if (neck := getattr(detector, 'neck', None)) is not None:
        yield from _backbone_links(neck)


def _in_a_row(layers: list[nn.Module], last: tuple[nn.Module, ...] = ()) -> Iterator[Link]:
    for index, layer in enumerate(layers):
        following = (product_of(layers[index + 1]),) if index + 1 < len(layers) else last
        if isinstance(layer, ConvModule) and (layer.with_norm or not ends_in_relu(layer)):
            continue
        if following:
            yield Link(product_of(layer), following, relu=True)


def product_of(layer: nn.Module) -> nn.Module:
    """The layer itself, or the convolution of a ConvModule."""
    return layer.conv if isinstance(layer, ConvModule) else layer


def ends_in_relu(layer: ConvModule) -> bool:
    """Whether a ConvModule ends in a ReLU, or did before its convolution took that over."""
    return isinstance(getattr(layer, 'activate', None), nn.ReLU)


def _rpn(head: Any) -> Iterator[Link]:
    convs = list(head.rpn_conv) if isinstance(head.rpn_conv, nn.Sequential) else [head.rpn_conv]
    yield from _in_a_row(convs, (head.rpn_cls, head.rpn_reg))


def _retina(head: Any) -> Iterator[Link]:
    yield from _in_a_row(list(head.cls_convs), (head.retina_cls,))
    yield from _in_a_row(list(head.reg_convs), (head.retina_reg,))


def _boxes(head: Any) -> Iterator[Link]:
    if head.with_avg_pool or not (head.with_cls and head.with_reg):
        return
    shared = [*head.shared_convs, *head.shared_fcs]
    branches = [[*head.cls_convs, *head.cls_fcs, head.fc_cls], [*head.reg_convs, *head.reg_fcs, head.fc_reg]]
    yield from _in_a_row(shared, tuple(product_of(branch[0]) for branch in branches))
    for *hidden, result in branches:
        yield from _in_a_row(hidden, (result,))


def first_of_boxes(head: Any) -> tuple[nn.Module, ...]:
    """The layers of a box head that read pooled RoIs."""
    shared = [*head.shared_convs, *head.shared_fcs]
    if shared:
        return (product_of(shared[0]),)
    both = [[*head.cls_convs, *head.cls_fcs, head.fc_cls], [*head.reg_convs, *head.reg_fcs, head.fc_reg]]
    return tuple(product_of(branch[0]) for branch in both)


def _masks(head: Any) -> Iterator[Link]:
    if head.upsample is None:
        yield from _in_a_row(list(head.convs), (head.conv_logits,))
    elif head.upsample_method == 'deconv':
        yield from _in_a_row(list(head.convs), (head.upsample,))
        yield Link(head.upsample, (head.conv_logits,), relu=True)
    else:
        yield from _in_a_row(list(head.convs))


def _roi_links(roi_head: Any) -> Iterator[Link]:
    if type(roi_head) not in (StandardRoIHead, CascadeRoIHead) or roi_head.with_shared_head:
        return
    for extractors, heads in (('bbox_roi_extractor', 'bbox_head'), ('mask_roi_extractor', 'mask_head')):
        if getattr(roi_head, heads, None) is None or getattr(roi_head, 'share_roi_extractor', False):
            continue
        pairs = zip(_listed(getattr(roi_head, extractors)), _listed(getattr(roi_head, heads)), strict=True)
        for extractor, head in pairs:
            if isinstance(head, ConvFCBBoxHead) and not head.with_avg_pool and head.with_cls and head.with_reg:
                first = first_of_boxes(head)
                yield Link(extractor, first, channels_last=not any(isinstance(x, nn.Linear) for x in first))
            elif isinstance(head, FCNMaskHead) and len(head.convs):
                yield Link(extractor, (product_of(head.convs[0]),))


def _backbone_links(neck: Any) -> Iterator[Link]:
    kind = type(neck)
    if kind in (FPN, PAFPN):
        for index, lateral in enumerate(neck.lateral_convs):
            readers = [lateral]
            extra = neck.add_extra_convs == 'on_input' and len(neck.fpn_convs) > len(neck.lateral_convs)
            if extra and index + neck.start_level == neck.backbone_end_level - 1:
                readers.append(neck.fpn_convs[len(neck.lateral_convs)])
            yield Link(index + neck.start_level, tuple(product_of(reader) for reader in readers))
    elif kind is ChannelMapper:
        for index, conv in enumerate(neck.convs):
            readers = [conv]
            if neck.extra_convs and index == len(neck.convs) - 1:
                readers.append(neck.extra_convs[0])
            yield Link(index, tuple(product_of(reader) for reader in readers))


def _listed(modules: Any) -> list[Any]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


FINDERS: tuple[tuple[Any, str, Any], ...] = (
    (RPNHead, 'forward_single', _rpn),
    (RetinaHead, 'forward_single', _retina),
    (ConvFCBBoxHead, 'forward', _boxes),
    (FCNMaskHead, 'forward', _masks),
)
