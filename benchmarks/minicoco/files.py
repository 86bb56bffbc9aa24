"""Files of a set: atomic writes, COCO records, digests, the manifest."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .categories import categories

MANIFEST = 'MANIFEST.sha256'
UNFINISHED = '.minicoco-unfinished'
ENCODER_OPTIONS = {'.png': [cv2.IMWRITE_PNG_COMPRESSION, 2], '.jpg': [cv2.IMWRITE_JPEG_QUALITY, 80]}


def write_atomic(path: Path, data: bytes) -> None:
    partial = path.with_name(f'.{path.name}.{os.getpid()}.part')
    partial.write_bytes(data)
    os.replace(partial, path)


def image_name(number: int) -> str:
    """File name of the picture with this image id."""
    return f'{number:06d}.png'


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """(h, w, 3) uint8 RGB to a file of the suffix's kind; the set itself is lossless PNG."""
    done, data = cv2.imencode(path.suffix, pixels[..., ::-1], ENCODER_OPTIONS[path.suffix])
    if not done:
        raise OSError(f'could not encode {path.name}')
    write_atomic(path, data.tobytes())


def read_picture(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise OSError(f'{path} is missing or damaged: make the set again')
    return np.ascontiguousarray(pixels[..., ::-1])


def picture_digest(pixels: np.ndarray) -> str:
    """SHA-256 of the decoded pixels, so that another PNG encoder changes nothing."""
    header = 'x'.join(map(str, pixels.shape)).encode()
    return hashlib.sha256(header + b'\n' + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def annotation(category_id: int, visible: np.ndarray) -> dict:
    """A COCO annotation without ids from the visible (h, w) mask."""
    rle = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
    return {
        'category_id': category_id,
        'segmentation': {'size': [int(side) for side in rle['size']], 'counts': rle['counts'].decode('ascii')},
        'area': int(visible.sum()),
        'bbox': [float(value) for value in coco_mask.toBbox(rle)],
        'iscrowd': 0,
    }


def coco_document(info: dict, images: list[dict], annotations: list[list[dict]]) -> dict:
    """`annotations` holds one list per image, in the order of `images`; annotation ids count from 1."""
    flat = [(image['id'], entry) for image, found in zip(images, annotations, strict=True) for entry in found]
    return {
        'info': info,
        'licenses': [],
        'images': images,
        'annotations': [{'id': n, 'image_id': image_id, **entry} for n, (image_id, entry) in enumerate(flat, start=1)],
        'categories': categories(),
    }


def write_json(path: Path, document: dict) -> str:
    """Write and return the digest of the bytes."""
    data = (json.dumps(document, separators=(',', ':')) + '\n').encode()
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def write_manifest(folder: Path, digests: dict[str, str]) -> None:
    lines = [f'{digest}  {path}\n' for path, digest in sorted(digests.items())]
    write_atomic(folder / MANIFEST, ''.join(lines).encode())


def read_manifest(folder: Path) -> dict[str, str]:
    """{relative path: digest}."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f'--out {folder} has no {MANIFEST}: the set is missing or unfinished, make it again')
    return {line[66:]: line[:64] for line in path.read_text().splitlines()}


def verify(folder: Path) -> list[str]:
    """Relative paths that are missing or differ from the manifest."""
    wrong = []
    for name, digest in read_manifest(folder).items():
        path = folder / name
        if not path.is_file():
            wrong.append(name)
            continue
        if file_digest(path) != digest:
            wrong.append(name)
    return wrong


def file_digest(path: Path) -> str:
    """Digest of the pixels of a picture, of the bytes of anything else; empty for a damaged picture."""
    if path.suffix != '.png':
        return hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        return picture_digest(read_picture(path))
    except OSError:
        return ''
