"""What the frozen part of a detector gives for an image, computed once and kept."""
from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from mgdet_plugin.common.array_store import ArrayStore
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.staged.sample_index import kept_randomness
from mgdet_plugin.models.multigrid_detector import SIZE_DIVISOR, MultiGridDet
from mgdet_plugin.models.multigrid_head import BridgedMaps
from mgdet_plugin.plan.freezing import TRUNK_PARTS, Frozen, digest, hold

Maps = tuple[Tensor, ...]
_PROBE = 2 * SIZE_DIVISOR  # pixels


class _Form(NamedTuple):
    """Of the maps of one image: the shape of each level, and their type."""
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype


class TrunkCache:
    """Stands in for the frozen part of a ``MultiGridDet``: what it gave for the same numbers before, it gives again.

    The part is one that gives the same in training and evaluation mode, see :func:`is_steady`.

    An image goes by a hash of the numbers that reach the network, so whatever becomes of files, boxes and pipelines,
    nothing is taken for what it is not. While the weights of the part are not those it began with, as where a random
    start is measured, or its normalisation learns, the network itself is asked. Each image goes through the part alone:
    the last bits depend neither on those beside it, nor on what was kept, so a resumed run is the same run.

    Args:
        model: The detector, not wrapped.
        last: The last frozen part, of ``TRUNK_PARTS``.
        frozen: What its stage freezes.
        store: Keeps the maps.
        dtype: In which they are kept, and given again whether kept or not.

    Attributes:
        computed: How many images went through the part.
        found: How many did not.
        image_bytes: What the maps of the image computed last take; 0 before the first.
    """

    def __init__(self, model: MultiGridDet, last: str, frozen: Frozen, store: ArrayStore, dtype: str) -> None:
        self.last, self.store, self.dtype = last, store, np.dtype(dtype)
        self.computed = self.found = self.image_bytes = 0
        self._forms: dict[str, _Form] = {}
        self._names = tuple(f'{part}.' for part in TRUNK_PARTS[:TRUNK_PARTS.index(last) + 1]), tuple(frozen.norms)
        self._watch(model)
        self._start = self._weights()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Copies of the model, which may get other weights, have none."""

    def beside(self, twin: MultiGridDet) -> TrunkCache:
        """The same for a copy of the model, which finds what this one has kept while its part has the same weights."""
        other = copy.copy(self)
        other._watch(twin)
        return other

    def _watch(self, model: MultiGridDet) -> None:
        """Go by the weights and layers of a model from now on."""
        parts, norms = self._names
        self._tensors = [tensor for name, tensor in chain(model.named_parameters(), model.named_buffers())
                         if name.startswith(parts)]
        self._norms = [model.get_submodule(name) for name in norms if name.startswith(parts)]
        self._versions: list[int] = []
        self._same = False

    def __call__(self, model: MultiGridDet, inputs: Tensor) -> Maps:
        """Maps for the head of normalised images (B, 3, H, W), through its bridges where these are frozen."""
        if not self._is_valid():
            return _network(model, inputs)
        kind = self._kind(inputs)
        numbers = inputs.detach().contiguous().cpu().view(torch.uint8).numpy()
        kept = [self._maps(model, kind, each.data, inputs[index:index + 1]) for index, each in enumerate(numbers)]
        maps = self._joined(kept, self._forms[kind], inputs.device)
        if self.last == TRUNK_PARTS[0]:
            return model.neck(maps) if model.with_neck else maps
        return BridgedMaps(maps) if self.last == TRUNK_PARTS[-1] else maps

    def look_again(self) -> None:
        """Compare the weights with those of the start at the next image: an average may have taken their place."""
        self._versions = []

    def _is_valid(self) -> bool:
        """Whether the part is as it was at the start; torch counts what is written to a tensor."""
        versions = self._counts()
        if versions != self._versions:
            self._versions, self._same = versions, self._weights() == self._start
        return self._same and not any(norm.training for norm in self._norms)

    def _counts(self) -> list[int]:
        return [tensor._version for tensor in self._tensors]

    def _weights(self) -> list[str]:
        return [digest(tensor) for tensor in self._tensors]

    @staticmethod
    def _kind(inputs: Tensor) -> str:
        """What beside an image's numbers decides about its maps: its size and the types of numbers."""
        device = inputs.device.type
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return f'{tuple(inputs.shape[1:])} {inputs.dtype} {cast}'

    def _maps(self, model: MultiGridDet, kind: str, numbers: memoryview, image: Tensor) -> np.ndarray:
        """The numbers of all levels of an image (1, 3, H, W), kept or computed."""
        key = hashlib.blake2b(numbers, digest_size=16, person=hashlib.blake2b(
            kind.encode(), digest_size=16).digest()).digest()
        kept = self.store.get(key) if kind in self._forms else None
        if kept is not None:
            self.found += 1
            return kept
        maps = self.computed_maps(model, image)
        self._forms[kind] = _Form(tuple(each.shape[1:] for each in maps), maps[0].dtype)
        exact = torch.cat([each.float().flatten() for each in maps]).cpu().numpy()
        with np.errstate(over='ignore'):
            flat = exact.astype(self.dtype, copy=False)
        if self.dtype.itemsize < exact.itemsize and (np.isinf(flat) & np.isfinite(exact)).any():
            raise UserError(f"trunk_cache.dtype='{self.dtype}' cannot hold the frozen part's outputs, got "
                            f"{np.abs(exact).max():g}; take 'float32'")
        self.computed, self.image_bytes = self.computed + 1, flat.nbytes
        if key not in self.store:
            self.store.put(key, flat)
        return flat

    @torch.no_grad()
    def computed_maps(self, model: MultiGridDet, image: Tensor) -> Maps:
        """The maps of the last frozen part for an image (1, 3, H, W)."""
        if self.last == TRUNK_PARTS[0]:
            return tuple(model.backbone(image))
        maps = _network(model, image)
        return model.bbox_head.bridged(maps) if self.last == TRUNK_PARTS[-1] else maps

    @staticmethod
    def _joined(kept: Sequence[np.ndarray], form: _Form, device: torch.device) -> Maps:
        """Maps (B, C_l, H_l, W_l) of each level, of B images' numbers."""
        sizes = [shape.numel() for shape in form.shapes]
        levels = zip(*(torch.from_numpy(each).split(sizes) for each in kept))
        return tuple(torch.stack(level).view(-1, *shape).to(device, form.dtype)
                     for level, shape in zip(levels, form.shapes))


def is_steady(model: MultiGridDet, cache: TrunkCache, frozen: Frozen) -> bool:
    """Whether the frozen part gives the same for the same image in training and evaluation mode: no dropout is in it.

    The model's mode is afterwards training.
    """
    image = torch.linspace(0, 1, 3 * _PROBE ** 2, device=next(model.parameters()).device).view(1, 3, _PROBE, _PROBE)
    with kept_randomness():
        sleeping = cache.computed_maps(model.eval(), image)
        model.train()
        hold(frozen.norms.values())
        awake = cache.computed_maps(model, image)
    return all(map(torch.equal, sleeping, awake))


def share_trunk(model: nn.Module, twin: Any) -> None:
    """Let a copy of a detector find what the detector's cache has kept; none where it has no cache."""
    cache = getattr(model, 'trunk', None)
    own = getattr(twin, 'trunk', None)
    if isinstance(cache, TrunkCache) and isinstance(twin, MultiGridDet):
        if not isinstance(own, TrunkCache) or own.store is not cache.store:
            twin.trunk = cache.beside(twin)
    elif own is not None:
        twin.trunk = None


def _network(model: MultiGridDet, inputs: Tensor) -> Maps:
    """What the network itself gives."""
    maps: Maps = SingleStageDetector.extract_feat(model, inputs)
    return maps
