"""The one calibrator: fits all quantizers of a model, block by block, on images of this rank's share.

Everything before a block is already quantized when the block is calibrated. Inside the backbone all windows run at
high bits on the way to the next block, so that the result does not depend on the configured ratios; the low branch
sees the lowest half of the ranking. After the backbone come the groups of a quantized detector (neck, RPN, RoI heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mixaq_mmdet.models.two_branch_block import LOW_NORMS
from mixaq_mmdet.models.two_branch_stage import Ranking, StageInput
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.quantization import Method, Quantizer, QuantWeight
from mixaq_mmdet.quantization.methods import BlockInputs

from .calibration_inputs import Replay, TensorStore
from .calibration_journal import BlockJournal

BRANCHES = ('all', 'low')


@dataclass
class ImageState:
    """What travels with one image from block to block, besides its residual stream."""

    told: list[StageInput]
    hw_shape: tuple[int, int] = (0, 0)
    rankings: dict[int, Ranking] = field(default_factory=dict)


def quantized_backbone(model: nn.Module) -> TwoBranchSwin | None:
    """The quantized TwoBranchSwin inside a model, if any."""
    for module in model.modules():
        if isinstance(module, TwoBranchSwin) and hasattr(module, 'quant_method'):
            return module
    return None


def uncalibrated(model: nn.Module) -> list[Quantizer]:
    """Quantizers of a model that have no range and would be used."""
    unused = set()
    backbone = quantized_backbone(model)
    if backbone is not None:
        for stage in backbone.stages[max(backbone.out_indices) + 1 :]:
            unused.update(stage.modules())
    return [m for m in model.modules() if isinstance(m, Quantizer) and not m.ready and m not in unused]


def check_branches(branches: str) -> str:
    """Return ``branches``; anything but 'all' and 'low' is a ValueError."""
    if branches not in BRANCHES:
        raise ValueError(f'branches={branches!r} is unknown; use one of {list(BRANCHES)}')
    return branches


@torch.no_grad()
def copy_low_norms(block: Any) -> None:
    """Give the low branch of a two-branch block the high one's norms."""
    for low, high in LOW_NORMS.items():
        if hasattr(block, low):
            for target, source in zip(getattr(block, low).parameters(), getattr(block, high).parameters(), strict=True):
                target.copy_(source)


def low_branch_left_behind(backbone: TwoBranchSwin) -> bool:
    """Whether training moved the high branch alone, so that its low one fits the weights no more.

    The norms tell: both branches start with the same, no calibration parts them, and training moves those that it
    runs. Asked of methods that can calibrate the low branch alone, which are those that train.
    """
    if bool(backbone.low_trained) or type(backbone.quant_method).calibrate_low is Method.calibrate_low:
        return False
    norms = [
        (getattr(block, low), getattr(block, high))
        for stage in backbone.stages[: max(backbone.out_indices) + 1]
        for block in stage.blocks
        for low, high in LOW_NORMS.items()
    ]
    return any(
        not torch.equal(ours, theirs)
        for low, high in norms
        for ours, theirs in zip(low.parameters(), high.parameters(), strict=True)
    )


class Calibrator:
    """Calibrates a model in place.

    Args:
        model: a detector, a classifier or a bare TwoBranchSwin; a distributed wrapper is looked through.
        store_limit: bytes of stored block inputs that stay in memory; more are spilled to disk.
        tick: called after each image and pass, for progress.
        journal: where finished blocks are kept and found again; None keeps none.
        branches: 'all'; or 'low': the low branch anew after training that never ran it. Its norms are copied from the
            high ones and its quantizers fitted, everything else stays as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        store_limit: int = 4 << 30,
        tick: Callable[[], None] = lambda: None,
        journal: BlockJournal | None = None,
        branches: str = 'all',
    ) -> None:
        self.model: Any = model.module if is_model_wrapper(model) else model
        self.backbone = quantized_backbone(self.model)
        self.head_method: Method | None = getattr(self.model, 'detector_quant_method', None)
        if self.backbone is None and self.head_method is None:
            raise ValueError(
                'model has nothing to calibrate; set quant=dict(method=...) in a TwoBranchSwin backbone, or use '
                "type='QuantDetector' with detector_quant"
            )
        self.branches = check_branches(branches)
        if branches == 'low':
            if self.backbone is None:
                raise ValueError("branches='low' needs a quantized TwoBranchSwin backbone; use branches='all'")
            self.head_method = None  # heads have no low branch
        self.store_limit = store_limit
        self.tick = tick
        self.journal = journal
        self.noise: dict[str, float] = {}
        self._fitted = 0

    @property
    def configs(self) -> list[dict[str, Any]]:
        """Full configs of the methods at work."""
        methods = [None if self.backbone is None else self.backbone.quant_method, self.head_method]
        return [method.config for method in methods if method is not None]

    def steps(self, images: int) -> int:
        """How often ``tick`` will be called for ``images`` images on this rank."""
        total = 0
        if self.backbone is not None:
            blocks: list[nn.Module] = [self.backbone.patch_embed]
            for stage in self.backbone.stages[: max(self.backbone.out_indices) + 1]:
                blocks += [*stage.blocks] if stage.downsample is None else [*stage.blocks, stage.downsample]
            method = self.backbone.quant_method
            # one more pass on to the next block
            total += sum(method.calibration_steps(block, images) + images for block in blocks)
        if self.head_method is not None:
            groups = [nn.ModuleList(layers) for layers in self._groups().values()]
            total += sum(self.head_method.calibration_steps(group, images) for group in groups)
        return total

    @torch.no_grad()
    def run(self, batches: Iterable[Any]) -> dict[str, float]:
        """Calibrate on batches of one image, from a dataloader of the test pipeline or as (1, C, H, W) tensors.

        Returns:
            Signal to quantization noise in dB of each activation quantizer, by its name.
        """
        was_training = self.model.training
        self.model.eval()
        samples, images = self._preprocess(batches)
        features: list[TensorStore] = []
        if self.backbone is not None:
            features = self._calibrate_backbone(self.backbone, images)
        if self.head_method is not None:
            self._calibrate_groups(self.head_method, images, samples, features)
        methods = {self.backbone.quant_method if self.backbone is not None else None, self.head_method} - {None}
        if self.branches == 'all':
            for method in methods:
                method.finalize(self.model)
        self.model.train(was_training)
        return self.noise

    def _preprocess(self, batches: Iterable[Any]) -> tuple[list[Any], TensorStore]:
        images = TensorStore(self.store_limit)
        samples = []
        for batch in batches:
            if isinstance(batch, Tensor):
                inputs, sample = batch, None
            else:
                data = self.model.data_preprocessor(batch, False)
                inputs, sample = data['inputs'], data.get('data_samples')
            images.append(inputs)
            samples.append(sample)
        return samples, images

    def _fit(self, method: Method, block: nn.Module, images: int, run: Callable[[Any, int], Iterable[Any]]) -> None:
        number, self._fitted = self._fitted, self._fitted + 1
        noise = None if self.journal is None else self.journal.restore(number, block)
        if noise is not None:
            for _ in range(method.calibration_steps(block, images)):
                self.tick()
        else:
            noise = self._fitting(method, block)(block, Replay(images, run, self.tick, self.store_limit))
            if self.journal is not None:
                self.journal.record(number, block, noise)
        self.noise.update(noise)

    def _fitting(self, method: Method, block: nn.Module) -> Callable[[nn.Module, BlockInputs], dict[str, float]]:
        if self.branches == 'all':
            return method.calibrate
        copy_low_norms(block)
        return method.calibrate_low

    def _calibrate_backbone(self, backbone: TwoBranchSwin, images: TensorStore) -> list[TensorStore]:
        """Calibrate every block; returns the stored maps of ``out_indices``, if a detector's groups need them."""
        method: Method = backbone.quant_method
        states = [ImageState(list(backbone.tell_stages(images[i], rank_all=True))) for i in range(len(images))]
        stream = TensorStore(self.store_limit)
        self._fit(method, backbone.patch_embed, len(images), lambda block, i: [block(images[i])])
        for i, state in enumerate(states):
            x, state.hw_shape = backbone.embed(images[i])
            stream.append(x)
            self.tick()
        features = []
        for index, stage in enumerate(backbone.stages[: max(backbone.out_indices) + 1]):
            for i, state in enumerate(states):
                state.rankings = stage.rank(stream[i], state.hw_shape, state.told[index], backbone.importance)
            for block in stage.blocks:
                self._calibrate_block(method, stage, block, stream, states)
            if index in backbone.out_indices and self.head_method is not None:
                store = TensorStore(self.store_limit)
                for i, state in enumerate(states):
                    store.append(backbone.output(index, stream[i], state.hw_shape))
                features.append(store)
            if stage.downsample is not None:
                self._calibrate_downsample(method, stage.downsample, stream, states)
        return features

    def _calibrate_block(
        self, method: Method, stage: Any, block: Any, stream: TensorStore, states: list[ImageState]
    ) -> None:
        def assignments(x: Tensor, state: ImageState) -> tuple[Any, Any]:
            return stage.branch_assignments(x, state.hw_shape, state.rankings, block.attn.shift_size)

        def run(block: Any, i: int) -> Iterator[Tensor]:
            x = stream[i]
            for assignment in assignments(x, states[i]):
                yield block(x, assignment)

        self._fit(method, block, len(stream), run)
        for i, state in enumerate(states):
            x = stream[i]
            stream[i] = block(x, assignments(x, state)[0])
            self.tick()

    def _calibrate_downsample(
        self, method: Method, downsample: Any, stream: TensorStore, states: list[ImageState]
    ) -> None:
        self._fit(method, downsample, len(stream), lambda block, i: [block(stream[i], states[i].hw_shape)])
        for i, state in enumerate(states):
            stream[i], state.hw_shape = downsample(stream[i], state.hw_shape)
            self.tick()

    def _groups(self) -> dict[str, list[nn.Module]]:
        """Quantized layers outside the backbone, by the part of the detector that they belong to, in forward order.

        A part is a direct child of the detector; below ``roi_head`` each head, and each stage of a cascade.
        """
        groups: dict[str, list[nn.Module]] = {}
        for path, module in self.model.named_modules():
            if isinstance(module, QuantWeight) and not path.startswith('backbone.'):
                names = path.split('.')
                depth = 1 if names[0] != 'roi_head' else 3 if names[2].isdigit() else 2
                groups.setdefault('.'.join(names[:depth]), []).append(module)
        return groups

    def _calibrate_groups(
        self, method: Method, images: TensorStore, samples: list[Any], features: list[TensorStore]
    ) -> None:
        groups = self._groups()
        quantizers = [m for group in groups.values() for layer in group for m in layer.modules()]
        quantizers = [m for m in quantizers if isinstance(m, Quantizer)]

        def run(_: Any, i: int) -> list[Any]:
            with replaced_backbone(self.model, [store[i] for store in features]):
                return [self.model(images[i], samples[i], mode='predict')]

        try:
            for quantizer in quantizers:
                quantizer.mode = 'float'
            for layers in groups.values():
                group = nn.ModuleList(layers)
                for quantizer in (m for m in group.modules() if isinstance(m, Quantizer)):
                    quantizer.mode = 'quantize'
                self._fit(method, group, len(images), run)
        finally:
            for quantizer in quantizers:
                quantizer.mode = 'quantize'


@contextmanager
def replaced_backbone(model: Any, features: list[Tensor]) -> Iterator[None]:
    """Let the backbone return stored features, if there are any, instead of computing them again."""
    if not features:
        yield
        return
    model.backbone.forward = lambda x: tuple(features)
    try:
        yield
    finally:
        del model.backbone.forward
