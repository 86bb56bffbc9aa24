"""Statistics merge exactly in any split and order; ranges equal exact quantiles to a bin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixaq_mmdet.quantization.functional import affine_parameters, fake_quantize
from mixaq_mmdet.quantization.observers import (
    BINS,
    HistogramObserver,
    MinMaxObserver,
    MinMaxRange,
    MSERange,
    PercentileRange,
    PercentileSearchRange,
    Samples,
)

BITS = 4


def observed(parts, axis=None, rows=1):
    ends = MinMaxObserver('layer', axis, rows)
    for part in parts:
        ends.observe(part)
    histogram = HistogramObserver(ends)
    for part in parts:
        histogram.observe(part)
    return histogram


def simulate(samples, low, high):
    return fake_quantize(samples.values, *affine_parameters(low, high, BITS), BITS, axis=0)


@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([None, 1]),
)
@settings(max_examples=40, deadline=None)
def test_any_split_over_ranks_and_calls_gives_the_same_statistics(seed, sizes, ranks, axis):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, 3, 2, generator=generator) * 10 for size in [*sizes, 1]]
    together = observed([torch.cat(parts)], axis, 3 if axis else 1)

    ends = [MinMaxObserver('layer', axis, 3 if axis else 1) for _ in range(ranks)]
    for index, part in enumerate(parts):
        ends[index % ranks].observe(part)
    merged = ends[0]
    for other in ends[1:]:
        merged.merge(other)
    histograms = [HistogramObserver(merged) for _ in range(ranks)]
    for index, part in enumerate(parts):
        histograms[(index + 1) % ranks].observe(part)
    for other in histograms[1:]:
        histograms[0].merge(other)

    assert torch.equal(histograms[0].low, together.low)
    assert torch.equal(histograms[0].high, together.high)
    assert torch.equal(histograms[0].counts, together.counts)
    assert int(together.counts.sum()) == sum(part.numel() for part in parts)


@pytest.mark.parametrize('axis', [None, -1])
@pytest.mark.parametrize('share', [0.0, 0.001, 0.5, 0.9999, 1.0])
def test_histogram_quantiles_equal_exact_ones_to_a_bin(share, axis):
    x = torch.randn(700, 4, generator=torch.Generator().manual_seed(0)) ** 3
    histogram = observed(x.split(93), axis, 4 if axis else 1)
    found = histogram.samples().quantile(share)
    rows = x.t() if axis else x.reshape(1, -1)
    exact = torch.quantile(rows.double(), share, dim=1, interpolation='nearest').float()
    bin_width = (histogram.high - histogram.low) / BINS
    assert bool(((found - exact).abs() <= bin_width).all())
    torch.testing.assert_close(Samples.exact(x, axis, 'layer').quantile(share), exact)


def test_chunks_do_not_change_counts(monkeypatch):
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    whole = observed([x], -1, 8).counts
    monkeypatch.setattr('mixaq_mmdet.quantization.observers._CHUNK', 24)
    assert torch.equal(observed([x], -1, 8).counts, whole)


def test_more_elements_than_torch_quantile_takes():
    x = torch.arange(2**24 + 10, dtype=torch.float32).view(2, -1)
    assert Samples.exact(x, None, 'weight').quantile(1.0).item() == x.max()


def test_empty_inputs_count_as_nothing():
    x = torch.randn(5, 2)
    with_empty = observed([x[:0], x, x[:0]])
    assert torch.equal(with_empty.counts, observed([x]).counts)


def test_a_layer_without_data_is_named():
    ends = MinMaxObserver('stages.3.blocks.1.ffn.layers.1.fc2_in.low')
    ends.observe(torch.empty(0, 4))
    with pytest.raises(ValueError, match=r'stages\.3\.blocks\.1\.ffn\.layers\.1\.fc2_in\.low never saw data'):
        HistogramObserver(ends)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_nan_and_inf_name_the_layer(bad):
    x = torch.tensor([1.0, bad, 2.0])
    with pytest.raises(ValueError, match='the_layer saw NaN or Inf'):
        MinMaxObserver('the_layer').observe(x)
    with pytest.raises(ValueError, match='the_layer saw NaN or Inf'):
        Samples.exact(x, None, 'the_layer')


def test_histograms_with_different_ends_do_not_merge():
    with pytest.raises(ValueError, match='different ends cannot be merged'):
        observed([torch.tensor([0.0, 1.0])]).merge(observed([torch.tensor([0.0, 2.0])]))


def heavy_tailed():
    generator = torch.Generator().manual_seed(0)
    return torch.cat([torch.randn(20000, generator=generator), torch.tensor([60.0, -30.0])])


def test_ranges_differ_as_they_should():
    samples = observed([heavy_tailed()]).samples()
    low, high = MinMaxRange()(samples, simulate)
    assert (low.item(), high.item()) == (-30.0, 60.0)
    low, high = PercentileRange(99.9)(samples, simulate)
    assert -4.5 < low.item() < -2.5
    assert 2.5 < high.item() < 4.5

    def error(find_range):
        return samples.squared_error(simulate(samples, *find_range(samples, simulate))).item()

    assert error(MSERange()) < 0.7 * error(MinMaxRange())
    assert error(MSERange(steps=40, rounds=2)) <= error(MSERange(steps=40, rounds=1))
    searched = error(PercentileSearchRange())
    assert searched == min(error(PercentileRange(share)) for share in (99.9, 99.99, 99.999))


def test_ranges_are_found_row_by_row():
    x = torch.stack([heavy_tailed(), heavy_tailed() * 5])
    low, high = PercentileSearchRange()(Samples.exact(x, 0, 'weight'), simulate)
    torch.testing.assert_close(low[1], low[0] * 5)
    torch.testing.assert_close(high[1], high[0] * 5)


def test_sqnr_is_in_decibel():
    samples = Samples.exact(torch.tensor([1.0, -1.0]), None, 'layer')
    assert samples.sqnr(samples.values * 0.9) == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: PercentileRange(40), r'percentile=40 must lie in \(50, 100\]'),
        (lambda: MSERange(steps=1), 'steps >= 2'),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()
