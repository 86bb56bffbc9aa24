"""Which (shape, texture) pairs are categories; every other pair is a distractor."""

SHAPES = ('disc', 'box', 'triangle', 'star', 'ring')
TEXTURES = ('striped', 'checked', 'dotted', 'mottled')

# Every shape occurs in two categories and every texture in two or three, so neither alone names a category.
CATEGORY_PAIRS = (
    ('striped', 'disc'),
    ('dotted', 'disc'),
    ('checked', 'box'),
    ('mottled', 'box'),
    ('striped', 'triangle'),
    ('mottled', 'triangle'),
    ('dotted', 'star'),
    ('checked', 'star'),
    ('striped', 'ring'),
    ('checked', 'ring'),
)

# Shapes and textures that belong to no category at all.
FOREIGN_SHAPES = ('cross', 'stick', 'blob')
FOREIGN_TEXTURES = ('plain', 'shaded')

DISTRACTOR = 0


def category_name(texture: str, shape: str) -> str:
    return f'{texture} {shape}'


def categories() -> list[dict]:
    """COCO `categories`; ids count from 1."""
    return [
        {'id': number, 'name': category_name(texture, shape), 'supercategory': shape}
        for number, (texture, shape) in enumerate(CATEGORY_PAIRS, start=1)
    ]


# Known texture on a known shape, and still no category.
LOOKALIKE_PAIRS = tuple((t, s) for t in TEXTURES for s in SHAPES if (t, s) not in CATEGORY_PAIRS)


def distractor_pairs() -> list[tuple[str, str]]:
    """(texture, shape) pairs that look like objects and belong to no category."""
    known = list(LOOKALIKE_PAIRS)
    foreign_shape = [(t, s) for t in TEXTURES for s in FOREIGN_SHAPES]
    foreign_texture = [(t, s) for t in FOREIGN_TEXTURES for s in SHAPES + FOREIGN_SHAPES]
    return known + foreign_shape + foreign_texture
