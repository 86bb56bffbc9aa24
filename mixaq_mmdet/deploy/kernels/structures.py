"""The structures that the C++ sources read, field by field as they declare them."""

from __future__ import annotations

import ctypes

Pair, FloatPair, IntPair = ctypes.c_void_p * 2, ctypes.c_float * 2, ctypes.c_int64 * 2


class Linear(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('panels', 'zero_point')),
        *((name, Pair) for name in ('offset', 'multiplier', 'addend')),
        *((name, ctypes.c_int64) for name in ('inputs', 'outputs')),
        ('doubling', ctypes.c_int32),
        ('row_shift', ctypes.c_int32 * 2),
        ('held', ctypes.c_int32 * 2),
    ]


class Steps(ctypes.Structure):
    _fields_ = [('step', ctypes.c_void_p), ('inverse', ctypes.c_void_p)]


class Learned(ctypes.Structure):
    _fields_ = [
        *((name, Steps) for name in ('qkv_in', 'q', 'k', 'v', 'attn', 'proj_in', 'fc1_in', 'fc2_in')),
        *((name, ctypes.c_void_p) for name in ('qkv_zero', 'q_after', 'v_after', 'v_scale')),
        *((name, ctypes.c_void_p) for name in ('proj_in_before', 'fc2_in_before')),
        *((f'{name}_zero', ctypes.c_float) for name in ('qkv_in', 'proj_in', 'fc1_in', 'fc2_in')),
        ('k_zero', ctypes.c_int32),
        ('v_by_position', ctypes.c_int32),
    ]


class Attention(ctypes.Structure):
    _fields_ = [
        ('logit_multiplier', ctypes.c_float),
        ('q_zero', ctypes.c_int32),
        ('v_zero', ctypes.c_float),
        ('steps_per_octave', ctypes.c_int32),
        *(
            (name, ctypes.c_float)
            for name in (
                'probability_log_scale',
                'probability_levels',
                'probability_inverse_step',
                'probability_zero',
                'out_multiplier',
                'out_zero',
                'out_top',
            )
        ),
    ]


class Block(ctypes.Structure):
    _fields_ = [
        *((name, Linear) for name in ('qkv', 'proj', 'fc1', 'fc2')),
        *((name, Pair) for name in ('gamma1', 'beta1', 'gamma2', 'beta2', 'qkv_top', 'pad_codes', 'learned')),
        ('bias', ctypes.c_void_p),
        ('attention', Attention * 2),
        *((name, FloatPair) for name in ('qkv_in_top', 'fc1_in_top', 'fc2_in_inverse', 'fc2_in_zero', 'fc2_in_top')),
        ('epsilon', ctypes.c_float),
        *((name, ctypes.c_int64) for name in ('channels', 'heads', 'tokens', 'vectors', 'kinds')),
    ]


class Merging(ctypes.Structure):
    _fields_ = [
        ('reduction', Linear),
        *((name, ctypes.c_void_p) for name in ('gamma', 'beta')),
        *((name, ctypes.c_float) for name in ('in_top', 'epsilon')),
        ('channels', ctypes.c_int64),
    ]


class Embedding(ctypes.Structure):
    _fields_ = [
        ('projection', Linear),
        *((name, ctypes.c_float) for name in ('in_inverse', 'in_zero', 'in_top')),
        *((name, ctypes.c_void_p) for name in ('in_before', 'gamma', 'beta')),
        ('epsilon', ctypes.c_float),
        *((name, ctypes.c_int64) for name in ('in_channels', 'patch')),
    ]


class Layer(ctypes.Structure):
    _fields_ = [
        ('product', Linear),
        ('channels', ctypes.c_int64),
        *((name, IntPair) for name in ('kernel', 'stride', 'padding', 'dilation')),
        ('outputs', ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ('blank', 'to_codes')),
        *((name, ctypes.c_float) for name in ('low', 'top')),
    ]


class ByteImage(ctypes.Structure):
    _fields_ = [
        ('pixels', ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ('height', 'width', 'channel_step', 'row_step', 'column_step')),
    ]


class RoiLevel(ctypes.Structure):
    _fields_ = [
        ('map', ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ('height', 'width')),
        ('scale', ctypes.c_float),
    ]


class RoiAlign(ctypes.Structure):
    _fields_ = [
        ('levels', ctypes.POINTER(RoiLevel)),
        *((name, ctypes.c_int64) for name in ('num_levels', 'batch', 'channels')),
        *((name, ctypes.c_void_p) for name in ('rois', 'level_of')),
        *((name, ctypes.c_int64) for name in ('count', 'rows', 'columns', 'sampling')),
        *((name, ctypes.c_int32) for name in ('aligned', 'maps_channels_last', 'pooled_channels_last')),
        *((name, ctypes.c_float) for name in ('in_step', 'in_zero', 'out_inverse', 'out_zero', 'out_top')),
    ]


class Nms(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('boxes', 'scores', 'labels')),
        *((name, ctypes.c_int64) for name in ('rows', 'columns', 'box_row', 'box_column', 'score_row')),
        *((name, ctypes.c_float) for name in ('least', 'nms_least', 'threshold')),
        *((name, ctypes.c_int64) for name in ('split', 'limit')),
        ('one_class', ctypes.c_int32),
    ]


class Pasting(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('masks', 'boxes')),
        *((name, ctypes.c_int64) for name in ('count', 'mask_height', 'mask_width', 'height', 'width')),
        ('threshold', ctypes.c_float),
    ]


class WindowGrid(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ('height', 'width', 'window', 'shift')]


class WindowSegment(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ('start', 'stop', 'kind')]


class Trace(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ('qkv_in', 'qkv', 'proj_in', 'fc1_in', 'fc2_in', 'probabilities')]


Mirrored = dict[str, type[ctypes.Structure]]
MIRRORED: Mirrored = {
    'Linear': Linear,
    'Steps': Steps,
    'Learned': Learned,
    'Attention': Attention,
    'Block': Block,
    'Trace': Trace,
    'Merging': Merging,
    'Embedding': Embedding,
    'Layer': Layer,
    'ByteImage': ByteImage,
    'Grid': WindowGrid,
    'Segment': WindowSegment,
}

PORTABLE_MIRRORED: Mirrored = {'RoiLevel': RoiLevel, 'RoiAlign': RoiAlign, 'Nms': Nms, 'Pasting': Pasting}


def check_sizes(library: ctypes.CDLL, mirrored: Mirrored) -> None:
    """Compare structures with the library's own.

    Raises:
        RuntimeError: naming the first one that differs: sources and this file do not belong together.
    """
    for name, mirror in mirrored.items():
        size_of = getattr(library, f'mixaq_size_of_{name}')
        size_of.restype = ctypes.c_int64
        if (size := size_of()) != ctypes.sizeof(mirror):
            raise RuntimeError(
                f'structure {name} has {size} bytes in the C++ library and {ctypes.sizeof(mirror)} in structures.py; '
                'declare the same fields in both'
            )
