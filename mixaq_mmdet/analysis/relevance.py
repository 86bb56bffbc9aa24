"""Layer-wise relevance of a Swin backbone inside a detector (Mix-QViT, arXiv 2501.06357).

Relevance starts at the class logits of RoIs that match an object (our choice for detectors): at the backbone's maps it
is the positive part of map x gradient of these logits, scaled to 1 in total. From there it walks back through the
blocks by the rules of ``relevance_rules.py``, together with the gradient. LayerNorm, GELU, softmax and the scaling of
queries pass relevance on unchanged; the position bias takes none; what reaches padding goes back to the real tokens.
A layer's importance is the relevance that arrives at its output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.models.window_attention import merge_heads, split_heads
from mixaq_mmdet.windows.rows import spread_rows, take_rows

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
    if hasattr(backbone, 'quant_method'):
        raise ValueError('relevance is that of the float model; leave model.backbone.quant out')
    with torch.no_grad():
        steps, maps = _forward(backbone, image)
    starts = _start(backbone, maps, gradients)
    walk: Walk | None = None
    for kind, name, module, x, size in reversed(steps):
        if kind == 'output':
            walk = _join(walk, starts[name])
        elif walk is not None:
            if kind == 'block':
                _through_block(walk, name, module, x, size)
            else:
                _through_merging(walk, name, module, x, size)
    assert walk is not None
    projection = backbone.patch_embed.projection
    walk.layers['patch_embed.projection'] = float(walk.relevance.sum())
    size = [-(-side // stride) for side, stride in zip(image.shape[2:], projection.stride, strict=True)]
    return Relevance(walk.layers, walk.relevance.sum(-1).view(*size).detach())


def _forward(backbone: TwoBranchSwin, image: Tensor) -> tuple[list[tuple], list[tuple[str, Tensor]]]:
    """Every step with its input: (kind, name, module, stream, (H, W) or assignment)."""
    steps: list[tuple] = []
    maps: list[tuple[str, Tensor]] = []
    x, size = backbone.embed(image)
    for index, stage in enumerate(backbone.stages[: max(backbone.out_indices) + 1]):
        for number, block in enumerate(stage.blocks):
            with torch.enable_grad():  # one run per block: the walk needs all windows at once
                assignment = stage._assign(x, size, {}, block.attn.shift_size, 0.0, 0.0)
            steps.append(('block', f'stages.{index}.blocks.{number}', block, x, assignment))
            x = block(x, assignment)
        if index in backbone.out_indices:
            steps.append(('output', f'norm{index}', None, x, size))
            maps.append((f'norm{index}', x))
        if stage.downsample is not None and index < max(backbone.out_indices):
            steps.append(('merging', f'stages.{index}.downsample', stage.downsample, x, size))
            x, size = stage.downsample(x, size)
    return steps, maps


def _start(
    backbone: TwoBranchSwin, maps: list[tuple[str, Tensor]], gradients: list[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(relevance, gradient) of the stream at each output map; all relevance together is 1."""
    starts = {}
    for (name, x), gradient in zip(maps, gradients, strict=True):
        norm = getattr(backbone, name)
        gradient = gradient.flatten(2).transpose(1, 2)
        stream = x.detach().requires_grad_()
        with torch.enable_grad():
            out = norm(stream)
            back = torch.autograd.grad(out, stream, gradient)[0]
        starts[name] = ((out.detach() * gradient).clamp(min=0), back)
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


def _through_merging(walk: Walk, name: str, merging: Any, x: Tensor, size: tuple[int, int]) -> None:
    """Patch merging: z+ through the reduction, unchanged through the norm and the regrouping of tokens."""
    caught: list[Tensor] = []
    handle = merging.reduction.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    stream = x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            out, _ = merging(stream, size)
            gradient = torch.autograd.grad(out, stream, walk.gradient)[0]
    finally:
        handle.remove()
    walk.layers[f'{name}.reduction'] = float(walk.relevance.sum())
    merged = linear_rule(caught[0], merging.reduction.weight.detach(), walk.relevance)
    walk.relevance = conserved(_regroup(merging, x, size, merged), walk.relevance.sum())
    walk.gradient = gradient


def _regroup(merging: Any, x: Tensor, size: tuple[int, int], merged: Tensor) -> Tensor:
    """Relevance of merged tokens (1, h * w, 4 C) at the tokens they were made of, (1, H * W, C)."""
    height, width = size
    plain = torch.nn.functional.pad(
        x.new_zeros(1, height, width, x.shape[-1]), (0, 0, 0, width % 2, 0, height % 2)
    ).shape
    h, w = plain[1] // 2, plain[2] // 2
    corners = merged.view(1, h, w, x.shape[-1], 2, 2).permute(0, 1, 4, 2, 5, 3)
    return corners.reshape(1, 2 * h, 2 * w, -1)[:, :height, :width].reshape(x.shape)


def _through_block(walk: Walk, name: str, block: Any, x: Tensor, assignment: Any) -> None:
    """A whole block, from its output to its input."""
    (run,) = assignment.runs
    stream = x.detach().view(-1, x.shape[-1]).requires_grad_()
    with torch.enable_grad():
        seen = _run_block(block, stream, run)
        out = seen['out']
        upstream = walk.gradient.view(stream.shape).index_select(0, run.rows)
        gradient, by_attention = torch.autograd.grad(out, [stream, seen['attention']], upstream)
    seen = {key: value.detach() for key, value in seen.items()}
    msa, (fc1, _, _), fc2 = block.attn.w_msa, *block.ffn.layers[:2]
    relevance = walk.relevance.view(stream.shape).index_select(0, run.rows)

    def through(layer: str, x: Tensor, module: Any, r: Tensor) -> Tensor:
        walk.layers[f'{name}.{layer}'] = float(r.sum())
        return linear_rule(x, module.weight.detach(), r)

    kept, update = sum_rule(seen['middle'], seen['ffn'], relevance)
    update = through('ffn.layers.1', seen['hidden'], fc2, update)
    update = through('ffn.layers.0.0', seen['normed2'], fc1, update)
    kept, update = sum_rule(seen['tokens'], seen['update'], kept + update)
    total = update.sum()
    update = through('attn.w_msa.proj', seen['heads'], msa.proj, _spread(block, update, run))
    walk.layers[f'{name}.attn.w_msa.attention_value'] = float(total)
    of_attention, of_values = product_rule(seen['attention'], seen['v'], _by_head(update, msa.num_heads))
    of_logits = gated_rule(of_attention, by_attention)
    walk.layers[f'{name}.attn.w_msa.query_key'] = float(of_logits.sum())
    of_queries, of_keys = product_rule(seen['q'], seen['k'].transpose(-2, -1), of_logits)
    parts = (of_queries, of_keys.transpose(-2, -1), of_values)
    of_qkv = torch.cat([merge_heads(part) for part in parts], dim=-1)
    of_windows = through('attn.w_msa.qkv', seen['windows'], msa.qkv, of_qkv)
    back = conserved(block._to_tokens(of_windows, run), total)  # padding gives back what it got
    walk.relevance = torch.zeros_like(stream).index_copy(0, run.rows, (kept + back).detach()).detach().view(x.shape)
    walk.gradient = gradient.view(x.shape)


def _run_block(block: Any, stream: Tensor, run: Any) -> dict[str, Tensor]:
    """The block's forward by parts, all windows high; every tensor that a rule needs."""
    msa, ffn = block.attn.w_msa, block.ffn
    tokens = take_rows(stream, run.rows)
    windows = block._to_windows(block.norm1(tokens), run, block._real_tokens(run))
    q, k, v = split_heads(msa.qkv(windows), msa.num_heads)
    q = q * msa.scale
    logits, biases = q @ k.transpose(-2, -1), msa.biases(block.attn.shift_size)
    biased = [logits[start:stop] + biases[kind] for start, stop, kind in run.segments]
    attention = torch.cat(biased).softmax(-1)
    heads = merge_heads(attention @ v)
    update = block._to_tokens(msa.proj(heads), run)
    middle = tokens + update
    (fc1, activation, _), fc2 = ffn.layers[:2]
    normed2 = block.norm2(middle)
    hidden = activation(fc1(normed2))
    added = ffn.gamma2(fc2(hidden))
    return {
        'tokens': tokens, 'windows': windows, 'q': q, 'k': k, 'v': v, 'attention': attention, 'heads': heads,
        'update': update, 'middle': middle, 'normed2': normed2, 'hidden': hidden, 'ffn': added, 'out': middle + added,
    }  # fmt: skip


def _spread(block: Any, tokens: Tensor, run: Any) -> Tensor:
    """(T, C) real tokens to (windows, tokens, C), padding without relevance."""
    if run.slots is not None:
        tokens = spread_rows(tokens, run.slots, run.windows * block.window_tokens)
    return tokens.view(run.windows, -1, tokens.shape[-1])


def _by_head(x: Tensor, num_heads: int) -> Tensor:
    """(windows, tokens, C) to (windows, heads, tokens, C / heads)."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)
