"""What is joined to what in the network, in the order Keras creates its layers.

A block is a convolution without bias and its normalisation. Order of creation: the backbone, then for every scale three
block convolutions, the bridge and, but for the last scale, the convolution before upsampling. Keras stores layers in
``model.layers`` (topological) order, which differs in one thing: all bridges come last.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Part = Literal['model', 'backbone']

RESIDUAL_BLOCKS = (1, 2, 8, 8, 4)  # of Darknet53, per stage
SCALES = 3
IMAGE_CHANNELS = 3
BOX_ROWS = 5  # of a prediction: tx, ty, tw, th, objectness
NORM_TENSORS = dict(gamma='weight', beta='bias', moving_mean='running_mean', moving_variance='running_var')
"""Weights of a normalisation: Keras' names -> torch's."""


@dataclass(frozen=True)
class ConvBlock:
    """A convolution of the network and where its channels come from."""

    prefix: str  # of its keys in the state dict
    size: int  # height and width of its kernel
    inputs: tuple[int, ...]  # blocks whose outputs, joined along channels, it takes; none for the first: the image
    added_to: int | None = None  # block whose outputs are added to its own
    halves: bool = False  # whether it gives half of the channels it takes
    stride: int = 1  # 2 where it halves height and width


@cache
def blocks(part: Part) -> tuple[ConvBlock, ...]:
    """All blocks in order of creation: 66 of the model, 52 of the backbone."""
    chain, stage_ends = darknet_blocks()
    if part == 'model':
        lateral: tuple[int, ...] = ()
        for scale in range(SCALES):
            for index, size in enumerate((1, 3, 1), 1):
                inputs = (len(chain) - 1, *lateral) if index == 1 else (len(chain) - 1,)
                chain.append(ConvBlock(f'neck.blocks.{scale}.conv{index}', size, inputs))
            last = len(chain) - 1
            chain.append(ConvBlock(f'bbox_head.bridges.{scale}', 3, (last,)))
            if scale < SCALES - 1:
                chain.append(ConvBlock(f'neck.up_convs.{scale}', 1, (last,)))
                lateral = (stage_ends[-2 - scale],)
    return tuple(chain)


def darknet_blocks() -> tuple[list[ConvBlock], list[int]]:
    """The 52 blocks of Darknet53, and the last block of every stage."""
    chain, ends = [ConvBlock('backbone.conv1', 3, ())], []
    for stage, repeats in enumerate(RESIDUAL_BLOCKS, 1):
        name = f'backbone.conv_res_block{stage}'
        chain.append(ConvBlock(f'{name}.conv', 3, (len(chain) - 1,), stride=2))
        for index in range(repeats):
            start = len(chain) - 1
            chain.append(ConvBlock(f'{name}.res{index}.conv1', 1, (start,), halves=True))
            chain.append(ConvBlock(f'{name}.res{index}.conv2', 3, (start + 1,), added_to=start))
        ends.append(len(chain) - 1)
    return chain, ends


def predictions(part: Part) -> tuple[ConvBlock, ...]:
    """The prediction convolutions, coarse scale first, each on its bridge; none in the backbone."""
    bridges = [index for index, block in enumerate(blocks(part)) if 'bridges' in block.prefix]
    return tuple(ConvBlock(f'bbox_head.predict_convs.{scale}', 1, (bridge,)) for scale, bridge in enumerate(bridges))


def block_prefixes(part: Part) -> list[str]:
    """Prefixes of all blocks in order of creation: 66 of the model, 52 of the backbone."""
    return [block.prefix for block in blocks(part)]


def predict_prefixes(part: Part) -> list[str]:
    """The prediction convolutions, coarse scale first; none in the backbone."""
    return [block.prefix for block in predictions(part)]


def tensor_keys(prefix: str) -> dict[str, str]:
    """Weight name in Keras -> key in the state dict, of a block or a prediction convolution; the kernel first."""
    if '.predict_convs.' in prefix:
        return dict(kernel=f'{prefix}.weight', bias=f'{prefix}.bias')
    norm = {weight: f'{prefix}.bn.{name}' for weight, name in NORM_TENSORS.items()}
    return dict(kernel=f'{prefix}.conv.weight', **norm)


def topological_order(part: Part) -> list[int]:
    """For each place in ``model.layers`` order, the index in order of creation."""
    prefixes = block_prefixes(part)
    return sorted(range(len(prefixes)), key=lambda index: prefixes[index].startswith('bbox_head'))


def shape_conflicts(part: Part, kernels: Sequence[tuple[int, ...]], labels: Sequence[str]) -> Iterator[str]:
    """Where kernels do not fit one another, whatever the widths of the network.

    Args:
        part: Which network.
        kernels: (kh, kw, in, out) of all blocks in order of creation, then of the prediction convolutions.
        labels: What to call each of them.

    Yields:
        One phrase a conflict, naming the layers which disagree.
    """
    for block, (height, width, taken, given), label in zip(
            (*blocks(part), *predictions(part)), kernels, labels, strict=True):
        if (height, width) != (block.size, block.size):
            yield f'{label} is {height}x{width} where {block.size}x{block.size} belongs'
        offered = sum(kernels[index][3] for index in block.inputs) if block.inputs else IMAGE_CHANNELS
        if taken != offered:
            sources = ' and '.join(labels[index] for index in block.inputs) or 'the image'
            yield f'{label} takes {taken} channels, {sources} give{"s" * (len(block.inputs) < 2)} {offered}'
        if block.halves and 2 * given != taken:
            yield f'{label} takes {taken} channels and gives {given}, not half of them'
        if block.added_to is not None and given != kernels[block.added_to][3]:
            yield f'{label} gives {given} channels, {labels[block.added_to]}, to which they are added, ' \
                  f'{kernels[block.added_to][3]}'
