"""The one calibrator: fits all quantizers of a model, block by block, on images of this rank's share.

Everything before a block is already quantized when the block is calibrated. Inside the backbone all windows run at
high bits on the way to the next block, so that the result does not depend on the configured ratios; the low branch
sees the lowest half of the ranking. After the backbone come the groups of a quantized detector (neck, RPN, RoI heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.dist import all_reduce
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mixaq_mmdet.models.steps import OutputStep, Step
from mixaq_mmdet.models.two_branch_block import TwoBranchSwinBlock
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.quantization import Method, Quantizer, quantizer_mode
from mixaq_mmdet.quantization.methods import BlockInputs, Mix

from .gradients import Loss, output_gradients, replaced_backbone, whole_model_loss
from .inputs import Replay, StreamStore, TensorStore
from .journal import BlockJournal
from .parts import Part, calibrated_parts, twins_of

BRANCHES = ('all', 'low')


def check_branches(branches: str) -> str:
    """Return ``branches``; anything but 'all' and 'low' is a ValueError."""
    if branches not in BRANCHES:
        raise ValueError(f'branches={branches!r} is unknown; use one of {list(BRANCHES)}')
    return branches


class Calibrator:
    """Calibrates a model in place.

    Args:
        model: a detector, a classifier or a bare TwoBranchSwin; a distributed wrapper is looked through. Of a model
            that holds several detectors (SoftTeacher) each is calibrated; where only some are, the others.
        store_limit: bytes of stored block inputs that stay in memory; more are spilled to disk.
        tick: called after each image and pass, for progress.
        journal: where finished blocks are kept and found again; None keeps none.
        branches: 'all'; or 'low': the low branch anew after training that never ran it. Its norms are copied from the
            high ones and its quantizers fitted, everything else stays as it is.
        loss: what output gradients are of, for methods that ask for them; by default a detector's own if its images
            are annotated, else the relative error of the backbone's maps against the float model's.
        annotated: whether annotations come with the images, in pixels of the tensors: those of
            ``reading_pipeline(annotated=True)`` do, test pipelines leave them in pixels of the files.
    """

    def __init__(
        self,
        model: nn.Module,
        store_limit: int = 4 << 30,
        tick: Callable[[], None] = lambda: None,
        journal: BlockJournal | None = None,
        branches: str = 'all',
        loss: Loss | None = None,
        annotated: bool = False,
    ) -> None:
        whole: Any = model.module if is_model_wrapper(model) else model
        self.model = whole
        self.parts = calibrated_parts(whole)
        if not self.parts:
            raise ValueError(
                'model has nothing to calibrate; set quant=dict(method=...) in a TwoBranchSwin backbone, or use '
                "type='QuantDetector' with detector_quant"
            )
        if branches == 'all':
            self.parts = [part for part in self.parts if not part.ready] or self.parts
        self.branches = check_branches(branches)
        if branches == 'low':
            # heads have no low branch
            self.parts = [replace(part, head_method=None) for part in self.parts if part.backbone is not None]
            if not self.parts:
                raise ValueError("branches='low' needs a quantized TwoBranchSwin backbone; use branches='all'")
        self.store_limit = store_limit
        self.tick = tick
        self.journal = journal
        self.loss = loss
        self.annotated = annotated
        self.noise: dict[str, float] = {}
        self._fitted = 0

    @property
    def configs(self) -> list[dict[str, Any]]:
        """Full configs of the methods at work."""
        methods = [m for part in self.parts for m in (part.backbone and part.backbone.quant_method, part.head_method)]
        return [method.config for method in methods if method is not None]

    def steps(self, images: int) -> int:
        """How often ``tick`` will be called for ``images`` images on this rank."""
        return sum(part.steps(images) for part in self.parts)

    def run(self, batches: Iterable[Any]) -> dict[str, float]:
        """Calibrate on batches of one image, from a dataloader of the test pipeline or as (1, C, H, W) tensors.

        Returns:
            Signal to quantization noise in dB of each activation quantizer, by its name.
        """
        return self.calibrate(*self.read(batches))

    @torch.no_grad()
    def calibrate(self, samples: list[Any], images: TensorStore) -> dict[str, float]:
        """As :meth:`run`, on what :meth:`read` returned."""
        over_all_ranks = torch.tensor(len(images))
        all_reduce(over_all_ranks)
        if not over_all_ranks:
            raise ValueError('batches is empty; calibration needs at least one image')
        was_training = self.model.training
        self.model.eval()
        for part, twin in list(twins_of(self.parts)):
            if twin is None:
                self._calibrate_part(part, images, samples)
            else:
                self._take_over(part, twin, len(images))
        self.model.train(was_training)
        return self.noise

    def _calibrate_part(self, part: Part, images: TensorStore, samples: list[Any]) -> None:
        features: list[TensorStore] = []
        noise: dict[str, float] = {}
        if part.backbone is not None:
            features = self._calibrate_backbone(part, part.backbone, images, samples, noise)
        if part.head_method is not None:
            self._calibrate_groups(part, part.head_method, images, samples, features, noise)
        self.noise.update({part.prefix + name: value for name, value in noise.items()})

    def _take_over(self, part: Part, twin: Part, images: int) -> None:
        """What was fitted to the same weights before."""
        part.model.load_state_dict(twin.model.state_dict())
        own = {name: value for name, value in self.noise.items() if name.startswith(twin.prefix)}
        self.noise.update({part.prefix + name.removeprefix(twin.prefix): value for name, value in own.items()})
        for _ in range(part.steps(images)):
            self.tick()

    @torch.no_grad()
    def read(self, batches: Iterable[Any]) -> tuple[list[Any], TensorStore]:
        """Data samples and preprocessed images of batches, which are taken one by one."""
        images = TensorStore(self.store_limit)
        samples = []
        heads = any(part.head_method is not None for part in self.parts)
        for batch in batches:
            if isinstance(batch, Tensor):
                check_image(batch)
                inputs, sample = batch, [plain_sample(batch)] if heads else None
            else:
                data = self.model.data_preprocessor(batch, False)
                inputs, sample = data['inputs'], data.get('data_samples')
            images.append(inputs)
            samples.append(sample)
        return samples, images

    def _fit(self, method: Method, block: nn.Module, inputs: Replay) -> dict[str, float]:
        number, self._fitted = self._fitted, self._fitted + 1
        noise = None if self.journal is None else self.journal.restore(number, block)
        if noise is not None:
            for _ in range(method.calibration_steps(block, len(inputs))):
                self.tick()
        else:
            noise = self._fitting(method, block)(block, inputs)
            if self.journal is not None:
                self.journal.record(number, block, noise)
        return noise

    def _fitting(self, method: Method, block: nn.Module) -> Callable[[nn.Module, BlockInputs], dict[str, float]]:
        if self.branches == 'all':
            return method.calibrate
        if isinstance(block, TwoBranchSwinBlock):
            block.copy_low_norms()
        return method.calibrate_low

    def _calibrate_backbone(
        self,
        part: Part,
        backbone: TwoBranchSwin,
        images: TensorStore,
        samples: Sequence[Any],
        noise: dict[str, float],
    ) -> list[TensorStore]:
        """Calibrate every block; returns the stored maps of ``out_indices``, if a detector's groups need them."""
        method = backbone.quant_method
        assert method is not None
        features: list[TensorStore] = []
        keeps_maps = part.head_method is not None or method.uses_gradients
        loss = self.loss
        if method.uses_gradients and loss is None:
            loss = whole_model_loss(part.model, backbone, images, samples, self.annotated, self.store_limit)
        with backbone.at_ratios(0.0, 0.0):
            streams = StreamStore(self.store_limit)
            for i in range(len(images)):
                streams.append(backbone.begin(images[i], rank_all=True))
            floats = images if method.uses_float_inputs else None
            steps = list(backbone.steps())
            for number, step in enumerate(steps):
                if isinstance(step, OutputStep):
                    if keeps_maps:
                        features.append(self._maps(step, streams))
                    continue
                if step.has_layers:
                    gradients = None
                    if method.uses_gradients and loss is not None:
                        gradients = partial(_gradients, part.model, steps[number:], streams, features, loss)
                    # before the weights change
                    behind = None if floats is None else self._float_outputs(step, streams, floats)
                    run, worked = partial(_run, step, streams, floats), partial(_worked, step, streams)
                    inputs = Replay(len(streams), run, self.tick, self.store_limit, gradients, worked)
                    noise.update(self._fit(method, step.module, inputs))
                    floats = behind
                for i in range(len(streams)):
                    streams[i] = step(streams[i])
                    if step.has_layers:
                        self.tick()
        return features

    def _float_outputs(self, step: Step, streams: StreamStore, floats: TensorStore) -> TensorStore:
        """What the float model makes of its own stream ``floats`` in a step; windows are ranked as the streams' are."""
        store = TensorStore(self.store_limit)
        for i in range(len(streams)):
            with quantizer_mode(step.module, 'float'):
                store.append(step(streams[i]._replace(x=floats[i])).x)
            self.tick()
        return store

    def _maps(self, step: OutputStep, streams: StreamStore) -> TensorStore:
        store = TensorStore(self.store_limit)
        for i in range(len(streams)):
            store.append(step.map(streams[i]))
        return store

    def _calibrate_groups(
        self,
        part: Part,
        method: Method,
        images: TensorStore,
        samples: list[Any],
        features: list[TensorStore],
        noise: dict[str, float],
    ) -> None:
        groups = part.groups()
        inside = [m for group in groups.values() for layer in group for m in layer.modules()]
        quantizers = [m for m in inside if isinstance(m, Quantizer)]

        def run(_: Any, i: int) -> list[Any]:
            with replaced_backbone(part.model, [store[i] for store in features]):
                return [part.model(images[i], samples[i], mode='predict')]

        try:
            for quantizer in quantizers:
                quantizer.mode = 'float'
            for layers in groups.values():
                group = nn.ModuleList(layers)
                for quantizer in (m for m in group.modules() if isinstance(m, Quantizer)):
                    quantizer.mode = 'quantize'
                noise.update(self._fit(method, group, Replay(len(images), run, self.tick, self.store_limit)))
        finally:
            for quantizer in quantizers:
                quantizer.mode = 'quantize'


def _run(
    step: Step, streams: StreamStore, floats: TensorStore | None, _: nn.Module, image: int, mix: Mix | None = None
) -> Iterator[Any]:
    """What the step's module makes of an image, or of a mixture with the float model's stream, once per branch."""
    stream = streams[image]
    if mix is not None:
        if floats is None:
            raise ValueError('there is no float stream here: only methods that say uses_float_inputs get it')
        stream = stream._replace(x=mix(stream.x, floats[image]))
    yield from step.by_branch(stream)


def _worked(step: Step, streams: StreamStore, image: int) -> list[Tensor | None]:
    return step.worked(streams[image])


def _gradients(
    model: nn.Module,
    steps: Sequence[Step],
    streams: StreamStore,
    features: Sequence[TensorStore],
    loss: Loss,
    image: int,
    outputs: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of an image's loss by outputs of the first of ``steps``."""
    step, *behind = steps
    maps = [store[image] for store in features]
    return output_gradients(model, step, behind, streams[image], outputs, lambda maps: loss(maps, image), maps)


def check_image(image: Tensor) -> None:
    """A ValueError unless a tensor is a batch of normalised images."""
    if image.dim() != 4 or not image.is_floating_point():
        raise ValueError(
            f'batches: a tensor of shape {tuple(image.shape)} and {image.dtype}; a normalised image is a float tensor '
            'of (1, 3, H, W)'
        )


def plain_sample(images: Tensor) -> DetDataSample:
    """What a detector's heads ask of an image (1, C, H, W) that is what it was read as: nothing resized or padded."""
    size = tuple(images.shape[-2:])
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return DetDataSample(metainfo={**shapes, 'scale_factor': (1.0, 1.0)})
