"""Layer-wise relevance of a Swin backbone inside a detector (Mix-QViT, arXiv 2501.06357).

Relevance starts at the class logits of RoIs that match an object (our choice for detectors): at the backbone's maps it
is the positive part of map x gradient of these logits, scaled to 1 in total. From there it walks back through the
blocks by the rules of ``relevance_rules.py``, together with the gradient. LayerNorm, GELU, softmax and the scaling of
queries pass relevance on unchanged; the position bias takes none; what reaches padding goes back to the real tokens.
A layer's importance is the relevance that arrives at its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixaq_mmdet.models.steps import BlockStep, MergingStep, OutputStep, Step, Stream
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.models.window_attention import merge_heads

from .relevance_rules import conserved, gated_rule, linear_rule, product_rule, sum_rule


@dataclass
class Walk:
    """What travels back through the backbone.

    Attributes:
        relevance: (1, H * W, C) of the residual stream.
        gradient: (1, H * W, C) of the explained logits by the residual stream.
        layers: relevance at the output of each layer, by module path.
    """

    relevance: Tensor
    gradient: Tensor
    layers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Relevance:
    """Result for one image: ``layers`` by module path, and ``tokens`` (H, W) of the first stage's input; sums to 1."""

    layers: dict[str, float]
    tokens: Tensor


def backbone_relevance(backbone: TwoBranchSwin, image: Tensor, gradients: list[Tensor]) -> Relevance:
    """Relevance of every matrix product of a float backbone for one image.

    Args:
        backbone: float, in eval mode; every window takes the high branch whatever its ratios.
        image: (1, C, H, W), preprocessed.
        gradients: of what is explained by each of the backbone's output maps, (1, C_i, H_i, W_i).
    """
    if backbone.quant_method is not None:
        raise ValueError('relevance is that of the float model; leave model.backbone.quant out')
    with torch.no_grad():
        walked = _forward(backbone, image)
    starts = _start([(step, stream) for step, stream in walked if isinstance(step, OutputStep)], gradients)
    walk: Walk | None = None
    for step, stream in reversed(walked):
        if isinstance(step, OutputStep):
            walk = _join(walk, starts[step.path])
        elif walk is not None and isinstance(step, BlockStep):
            _through_block(walk, step, stream)
        elif walk is not None and isinstance(step, MergingStep):
            _through_merging(walk, step, stream)
    assert walk is not None
    projection = backbone.patch_embed.projection
    walk.layers['patch_embed.projection'] = float(walk.relevance.sum())
    size = [-(-side // stride) for side, stride in zip(image.shape[2:], projection.stride, strict=True)]
    return Relevance(walk.layers, walk.relevance.sum(-1).view(*size).detach())


def _forward(backbone: TwoBranchSwin, image: Tensor) -> list[tuple[Step, Stream]]:
    """Every step with the stream that enters it."""
    walked: list[tuple[Step, Stream]] = []
    with backbone.at_ratios(0.0, 0.0):
        stream = backbone.begin(image)
        for step in backbone.steps():
            walked.append((step, stream))
            stream = step(stream)
    return walked


def _start(outputs: list[tuple[OutputStep, Stream]], gradients: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """(relevance, gradient) of the stream at each output map; all relevance together is 1."""
    starts = {}
    for (step, stream), gradient in zip(outputs, gradients, strict=True):
        gradient = gradient.flatten(2).transpose(1, 2)
        x = stream.x.detach().requires_grad_()
        with torch.enable_grad():
            out = step.module(x)
            back = torch.autograd.grad(out, x, gradient)[0]
        starts[step.path] = ((out.detach() * gradient).clamp(min=0), back)
    total = sum(float(relevance.sum()) for relevance, _ in starts.values())
    if total <= 0:
        raise ValueError('the explained logits depend on no map of the backbone; use other images')
    return {name: (relevance / total, back) for name, (relevance, back) in starts.items()}


def _join(walk: Walk | None, start: tuple[Tensor, Tensor]) -> Walk:
    if walk is None:
        return Walk(*start)
    walk.relevance = walk.relevance + start[0]
    walk.gradient = walk.gradient + start[1]
    return walk


def _through_merging(walk: Walk, step: MergingStep, stream: Stream) -> None:
    """Patch merging: z+ through the reduction, unchanged through the norm and the regrouping of tokens."""
    caught: list[Tensor] = []
    reduction = step.module.reduction
    handle = reduction.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    x = stream.x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            out, _ = step.module(x, stream.size)
            gradient = torch.autograd.grad(out, x, walk.gradient)[0]
    finally:
        handle.remove()
    walk.layers[f'{step.path}.reduction'] = float(walk.relevance.sum())
    merged = linear_rule(caught[0], reduction.weight.detach(), walk.relevance)
    walk.relevance = conserved(_regroup(stream.x, stream.size, merged), walk.relevance.sum())
    walk.gradient = gradient


def _regroup(x: Tensor, size: tuple[int, int], merged: Tensor) -> Tensor:
    """Relevance of merged tokens (1, h * w, 4 C) at the tokens they were made of, (1, H * W, C)."""
    height, width = size
    plain = torch.nn.functional.pad(
        x.new_zeros(1, height, width, x.shape[-1]), (0, 0, 0, width % 2, 0, height % 2)
    ).shape
    h, w = plain[1] // 2, plain[2] // 2
    corners = merged.view(1, h, w, x.shape[-1], 2, 2).permute(0, 1, 4, 2, 5, 3)
    return corners.reshape(1, 2 * h, 2 * w, -1)[:, :height, :width].reshape(x.shape)


def _through_block(walk: Walk, step: BlockStep, stream: Stream) -> None:
    """A whole block, from its output to its input."""
    block = step.module
    x = stream.x.detach().requires_grad_()
    with torch.enable_grad(), watched_block(block) as watch:
        assignment = step.all_high(stream)  # with gradients it is one run: the rules need all windows at once
        out = block(x, assignment)
        seen = dict(watch)
        gradient, by_attention = torch.autograd.grad(out, [x, seen['attention']], walk.gradient)
    (run,) = assignment.runs
    seen = {key: value.detach() for key, value in seen.items()}
    msa, fc1, fc2 = block.attn.w_msa, block.ffn.layers[0][0], block.ffn.layers[1]
    relevance = walk.relevance.view(-1, x.shape[-1]).index_select(0, run.rows)

    def through(layer: str, x: Tensor, module: Any, r: Tensor) -> Tensor:
        walk.layers[f'{step.path}.{layer}'] = float(r.sum())
        return linear_rule(x, module.weight.detach(), r)

    kept, update = sum_rule(seen['middle'], seen['ffn'].view(relevance.shape), relevance)
    update = through('ffn.layers.1', seen['hidden'].flatten(0, -2), fc2, update)
    update = through('ffn.layers.0.0', seen['normed2'].flatten(0, -2), fc1, update)
    kept, update = sum_rule(seen['tokens'], block.to_tokens(seen['update'], run), kept + update)
    total = update.sum()
    spread = block.to_windows(update, run, block.real_tokens(run))  # padding has no relevance
    update = through('attn.w_msa.proj', seen['heads'], msa.proj, spread)
    walk.layers[f'{step.path}.attn.w_msa.attention_value'] = float(total)
    of_attention, of_values = product_rule(seen['attention'], seen['v'], _by_head(update, msa.num_heads))
    of_logits = gated_rule(of_attention, by_attention)
    walk.layers[f'{step.path}.attn.w_msa.query_key'] = float(of_logits.sum())
    of_queries, of_keys = product_rule(seen['q'], seen['k'], of_logits)
    parts = (of_queries, of_keys.transpose(-2, -1), of_values)
    of_qkv = torch.cat([merge_heads(part) for part in parts], dim=-1)
    of_windows = through('attn.w_msa.qkv', seen['windows'], msa.qkv, of_qkv)
    back = conserved(block.to_tokens(of_windows, run), total)  # padding gives back what it got
    of_stream = torch.zeros_like(relevance).index_copy(0, run.rows, (kept + back).detach())
    walk.relevance = of_stream.view(x.shape)
    walk.gradient = gradient


@contextmanager
def watched_block(block: Any) -> Iterator[dict[str, Tensor]]:
    """Keep every tensor that a rule needs while a float block runs.

    ``tokens`` and ``middle`` (T, C) enter the norms, ``windows`` and ``heads`` (windows, tokens, C) the layers of
    attention, ``normed2`` and ``hidden`` those of the FFN; ``q``, ``k`` (transposed), ``attention`` and ``v`` are the
    operands of the products by head; ``update`` (windows, tokens, C) and ``ffn`` are what the residuals add.
    """
    seen: dict[str, Tensor] = {}
    msa, fc1, fc2 = block.attn.w_msa, block.ffn.layers[0][0], block.ffn.layers[1]
    inputs = {
        'tokens': block.norm1, 'windows': msa.qkv, 'heads': msa.proj,
        'middle': block.norm2, 'normed2': fc1, 'hidden': fc2,
    }  # fmt: skip
    outputs = {'update': msa.proj, 'ffn': block.ffn.gamma2}

    def product(*names: str) -> Callable[[Tensor, Tensor, Any], Tensor]:
        def multiply(left: Tensor, right: Tensor, _: Any) -> Tensor:
            seen.update(zip(names, (left, right), strict=True))
            return left @ right

        return multiply

    def entering(name: str) -> Callable[..., None]:
        return lambda _, given: seen.update({name: given[0]})

    def leaving(name: str) -> Callable[..., None]:
        return lambda _, given, out: seen.update({name: out})

    handles = [module.register_forward_pre_hook(entering(name)) for name, module in inputs.items()]
    handles += [module.register_forward_hook(leaving(name)) for name, module in outputs.items()]
    msa.query_key, msa.attention_value = product('q', 'k'), product('attention', 'v')
    try:
        yield seen
    finally:
        msa.query_key = msa.attention_value = None
        for handle in handles:
            handle.remove()


def _by_head(x: Tensor, num_heads: int) -> Tensor:
    """(windows, tokens, C) to (windows, heads, tokens, C / heads)."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)
