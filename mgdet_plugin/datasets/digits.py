"""The embedded data: scikit-learn's real handwritten digits, enlarged, on textured canvases, as COCO files.

Two domains share one ten-class head. The source shows digits 0-7 in dark ink on bright clouds, the target digits 4-9
in bright ink, tilted, on dark stripes: four shared classes, four that only the source knows, two that are new.
Everything is a function of the seeds below: the same files each time. Handwritten samples of val and test never
occur in train, in either domain. Sizes are pixels, boxes are COCO's ``[x, y, w, h]`` around the ink.
"""
from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.annotation_check import iter_dataset_cfgs

DIGIT_CLASSES = tuple('0123456789')
DIGITS_ROOT = Path('data/mgdet_digits')
SPLITS = ('train', 'val', 'test')
STAMP = 'stamp.json'
VERSION = 1  # raise it when the drawing changes: sets made before are then made anew

_SIDE = 192
_SIZES = (24.0, 72.0)  # height of a digit, log-uniform
_SHARES = (0.70, 0.85)  # handwritten samples: up to the first for train, up to the second for val, the rest for test
_MIN_DIGITS, _MAX_DIGITS = 4, 9
_MAX_IOU = 0.05
_STALE_SECONDS = 3600


@dataclass(frozen=True)
class Domain:
    """What one domain shows and how many images it has.

    Attributes:
        digits: the digits drawn.
        counts: images of train, val and test.
        max_tilt: largest rotation to either side, degrees.
        seed: first of the numbers that seed each image.
    """

    digits: tuple[int, ...]
    counts: tuple[int, int, int]
    max_tilt: float
    seed: int


DOMAINS = {
    'source': Domain(digits=tuple(range(8)), counts=(600, 100, 100), max_tilt=0.0, seed=1),
    'target': Domain(digits=tuple(range(4, 10)), counts=(200, 100, 100), max_tilt=15.0, seed=2),
}


def ensure_digits(root: str | Path = DIGITS_ROOT) -> Path:
    """Make both domains, ``source/`` and ``target/``, under ``root`` unless they are there already; returns its path.

    They are written to a temporary folder beside ``root`` and renamed when complete, so a killed run leaves nothing
    half made and of two processes at once one wins. A set made by another version of this module is replaced.

    Raises:
        UserError: if ``root`` holds something else, cannot be written, or scikit-learn is missing.
    """
    root = Path(root)
    if _is_current(root):
        return root
    _refuse_foreign(root)
    _handwritten_samples()  # before any folder is made
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        with tempfile.TemporaryDirectory('.tmp', f'.{root.name}.', root.parent, ignore_cleanup_errors=True) as work:
            made = Path(work, 'new')
            for domain in DOMAINS:
                make_digits(made, domain)
            (made / STAMP).write_text(_stamp_text())
            _swap_in(made, root, Path(work, 'old'))
    except OSError as error:
        raise UserError(f'cannot write the embedded digits to {root}: {error.strerror or error}; '
                        'run from a folder you may write to') from error
    return root


def ensure_embedded_data(cfg: Config) -> list[Path]:
    """Make the digits that a config's dataloaders read: every ``data_root`` of the form ``.../mgdet_digits/<domain>``.

    The train, val and test dataloaders are searched, wrappers included. Returns the roots that are ready.
    """
    roots: list[Path] = []
    for split in SPLITS:
        for leaf in iter_dataset_cfgs((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            folder = Path(leaf.get('data_root') or '')
            if folder.name in DOMAINS and folder.parent.name == DIGITS_ROOT.name and folder.parent not in roots:
                roots.append(ensure_digits(folder.parent))
    return roots


def make_digits(root: str | Path, domain: str) -> Path:
    """Draw one domain into ``root/<domain>``: ``{train,val,test}.json`` and JPEG images in folders of those names.

    :func:`ensure_digits` is the safe way to make the whole set. Returns the domain's folder.

    Raises:
        UserError: for a domain that is neither 'source' nor 'target', or when scikit-learn is missing.
    """
    if domain not in DOMAINS:
        raise UserError(f'unknown domain of the digits: {domain!r}; there are {", ".join(DOMAINS)}')
    samples = _handwritten_samples()
    folder = Path(root) / domain
    for split_index, (split, count) in enumerate(zip(SPLITS, DOMAINS[domain].counts, strict=True)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        content: dict[str, list[dict[str, object]]] = dict(images=[], annotations=[], categories=[
            dict(id=label + 1, name=name) for label, name in enumerate(DIGIT_CLASSES)])
        for index in range(count):
            name = f'{index:04d}.jpg'
            rng = np.random.RandomState([DOMAINS[domain].seed, split_index, index])
            image, boxes = _draw(domain, samples[split], rng)
            Image.fromarray(image).save(folder / split / name, quality=95, subsampling=0)
            content['images'].append(dict(id=index, file_name=name, width=_SIDE, height=_SIDE))
            content['annotations'] += [
                dict(id=len(content['annotations']) + place, image_id=index, category_id=digit + 1, bbox=[x, y, w, h],
                     area=w * h, iscrowd=0) for place, (digit, (x, y, w, h)) in enumerate(boxes)]
        (folder / f'{split}.json').write_text(json.dumps(content, sort_keys=True))
    return folder


def _handwritten_samples() -> dict[str, dict[int, list[np.ndarray]]]:
    """The handwritten samples of each split and digit, (8, 8) uint8; no sample is in two splits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the embedded digits need scikit-learn, which is not installed; run: pip install "
                        "'scikit-learn' (or this package with its demo extra: pip install -e '.[demo]')") from error
    bunch = load_digits()
    ink = np.minimum(bunch.images * 16, 255).astype(np.uint8)  # 0..16 grey levels to 8 bit
    samples: dict[str, dict[int, list[np.ndarray]]] = {split: {} for split in SPLITS}
    for digit in range(len(DIGIT_CLASSES)):
        order = np.random.RandomState(digit).permutation(np.flatnonzero(bunch.target == digit))
        edges = [int(share * len(order)) for share in _SHARES]
        for split, part in zip(SPLITS, np.split(order, edges), strict=True):
            samples[split][digit] = [ink[index] for index in part]
    return samples


def _clouds(rng: np.random.RandomState) -> np.ndarray:
    """A bright cloudy canvas, (192, 192, 3) float32: colour that drifts slowly, with finer blotches of light."""
    colour = rng.randint(170, 226, 3) + rng.randint(-22, 23, (5, 5, 3))
    blotches = rng.randint(96, 160, (24, 24)).astype(np.uint8)
    size = (_SIDE, _SIDE)
    smooth = Image.fromarray(colour.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) + (np.asarray(fine, np.float32)[..., None] - 128) * np.float32(0.3)


def _stripes(rng: np.random.RandomState) -> np.ndarray:
    """A dark striped canvas, (192, 192, 3) float32: stripes of random direction and period on one dark colour."""
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(10, 28), rng.uniform(0, 2 * np.pi)
    rows, columns = np.ogrid[:_SIDE, :_SIDE]
    wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * (2 * np.pi / period) + phase)
    light = (wave * rng.uniform(8, 20)).astype(np.float32)
    return light[..., None] + rng.randint(25, 90, 3).astype(np.float32)


def _ink_mask(sample: np.ndarray, rng: np.random.RandomState, max_tilt: float) -> np.ndarray:
    """One digit enlarged, (h, w) float32 0..1, cropped to its ink."""
    height = np.exp(rng.uniform(*np.log(_SIZES)))
    width = height * rng.uniform(0.95, 1.25)
    padded = Image.fromarray(np.pad(sample, 1))
    enlarged = padded.resize((round(width * 10 / 8), round(height * 10 / 8)), Image.Resampling.BICUBIC)
    if max_tilt:
        tilt = rng.uniform(-max_tilt, max_tilt)
        enlarged = enlarged.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    mask = np.clip((np.asarray(enlarged, np.float32) / 255 - 0.35) / 0.3, 0, 1)
    rows, columns = np.flatnonzero((mask > 0.5).any(1)), np.flatnonzero((mask > 0.5).any(0))
    return mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """IoU of two boxes xywh."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


_Box = tuple[int, int, int, int]
_LOOKS: dict[str, tuple[Callable[[np.random.RandomState], np.ndarray], tuple[int, int]]] = {
    'source': (_clouds, (0, 60)),  # canvas, range of the ink's colour values
    'target': (_stripes, (170, 256)),
}


def _draw(domain: str, samples: dict[int, list[np.ndarray]],
          rng: np.random.RandomState) -> tuple[np.ndarray, list[tuple[int, _Box]]]:
    """One image, (192, 192, 3) uint8, and its digits with boxes xywh; 4 to 9 digits, as many as find room."""
    texture, ink_range = _LOOKS[domain]
    canvas = texture(rng)
    placed: list[tuple[int, _Box]] = []
    for _ in range(rng.randint(_MIN_DIGITS, _MAX_DIGITS + 1)):
        digit = int(rng.choice(DOMAINS[domain].digits))
        mask = _ink_mask(samples[digit][rng.randint(len(samples[digit]))], rng, DOMAINS[domain].max_tilt)
        h, w = mask.shape
        for x, y in zip(rng.randint(0, _SIDE - w + 1, 20), rng.randint(0, _SIDE - h + 1, 20), strict=True):
            box = (int(x), int(y), w, h)
            if all(_overlap(box, other) <= _MAX_IOU for _, other in placed):
                patch = canvas[y:y + h, x:x + w]
                patch += mask[..., None] * (rng.randint(*ink_range, 3).astype(np.float32) - patch)
                placed.append((digit, box))
                break
    return np.rint(canvas).clip(0, 255).astype(np.uint8), placed


def _stamp_text() -> str:
    domains = {name: asdict(domain) for name, domain in DOMAINS.items()}
    return json.dumps({'made_by': 'mgdet_plugin.datasets.digits', 'version': VERSION, 'domains': domains},
                      sort_keys=True)


def _is_current(root: Path) -> bool:
    try:
        return (root / STAMP).read_text() == _stamp_text()
    except OSError:
        return False


def _refuse_foreign(root: Path) -> None:
    """Refuse a folder that this module did not make: it is never replaced."""
    if root.exists() and not (root / STAMP).is_file() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f'{root} exists and was not made as the embedded digits (no {STAMP} in it); '
                        'move it away or run from another folder')


def _remove_stale(root: Path) -> None:
    """Remove what killed runs left beside ``root``: temporary folders untouched for an hour."""
    for left in root.parent.glob(f'.{root.name}.*.tmp'):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _swap_in(made: Path, root: Path, aside: Path) -> None:
    """Put a complete set in place; where another process put the same set first, leave that one."""
    if root.exists() and not _is_current(root):
        with suppress(FileNotFoundError):  # another process moved it away first
            os.rename(root, aside)
    try:
        os.rename(made, root)
    except OSError:
        if not _is_current(root):
            raise
