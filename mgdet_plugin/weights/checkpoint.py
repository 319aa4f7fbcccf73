"""A checkpoint read for export or verification: without executing anything, and held strictly against the network."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import WRITTEN_BY
from mgdet_plugin.common.weights_path import check_checkpoint_start
from mgdet_plugin.weights.mapping.architecture import (
    Part,
    block_prefixes,
    predict_prefixes,
    shape_conflicts,
    tensor_keys,
)

if TYPE_CHECKING:  # reading what is no checkpoint needs no torch, which takes seconds to import
    from torch import Tensor

COUNTER = 'num_batches_tracked'
MIN_OUTPUTS = 5 + 1 + 1  # box and objectness, one anchor, one class
OTHER_NETWORK = "give a checkpoint of MultiGridDet's own network"
WRAPPER = 'module.'
SHOWN = 3  # keys in a message
FLOATS = ('float32', 'float16', 'bfloat16', 'float64')


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the whole model or of its backbone."""

    name: str  # path as given, for messages
    size: int  # bytes of the file
    sha256: str  # hex digest of the file
    part: Part
    state: dict[str, Tensor] = field(repr=False)  # as stored, every key of the part and no other
    meta: dict[str, Any] = field(repr=False)  # stored beside it, empty where there is none
    notes: tuple[str, ...] = ()  # what the user should know about how it was read

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels of every prediction map, coarse scale first; none of a backbone."""
        return tuple(self.state[f'{prefix}.bias'].shape[0] for prefix in predict_prefixes(self.part))

    @property
    def bridge_channels(self) -> tuple[int, ...]:
        """Channels of every bridge, coarse scale first; none of a backbone."""
        return tuple(self.state[kernel_key(prefix)].shape[0] for prefix in block_prefixes(self.part)
                     if '.bridges.' in prefix)

    @property
    def batches_seen(self) -> int:
        """Largest count of batches a normalisation was trained on; an import starts it at 0."""
        return max(int(tensor) for key, tensor in self.state.items() if key.endswith(COUNTER))

    @property
    def class_names(self) -> list[str]:
        """Class names stored with it, empty where there are none."""
        dataset = self.meta.get('dataset_meta')
        names = dataset.get('classes') if isinstance(dataset, dict) else None
        return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def kernel_shape(tensor: Tensor) -> tuple[int, int, int, int]:
    """Shape in Keras of a kernel: (out, in, kh, kw) -> (kh, kw, in, out)."""
    out, channels, height, width = tensor.shape
    return height, width, channels, out


def to_keras(tensor: Tensor) -> np.ndarray:
    """float32 array of a tensor in Keras' layout: kernels (kh, kw, in, out), contiguous."""
    values: np.ndarray = tensor.detach().float().numpy()
    return np.ascontiguousarray(values.transpose(2, 3, 1, 0) if values.ndim == 4 else values)


def refuse_unusable(values: np.ndarray, key: str, place: str, kind: str) -> None:
    """Refuse NaN, infinities and negative variances, naming the ``place`` in a ``kind`` of file."""
    if not np.isfinite(values).all():
        raise UserError(f'{place} holds NaN or infinite values; the training that wrote it diverged, take an earlier '
                        f'{kind}')
    if key.endswith('.running_var') and values.min() < 0:
        raise UserError(f'{place} holds a negative variance ({values.min():.3g}); the {kind} is damaged')


def kernel_key(prefix: str) -> str:
    """Key of the kernel of a block or of a prediction convolution."""
    return tensor_keys(prefix)['kernel']


def weight_keys(part: Part) -> list[str]:
    """Keys of all tensors Keras knows too, in order of creation, predictions last."""
    return [key for prefix in block_prefixes(part) + predict_prefixes(part) for key in tensor_keys(prefix).values()]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint with torch's safe loader.

    Args:
        path: What the import or mmengine wrote. Where a run keeps a moving average of the weights (``EMAHook``),
            ``state_dict`` holds the average.

    Raises:
        UserError: The file is missing, no checkpoint, or its keys or shapes are not the network's.
    """
    name = str(path)
    if not Path(path).is_file():
        raise UserError(f'the checkpoint {name} is not there; {WRITTEN_BY}')
    try:
        with Path(path).open('rb') as stream:
            start = stream.read(2)
            stream.seek(0)
            digest = hashlib.file_digest(stream, 'sha256').hexdigest()
            size = stream.seek(0, 2)
    except OSError as error:
        raise UserError(f'the checkpoint {name} cannot be read: {error.strerror}; {WRITTEN_BY}') from None
    check_checkpoint_start(name, start)
    from mgdet_plugin.common.checkpoints import load_checkpoint  # imports torch, which takes seconds
    state, content = load_checkpoint(path)
    notes = []
    if all(key.startswith(WRAPPER) for key in state):
        state = {key.removeprefix(WRAPPER): value for key, value in state.items()}
        notes.append(f'every key began with {WRAPPER!r}, as a distributed run writes them; taken without it')
    if 'ema_state_dict' in content:
        notes.append('the weights are the moving average (EMA) of the run, as its validation used them')
    part: Part = 'model' if any(not key.startswith('backbone.') for key in state) else 'backbone'
    meta = content.get('meta')
    state = checked(name, dict(state), part, size)
    return Checkpoint(name, size, digest, part, state, meta if isinstance(meta, dict) else {}, tuple(notes))


def checked(name: str, state: dict[str, Tensor], part: Part, size: int) -> dict[str, Tensor]:
    """The tensors in the network's order, having refused other keys, types and shapes."""
    wanted = weight_keys(part) + [f'{prefix}.bn.{COUNTER}' for prefix in block_prefixes(part)]
    groups = dict(missing=[key for key in wanted if key not in state], unexpected=sorted(set(state) - set(wanted)))
    problems = []
    for kind, keys in groups.items():
        more = [f'and {len(keys) - SHOWN} more'] if len(keys) > SHOWN else []
        if keys:
            problems.append(f'{len(keys)} {kind} ({", ".join(keys[:SHOWN] + more)})')
    if problems:
        raise UserError(f"{name} does not hold the keys of MultiGridDet's {part}: {', '.join(problems)}; "
                        f'{OTHER_NETWORK}')
    for key in wanted:
        tensor, dtype = state[key], str(state[key].dtype).removeprefix('torch.')
        fits = (not tensor.is_floating_point() and tensor.numel() == 1) if key.endswith(COUNTER) else dtype in FLOATS
        if str(tensor.layout) != 'torch.strided' or tensor.is_meta or not fits:
            raise UserError(f'{name}: {key} is a tensor of {dtype} with the shape {tuple(tensor.shape)}; '
                            f'{OTHER_NETWORK}')
    total = sum(state[key].numel() * state[key].element_size() for key in wanted)
    if total > size:
        raise UserError(f'{name}: {size:,} bytes cannot hold the {total:,} bytes of tensors declared')
    check_shapes(name, state, part)
    return {key: state[key] for key in wanted}


def check_shapes(name: str, state: Mapping[str, Tensor], part: Part) -> None:
    """Refuse shapes that do not fit what feeds a layer, or its own kernel; the widths are the checkpoint's own."""
    prefixes = block_prefixes(part) + predict_prefixes(part)
    keys = [kernel_key(prefix) for prefix in prefixes]
    flat = next((key for key in keys if state[key].dim() != 4 or not state[key].numel()), None)
    if flat is not None:
        raise UserError(f'{name}: {flat} has the shape {tuple(state[flat].shape)}, a kernel has four sides; '
                        f'{OTHER_NETWORK}')
    conflict = next(shape_conflicts(part, [kernel_shape(state[key]) for key in keys], keys), None)
    if conflict is not None:
        raise UserError(f'{name}: {conflict}; {OTHER_NETWORK}')
    for prefix in prefixes:
        kernel, *vectors = tensor_keys(prefix).values()
        out = state[kernel].shape[0]
        wrong = next((key for key in vectors if tuple(state[key].shape) != (out,)), None)
        if wrong is not None:
            raise UserError(f'{name}: {wrong} has the shape {tuple(state[wrong].shape)}, {kernel} gives {out} '
                            f'channels; {OTHER_NETWORK}')
        if '.predict_convs.' in prefix and out < MIN_OUTPUTS:
            raise UserError(f'{name}: {kernel} gives {out} channels; a prediction has 5 + anchors + classes')
