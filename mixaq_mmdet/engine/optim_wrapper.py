"""Optimizer wrappers that train with new ratios at every update (SAQA, arXiv 2507.19131)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from torch import Tensor, nn

from mixaq_mmdet.checks import check_number
from mixaq_mmdet.models.backbone_cost import backbone_bops
from mixaq_mmdet.models.two_branch_block import LOW_NORMS
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.quantization.layers import BRANCHES
from mixaq_mmdet.quantization.quantizers import Quantizer
from mixaq_mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

from .argument_checks import known_arguments_only, type_name
from .ratio_sampling import RatioSampler

STATE_KEY = 'sparsity_aware_updates'
LOW_BRANCH = BRANCHES[1]


def two_branch_backbones(model: nn.Module) -> list[TwoBranchSwin]:
    """Every TwoBranchSwin inside a model, wrapped for distributed training or not."""
    found = [module for module in model.modules() if isinstance(module, TwoBranchSwin)]
    if not found:
        raise ValueError(
            f'{type(model).__name__} holds no TwoBranchSwin; set model.backbone.type="TwoBranchSwin", '
            'or train with optim_wrapper.type="OptimWrapper"'
        )
    return found


class _SparsityAware(OptimWrapper):
    """What both wrappers add: ratios drawn from the number of updates done, which checkpoints carry.

    The wrapper sees the model when a step enters ``optim_context``. Ratios stay until the next entry, because backward
    and recomputation (``with_cp``) come after the context; steps that accumulate into one update share them.

    Args:
        max_ratio, step, sampling, seed, prune: see ``RatioSampler``.
        **kwargs: arguments of the stock wrapper.
    """

    @known_arguments_only()
    def __init__(
        self,
        *args: Any,
        max_ratio: float = 0.8,
        step: float = 0.1,
        sampling: str = 'uniform_sum',
        seed: int = 0,
        prune: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = RatioSampler(max_ratio, step, sampling, seed, prune)
        self.updates = 0

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Set the ratios of the present update, then what the stock wrapper does."""
        backbones = two_branch_backbones(model)
        for backbone in backbones:
            ratios = self.sampler.draw(backbone.num_pairs, self.updates)
            if ratios is not None:
                backbone.sample_ratios(*ratios)
        with super().optim_context(model), self._log_cost_of(backbones[0]):
            yield

    def step(self, **kwargs: Any) -> None:
        """Update the parameters; the next step draws anew."""
        super().step(**kwargs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """As the stock wrapper's, with the number of updates done."""
        return {**super().state_dict(), STATE_KEY: self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the draws where they stopped; a file of a stock wrapper begins with the first."""
        content = dict(state_dict)
        self.updates = int(content.pop(STATE_KEY, 0))
        super().load_state_dict(content)

    @contextmanager
    def _log_cost_of(self, backbone: TwoBranchSwin) -> Iterator[None]:
        """Log what the step costs at the size of its images, which only the backbone gets to see."""

        def log(module: TwoBranchSwin, inputs: tuple[Tensor, ...]) -> None:
            if inputs and inputs[0].dim() == 4:  # the backbone itself refuses others, with a better message
                self._log_cost(module, (inputs[0].shape[2], inputs[0].shape[3]))

        handle = backbone.register_forward_pre_hook(log) if backbone.training else nullcontext()
        with handle:
            yield

    def _log_cost(self, backbone: TwoBranchSwin, shape: tuple[int, int]) -> None:
        cost = backbone_bops(backbone, shape)
        low, prune = cost.realised
        scalars = {
            'low_ratio': sum(low) / len(low),
            'prune_ratio': sum(prune) / len(prune),
            'mean_activation_bits': cost.mean_activation_bits(),
            'relative_bops': cost.relative(),
        }
        for name, value in scalars.items():
            self.message_hub.update_scalar(f'train/{name}', value)


@OPTIM_WRAPPERS.register_module()
class SparsityAwareOptimWrapper(_SparsityAware):
    """OptimWrapper that draws new ratios for every optimizer update (SAQA, arXiv 2507.19131).

    Its further arguments are those of ``RatioSampler``: ``max_ratio``, ``step``, ``sampling``, ``prune`` and ``seed``.
    """


@OPTIM_WRAPPERS.register_module()
class SparsityAwareAmpOptimWrapper(_SparsityAware, AmpOptimWrapper):
    """The same with automatic mixed precision."""


BRANCH_LR_MULT = 10.0  # by a pilot: B1 and B2 of docs/results/protocol.md
_TWINS = {'OptimWrapper': 'SparsityAwareOptimWrapper', 'AmpOptimWrapper': 'SparsityAwareAmpOptimWrapper'}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SparsityAwareOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Builds the sparsity-aware wrapper for a model with a TwoBranchSwin, also if ``--amp`` set the stock type.

    It switches off weight decay for the parameters of quantizers (learned steps, offsets) and for the norms of the low
    branch. The parameters of the low branch have a higher learning rate (ours): with one rate for all they hardly leave
    their first values.

    Args:
        optim_wrapper_cfg: the wrapper's config; ``branch_lr_mult`` in it, 10 by default, multiplies the learning rate
            of the low branch's own parameters: its steps, offsets and norms.
        paramwise_cfg: as in the base class.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        content = optim_wrapper_cfg.copy()
        multiplier = content.pop('branch_lr_mult', BRANCH_LR_MULT)
        self.branch_lr_mult = check_number(multiplier, 'optim_wrapper.branch_lr_mult', above=True, usual=BRANCH_LR_MULT)
        super().__init__(content, paramwise_cfg)
        kind = self.optim_wrapper_cfg.get('type', 'OptimWrapper')
        self.optim_wrapper_cfg['type'] = _TWINS.get(type_name(kind), kind)
        # without any option the base class would make a single group of all parameters
        self.paramwise_cfg: dict = self.paramwise_cfg or {'custom_keys': {}}

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper; a model that cannot be trained so is an error here, not in a step."""
        two_branch_backbones(model)
        wrapper = super().__call__(model)
        if not isinstance(wrapper, _SparsityAware):
            raise ValueError(
                f'optim_wrapper.type={type(wrapper).__name__!r} draws no ratios; use one of {list(_TWINS.values())}, '
                'or drop optim_wrapper.constructor'
            )
        return wrapper

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: int | float | None = None
    ) -> None:
        """As the base class; scales, which decay would pull towards zero, without it, and the low branch's faster."""
        first = len(params)
        super().add_params(params, module, prefix, is_dcn_module)
        name, quantizes = prefix.rpartition('.')[2], isinstance(module, Quantizer)
        low = name in LOW_NORMS or (quantizes and name == LOW_BRANCH)
        for group in params[first:]:
            if quantizes or low:
                group['weight_decay'] = 0.0
            if low and self.branch_lr_mult != 1:
                group['lr'] = group.get('lr', self.base_lr) * self.branch_lr_mult
