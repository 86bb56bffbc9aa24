"""The structures that the C++ sources read, field by field as they declare them."""

from __future__ import annotations

import ctypes

Pair, FloatPair = ctypes.c_void_p * 2, ctypes.c_float * 2


class Linear(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('panels', 'zero_point')),
        *((name, Pair) for name in ('offset', 'multiplier', 'addend')),
        *((name, ctypes.c_int64) for name in ('inputs', 'outputs')),
        ('doubling', ctypes.c_int32),
        ('row_shift', ctypes.c_int32 * 2),
    ]


class Steps(ctypes.Structure):
    _fields_ = [('step', ctypes.c_void_p), ('inverse', ctypes.c_void_p)]


class Learned(ctypes.Structure):
    _fields_ = [
        *((name, Steps) for name in ('qkv_in', 'q', 'k', 'v', 'attn', 'proj_in', 'fc1_in', 'fc2_in')),
        *((name, ctypes.c_void_p) for name in ('qkv_zero', 'q_after', 'v_after', 'proj_in_before', 'fc2_in_before')),
        *((f'{name}_zero', ctypes.c_float) for name in ('qkv_in', 'proj_in', 'fc1_in', 'fc2_in')),
        ('k_zero', ctypes.c_int32),
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
        *((name, ctypes.c_int64) for name in ('channels', 'heads', 'tokens', 'vectors')),
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


class WindowGrid(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ('height', 'width', 'window', 'shift')]
