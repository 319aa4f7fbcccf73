"""What an import did, for a person and for a machine."""
from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mgdet_plugin.weights.container.darknet_file import DarknetFile, normalisation_note
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.mapping.layout import Assignment, FileLayout

if TYPE_CHECKING:  # a table of a report needs no torch, which takes seconds to import
    from torch import Tensor

Report = dict[str, Any]

BY_NAMES = 'by stored order, and the layer names agree'
BY_ORDER = 'by stored order alone: the file stores no layer names'
BY_FORMAT = 'by the order Darknet writes, held by the exact size of the file'
UNNAMED = ('a file without layer names (Keras 2.12 to 2.15 and early Keras 3 write such) cannot show that two layers '
           'of equal shape were swapped; compare its outputs with those of Keras')
NEAR_ZERO_VARIANCE = 1e-6  # a thousandth of the epsilon beside it: the channel never changed in training
HUGE = 1e4                 # far above trained weights, far below what another byte order makes of them
CACHED = 2 ** 16             # numbers that fit into a core's cache in double precision
INITIAL = dict(weight=1.0, bias=0.0, running_mean=0.0, running_var=1.0)


def import_report(weights: WeightsFile, layout: FileLayout, assignments: Sequence[Assignment],
                state: Mapping[str, Tensor], not_used: Mapping[str, str]) -> Report:
    """The account of an import, plain types only; ``not_used`` says of every array left over what it is."""
    sources = {item.key: (item.source.path, item.layer.name, item.source.dtype) for item in assignments}
    tensors = [tensor_entry(key, tensor, *sources.get(key, ())) for key, tensor in state.items()]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for path, reason in not_used.items():
        by_reason[reason].append(path)
    notes = [] if layout.named else [UNNAMED]
    if isinstance(weights, DarknetFile):
        notes = [normalisation_note(tensor.numpy() for key, tensor in state.items() if key.endswith('.running_var'))]
    return dict(
        source=dict(file=Path(weights.name).name, bytes=weights.size, sha256=weights.sha256,
                    container=weights.container),
        found=dict(layout=layout.layout, keras_version=layout.keras_version, part=layout.part,
                   order=decided_by(weights, layout),
                   layers=f'{len(layout.convs)} convolutions, {len(layout.norms)} batch normalisations, '
                          f'{len(layout.predictions)} prediction convolutions'),
        classes=None,
        tensors=tensors,
        not_used=dict(by_reason),
        warnings=find_warnings(state),
        notes=notes)


def tensor_entry(key: str, tensor: Tensor, source: str | None = None, layer: str | None = None,
                 dtype: str | None = None) -> dict[str, Any]:
    """The account of one tensor; without a source that of a counter, which Keras does not have."""
    return dict(destination=key, shape=list(tensor.shape), source=source, layer=layer, dtype=dtype,
                **(tensor_statistics(tensor) if tensor.is_floating_point() else {}))


def tensor_statistics(tensor: Tensor) -> dict[str, float]:
    """Mean, standard deviation (of the population) and share of zeros of a float tensor of any shape."""
    flat, count = tensor.flatten(), tensor.numel()
    origin = float(flat[0])  # near the mean, so that little is lost where one square is taken from the other
    total = squares = 0.
    for block in flat.split(CACHED):
        exact = block.double().sub_(origin)
        total += float(exact.sum())
        squares += float(exact.dot(exact))
    mean = total / count
    return dict(mean=origin + mean, std=max(0., squares / count - mean * mean) ** 0.5,
                zeros=1 - int(tensor.count_nonzero()) / count)


def find_warnings(state: Mapping[str, Tensor]) -> list[str]:
    """What a person should look at before training from these tensors, one line each.

    That is normalisations at their initial values, variances near zero, kernels of zeros alone and huge values; nothing
    of the sort is what training leaves behind.
    """
    floats = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    norms = {key: tensor for key, tensor in floats.items() if '.bn.' in key}
    untouched = [key for key, tensor in norms.items() if bool((tensor == INITIAL[key.rpartition('.')[2]]).all())]
    warnings = []
    if norms and len(untouched) == len(norms):
        warnings.append(f'all {len(norms) // len(INITIAL)} batch normalisations hold the values Keras starts with: the '
                        'file seems to hold an untrained network; save it after training or after loading weights')
    for key, tensor in norms.items():
        if key.endswith('.running_var') and (flat := int((tensor < NEAR_ZERO_VARIANCE).sum())):
            warnings.append(f'{key}: {flat} of {tensor.numel()} variances are below {NEAR_ZERO_VARIANCE:g} (the '
                            f'smallest {float(tensor.min()):.3g}): these channels were constant in training')
    largest = {key: max(map(abs, map(float, tensor.aminmax()))) for key, tensor in floats.items()}
    warnings += [f'{key}: all {tensor.numel():,} numbers of the kernel are zero'
                 for key, tensor in floats.items() if tensor.dim() == 4 and not largest[key]]
    warnings += [f'{key}: values up to {value:.3g}, far above those of a trained network'
                 for key, value in largest.items() if value > HUGE]
    return warnings


def decided_by(weights: WeightsFile, layout: FileLayout) -> str:
    """What told which layer is which."""
    return BY_NAMES if layout.named else BY_FORMAT if isinstance(weights, DarknetFile) else BY_ORDER


def as_json(report: Report) -> Callable[[BinaryIO], object]:
    """What writes a report as JSON to an opened file."""
    return methodcaller('write', json.dumps(report, indent=1).encode() + b'\n')


def file_line(entry: Mapping[str, Any]) -> str:
    """A file of a report on one line: name, size and sha256."""
    return f'{entry["file"]}, {entry["bytes"] / 1e6:.1f} MB, sha256 {entry["sha256"]}'


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Labels and texts, one row a line."""
    return '\n'.join(f'{label:<10}{text}' for label, text in rows)


def summary(report: Report) -> str:
    """The table a person reads."""
    source, found = report['source'], report['found']
    is_keras = source['container'] in ('HDF5', '.keras archive')
    version = f'Keras {found["keras_version"] or "version not stored with the weights"}'
    rows = [
        ('file', file_line(source)),
        ('layout', found['layout'] + (f', {version}' if is_keras else '')),
        ('holds', f'a {found["part"]}: {found["layers"]}'),
        ('order', found['order']),
    ]
    if report['classes']:
        rows += [('classes', line) for line in report['classes']['table']]
    rows += module_rows(report['tensors'])
    rows += [('not used', f'{len(paths)} arrays: {reason}') for reason, paths in report['not_used'].items()]
    rows += [('warning', warning) for warning in report['warnings']]
    rows += [('note', note) for note in report['notes']]
    rows.append(('written', f'{report["written"]}'))
    return table(rows)


def module_rows(tensors: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """One row for each module of the network: its tensors, their numbers and the spread of its kernels."""
    modules: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for tensor in tensors:
        modules[tensor['destination'].partition('.')[0]].append(tensor)
    rows = []
    for module, members in modules.items():
        spreads = [tensor['std'] for tensor in members if len(tensor['shape']) == 4]
        numbers = sum(prod(tensor['shape']) for tensor in members)
        rows.append((module, f'{len(members)} tensors, {numbers:,} numbers; standard deviation of the kernels '
                             f'{min(spreads):.3g} to {max(spreads):.3g}'))
    return rows


def tensor_table(report: Report) -> str:
    """Source, destination and statistics of every tensor that came from the file, one a line."""
    lines = [f'{"destination":<48}{"shape":<20}{"mean":>11}{"std":>11}{"zeros":>8}  source']
    lines += [f'{tensor["destination"]:<48}{"x".join(map(str, tensor["shape"])):<20}{tensor["mean"]:>11.3g}'
              f'{tensor["std"]:>11.3g}{tensor["zeros"]:>8.1%}  {tensor["source"]}'
              for tensor in report['tensors'] if tensor['source'] is not None]
    return '\n'.join(lines)
