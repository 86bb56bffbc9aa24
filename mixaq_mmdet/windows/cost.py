"""What a Swin backbone costs: multiply-accumulates (MACs), bit operations, mean activation bits, realised ratios.

Plain integers from geometry, bits and ratios; nothing is traced. The flow is
``backbone_layers(spec, shape) -> [Layer]``, ``pair_tiers(spec, shape, low, prune) -> [TierCounts]``, and
``Cost(layers, tiers, bits)`` for every total. Whoever adds layers to the backbone (a low-rank branch, say) appends
``Layer`` rows; whoever gives layers their own bits passes a function from ``Layer`` to ``LayerBits``.

Two MAC counts: ``'executed'`` is what stock Swin runs (attention on padded windows, FFN on real tokens),
``'window'`` is the window layout (FFN on padded windows too). Two bit-operation conventions (MixA-Q, arXiv 2507.19131):
``'paper'`` is MACs x 32 x b_a, ``'standard'`` is MACs x b_w x b_a, with b_a x b_a for the two attention products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .assignment import TierCounts, tier_counts

COUNTS = ('executed', 'window')
CONVENTIONS = ('paper', 'standard')
PAPER_WEIGHT_BITS = 32


@dataclass(frozen=True)
class SwinSpec:
    """The numbers of a Swin architecture that decide its cost; defaults are Swin-T."""

    embed_dims: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4
    patch_size: int = 4
    in_channels: int = 3
    strides: tuple[int, ...] = (4, 2, 2, 2)

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.num_heads) == len(self.strides):
            raise ValueError(
                f'depths={self.depths}, num_heads={self.num_heads} and strides={self.strides} must be equally long: '
                'one entry per stage'
            )

    @property
    def pair_stages(self) -> tuple[int, ...]:
        """The stage of every block pair; an odd last block is its own pair."""
        return tuple(stage for stage, depth in enumerate(self.depths) for _ in range((depth + 1) // 2))

    def grids(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Token grid (height, width) of each stage for an input of ``shape`` pixels."""
        height, width = shape
        if height < 1 or width < 1:
            raise ValueError(f'shape={tuple(shape)} has an empty side; give (height, width) in pixels')
        grids = []
        for stride in self.strides:
            height, width = -(-height // stride), -(-width // stride)
            grids.append((height, width))
        return grids

    def num_windows(self, shape: tuple[int, int]) -> list[int]:
        """Windows per image in each stage, the padded ones included."""
        size = self.window_size
        return [-(-height // size) * -(-width // size) for height, width in self.grids(shape)]


@dataclass(frozen=True)
class Layer:
    """One matrix product of the backbone and its MACs for one image with every window at high bits.

    Attributes:
        name: module path inside the backbone; attention products are named after their attention module.
        kind: 'linear', 'conv' or 'matmul' (both operands are activations).
        roles: the activation operands: one, or the two of a matmul.
        stage: stage index; -1 for the patch embedding.
        pair: block-pair index over the whole backbone; None when the layer is outside the blocks (always high).
        block: block index inside the stage; None outside the blocks.
        executed: MACs as stock runs them.
        window: MACs in window layout.
    """

    name: str
    kind: str
    roles: tuple[str, ...]
    stage: int
    pair: int | None
    block: int | None
    executed: int
    window: int

    @property
    def compressible(self) -> bool:
        """Whether low and pruned windows make it cheaper."""
        return self.pair is not None

    def macs(self, count: str) -> int:
        """MACs by the count 'executed' or 'window'."""
        return self.executed if _known(count, COUNTS, 'count') == 'executed' else self.window


@dataclass(frozen=True)
class LayerBits:
    """Bits of one layer: weights, and activations in the high and the low branch.

    ``second_high`` and ``second_low`` are those of a matmul's other operand where it differs from the first.
    """

    weight: int = 32
    high: int = 32
    low: int = 32
    second_high: int | None = None
    second_low: int | None = None

    def operations(self, kind: str, convention: str, low: bool = False) -> int:
        """Bit operations of one MAC."""
        activation = self.low if low else self.high
        if _known(convention, CONVENTIONS, 'convention') == 'paper':
            return PAPER_WEIGHT_BITS * activation
        if kind != 'matmul':
            return self.weight * activation
        second = self.second_low if low else self.second_high
        return activation * (activation if second is None else second)


BitsOf = Callable[[Layer], LayerBits]


def backbone_layers(spec: SwinSpec, shape: tuple[int, int]) -> list[Layer]:
    """Every matrix product of the backbone for one image of ``shape`` = (height, width) pixels."""
    grids = spec.grids(shape)
    windows = spec.num_windows(shape)
    rows, cols = grids[0]
    patch = rows * cols * spec.patch_size**2 * spec.in_channels * spec.embed_dims
    layers = [Layer('patch_embed.projection', 'conv', ('patch_in',), -1, None, None, patch, patch)]
    pair = 0
    for stage, depth in enumerate(spec.depths):
        dims = spec.embed_dims * 2**stage
        for block in range(depth):
            layers += _block_layers(spec, stage, block, pair + block // 2, dims, grids[stage], windows[stage])
        pair += (depth + 1) // 2
        if stage + 1 < len(spec.depths):
            rows, cols = grids[stage + 1]
            merge = rows * cols * 4 * dims * 2 * dims
            name = f'stages.{stage}.downsample.reduction'
            layers.append(Layer(name, 'linear', ('merge_in',), stage, None, None, merge, merge))
    return layers


def _block_layers(
    spec: SwinSpec, stage: int, block: int, pair: int, dims: int, grid: tuple[int, int], num_windows: int
) -> list[Layer]:
    tokens = grid[0] * grid[1]
    tokens_per_window = spec.window_size**2
    padded = num_windows * tokens_per_window
    hidden = int(spec.mlp_ratio * dims)
    prefix = f'stages.{stage}.blocks.{block}'
    attention = f'{prefix}.attn.w_msa'
    product = padded * tokens_per_window * dims

    def layer(name: str, kind: str, roles: tuple[str, ...], executed: int, window: int) -> Layer:
        return Layer(name, kind, roles, stage, pair, block, executed, window)

    fc = dims * hidden
    return [
        layer(f'{attention}.qkv', 'linear', ('qkv_in',), padded * dims * 3 * dims, padded * dims * 3 * dims),
        layer(f'{attention}.query_key', 'matmul', ('q', 'k'), product, product),
        layer(f'{attention}.attention_value', 'matmul', ('attn', 'v'), product, product),
        layer(f'{attention}.proj', 'linear', ('proj_in',), padded * dims * dims, padded * dims * dims),
        layer(f'{prefix}.ffn.layers.0.0', 'linear', ('fc1_in',), tokens * fc, padded * fc),
        layer(f'{prefix}.ffn.layers.1', 'linear', ('fc2_in',), tokens * fc, padded * fc),
    ]


def pair_tiers(
    spec: SwinSpec, shape: tuple[int, int], low_ratios: Sequence[float], prune_ratios: Sequence[float] | None = None
) -> list[TierCounts]:
    """Windows (high, low, pruned) of one image in every block pair."""
    stages = spec.pair_stages
    prune_ratios = [0.0] * len(stages) if prune_ratios is None else prune_ratios
    for name, ratios in (('low_ratios', low_ratios), ('prune_ratios', prune_ratios)):
        if len(ratios) != len(stages):
            raise ValueError(f'{name} has {len(ratios)} entries; this backbone needs {len(stages)}, one per block pair')
    windows = spec.num_windows(shape)
    return [
        tier_counts(windows[stage], low, prune)
        for stage, low, prune in zip(stages, low_ratios, prune_ratios, strict=True)
    ]


@dataclass(frozen=True)
class Cost:
    """Totals of one image over ``layers``, with the windows of each pair split into ``tiers``.

    Args:
        layers: what ``backbone_layers`` returns, or any selection of it (a stage, a pair, one layer).
        tiers: (high, low, pruned) windows per block pair, from ``pair_tiers``.
        bits: one ``LayerBits`` for all layers, or a function from layer to bits.
    """

    layers: Sequence[Layer]
    tiers: Sequence[TierCounts]
    bits: LayerBits | BitsOf = field(default_factory=LayerBits)

    def macs(self, count: str = 'executed') -> int:
        """MACs that are run: everything but pruned windows."""
        return sum(high + low for high, low, _ in (self._split(layer, count) for layer in self.layers))

    def bit_operations(self, convention: str = 'standard', count: str = 'executed') -> int:
        """Bit operations; those of pruned windows are 0."""
        return sum(self._layer_operations(layer, convention, count) for layer in self.layers)

    def relative(self, convention: str = 'paper', count: str = 'executed') -> float:
        """Bit operations divided by those of the same bits with every window high."""
        dense = sum(layer.macs(count) * self._dense_operations(layer, convention) for layer in self.layers)
        return self.bit_operations(convention, count) / dense

    def mean_activation_bits(self, count: str = 'executed') -> float:
        """Activation bits averaged over all MACs, those of pruned windows at 0 bits."""
        return self.bit_operations('paper', count) / (
            PAPER_WEIGHT_BITS * sum(layer.macs(count) for layer in self.layers)
        )

    @property
    def realised(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Low and prune ratio of every pair after rounding to whole windows."""
        low = tuple(tier.low / sum(tier) for tier in self.tiers)
        prune = tuple(tier.pruned / sum(tier) for tier in self.tiers)
        return low, prune

    def group(self, key: Callable[[Layer], object]) -> dict[object, Cost]:
        """One Cost per value of ``key``: ``lambda layer: layer.stage``, ``.pair``, ``.name`` ..."""
        groups: dict[object, list[Layer]] = {}
        for layer in self.layers:
            groups.setdefault(key(layer), []).append(layer)
        return {value: Cost(layers, self.tiers, self.bits) for value, layers in groups.items()}

    def summary(self) -> dict[str, object]:
        """The figures a report prints, ready for JSON."""
        low, prune = self.realised
        return {
            'macs': {count: self.macs(count) for count in COUNTS},
            'bit_operations': {
                convention: {count: self.bit_operations(convention, count) for count in COUNTS}
                for convention in CONVENTIONS
            },
            'relative': {
                convention: {count: self.relative(convention, count) for count in COUNTS} for convention in CONVENTIONS
            },
            'mean_activation_bits': {count: self.mean_activation_bits(count) for count in COUNTS},
            'realised_low_ratios': list(low),
            'realised_prune_ratios': list(prune),
        }

    def _bits_of(self, layer: Layer) -> LayerBits:
        return self.bits if isinstance(self.bits, LayerBits) else self.bits(layer)

    def _split(self, layer: Layer, count: str) -> tuple[int, int, int]:
        """MACs of the (high, low, pruned) windows.

        The executed count of an FFN spreads the real tokens evenly over the windows: which windows hold the padding
        depends on the image. Every other count is exact.
        """
        total = layer.macs(count)
        if layer.pair is None:
            return total, 0, 0
        high, low, pruned = self.tiers[layer.pair]
        windows = high + low + pruned
        low_macs, pruned_macs = total * low // windows, total * pruned // windows
        return total - low_macs - pruned_macs, low_macs, pruned_macs

    def _layer_operations(self, layer: Layer, convention: str, count: str) -> int:
        high, low, _ = self._split(layer, count)
        bits = self._bits_of(layer)
        per_low = bits.operations(layer.kind, convention, low=True)
        return high * bits.operations(layer.kind, convention) + low * per_low

    def _dense_operations(self, layer: Layer, convention: str) -> int:
        return self._bits_of(layer).operations(layer.kind, convention)


def backbone_cost(
    spec: SwinSpec,
    shape: tuple[int, int],
    low_ratios: Sequence[float],
    prune_ratios: Sequence[float] | None = None,
    bits: LayerBits | BitsOf | None = None,
) -> Cost:
    """The cost of a whole backbone for one image of ``shape``; without ``bits`` everything counts as 32 bit."""
    tiers = pair_tiers(spec, shape, low_ratios, prune_ratios)
    return Cost(backbone_layers(spec, shape), tiers, LayerBits() if bits is None else bits)


def _known(value: str, names: Iterable[str], what: str) -> str:
    if value not in names:
        raise ValueError(f'{what}={value!r} is unknown; use one of {list(names)}')
    return value
