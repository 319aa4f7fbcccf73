"""Files written by whatever Keras is installed, and their import compared with what Keras held and computed.

    python tests/support/keras_versions.py write FOLDER      with any Keras from 2.12; needs neither torch nor mmdet
    python tests/support/keras_versions.py compare FOLDER    with the package's own environment; prints a table

The network has a sixteenth of the recorded widths and four classes. Beside every file its weights, in order of
creation and as the layer objects held them, and Keras' outputs are kept in an ``.npz``, so that nothing is compared
through names or places in a file.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mgdet_plugin.weights.keras_model import LayerMaker, NetworkShapes, load_keras
from mgdet_plugin.weights.mapping.architecture import Part
from tests.support.keras_files import NORM_KINDS, numbers, tiny

MANIFEST = 'manifest.json'
SIDE = 64
TRAINED_FORMATS = ('.weights.h5', '.keras', '.h5')


def tiny_shapes() -> NetworkShapes:
    """Kernels of the tiny model."""
    by_layer = {spec['layer']: tuple(spec['shape']) for spec in tiny('keras2_model5_legacy.h5')['datasets'].values()
                if spec['kind'] == 'kernel'}
    names = ['conv2d', *(f'conv2d_{index}' for index in range(1, 66))]
    return NetworkShapes(tuple(by_layer[name] for name in names),
                         tuple(by_layer[f'predict_conv_{scale}'] for scale in (1, 2, 3)))


class Detector(LayerMaker):
    """A network whose layers are known in order of creation, whatever their names.

    Args:
        part: ``model`` or ``backbone``.
        automatic: Leave the names to Keras' own counters: ``no``, ``yes`` (but for the prediction convolutions, named
            as in the recorded files) or ``all``.
        seed: Names the generated numbers that fill the weights.
    """

    def __init__(self, part: Part = 'model', automatic: str = 'no', seed: str = '') -> None:
        self.keras = load_keras()
        super().__init__(self.keras)
        self.part, self.automatic = part, automatic
        self.created: dict[str, list[Any]] = {}
        self.image = self.keras.Input((None, None, 3))
        self.model = self.keras.Model(self.image, self.network(part, self.image, tiny_shapes()))
        for base, layers in self.created.items():
            for index, layer in enumerate(layers):
                kinds = NORM_KINDS if base == 'batch_normalization' else ('kernel', 'bias')
                layer.set_weights([numbers(f'{seed}{base}_{index}', kind, tuple(weight.shape)) for kind, weight
                                   in zip(kinds, layer.get_weights(), strict=False)])

    def make(self, kind: str, base: str, *args: Any, **options: Any) -> Any:
        if self.automatic == 'all' or (self.automatic == 'yes' and base != 'predict_conv'):
            layer = getattr(self.keras.layers, kind)(*args, **options)
        else:
            layer = super().make(kind, base, *args, **options)
        self.created.setdefault(base, []).append(layer)
        return layer

    def weights(self) -> dict[str, np.ndarray]:
        """``conv2d/3/0`` and so on -> array, counted in order of creation."""
        return {f'{base}/{index}/{place}': np.asarray(value).astype(np.float32)
                for base in ('conv2d', 'batch_normalization', 'predict_conv')
                for index, layer in enumerate(self.created.get(base, []))
                for place, value in enumerate(layer.get_weights())}

    def outputs(self) -> dict[str, np.ndarray]:
        """``map/0`` and so on: what Keras computes, (1, h, w, channels)."""
        maps = self.model(fixed_image())
        return {f'map/{index}': np.asarray(output.detach().cpu() if hasattr(output, 'detach') else output)
                for index, output in enumerate(maps)}


def fixed_image() -> np.ndarray:
    """(1, 64, 64, 3), the input of all outputs."""
    return np.random.RandomState(7).rand(1, SIDE, SIDE, 3).astype(np.float32)


def targets(channels: int = 12) -> list[np.ndarray]:
    """Targets of the three maps, for a step of training."""
    return [np.full((1, SIDE // stride, SIDE // stride, channels), .1, np.float32) for stride in (32, 16, 8)]


class Writer:
    """Writes files into a folder and keeps account of them.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []

    def save(self, name: str, saved: Any, detector: Detector, reference: Detector | None = None) -> None:
        """Write a model in every format Keras has, with the detector's weights and outputs beside it.

        Args:
            name: Stem of the files.
            saved: The model to save; holds the detector or is it.
            detector: Whose weights the files hold.
            reference: A float32 network of the same weights that computes the outputs, by default the detector.
        """
        arrays: dict[str, Any] = detector.weights() | (reference or detector).outputs()
        np.savez(self.folder / f'{name}.npz', **arrays)
        writers: dict[str, Callable[[str], object]] = {
            f'{name}.weights.h5': saved.save_weights, f'{name}.keras': saved.save, f'{name}.h5': saved.save}
        if detector.keras.__version__.startswith('2.'):
            writers[f'{name}_legacy.h5'] = saved.save_weights
        for file, write in writers.items():
            entry = dict(file=file, reference=f'{name}.npz', part=detector.part)
            try:
                write(str(self.folder / file))
            except Exception as error:  # what a version cannot write is a finding, not a failure
                (self.folder / file).unlink(missing_ok=True)
                entry['failed'] = f'{type(error).__name__}: {" ".join(str(error).split())[:100]}'
            self.entries.append(entry)

    def finish(self) -> None:
        """Write the manifest."""
        keras = load_keras()
        (self.folder / MANIFEST).write_text(json.dumps(dict(keras=keras.__version__, files=self.entries), indent=1))


def write_plain(writer: Writer) -> None:
    """Names of a fresh process; then counters moved by other models, with Keras' own names."""
    detector = Detector()
    writer.save('plain', detector.model, detector)
    for automatic in ('yes', 'all'):
        move_counters(detector.keras)
        shifted = Detector(automatic=automatic)
        writer.save(f'automatic_names_{automatic}', shifted.model, shifted)


def move_counters(keras: Any) -> None:
    """Let Keras count layers as if another backbone had been built before."""
    for _ in range(52):
        keras.layers.Conv2D(1, 1)
        keras.layers.BatchNormalization()


def write_trained(writer: Writer) -> None:
    """A step of training of the detector, of one nested in a layer with its backbone frozen, and under a policy."""
    detector = Detector()
    detector.model.compile('adam', ['mse'] * 3, metrics=[['mae']] * 3)
    detector.model.fit(fixed_image(), targets(), verbose=0)
    writer.save('trained', detector.model, detector)
    for name, frozen in (('nested', 0), ('nested_frozen', 52)):
        inner = Detector()
        for base in ('conv2d', 'batch_normalization'):
            for layer in inner.created[base][:frozen]:
                layer.trainable = False
        image = inner.keras.Input((None, None, 3))
        outer = inner.keras.Model(image, inner.model(image))
        outer.compile('adam', ['mse'] * 3)
        outer.fit(fixed_image(), targets(), verbose=0)
        writer.save(name, outer, inner)


def loss_layer(keras: Any) -> Any:
    """A layer that takes the maps and their targets, with a scalar and a counter of its own."""
    class Loss(keras.layers.Layer):
        def build(self, _: object) -> None:
            self.scale = self.add_weight(name='scale', shape=(), initializer='ones', trainable=False)
            self.seen = self.add_weight(name='seen', shape=(), initializer='zeros', dtype='int64', trainable=False)

        def call(self, maps: Sequence[Any]) -> Any:
            return (maps[0] - maps[3]) ** 2 * self.scale

    return Loss()


def write_training_model(writer: Writer) -> None:
    """The detector with inputs for targets and a loss layer, the way of keras-yolo3."""
    detector = Detector()
    keras = detector.keras
    truth = [keras.Input((None, None, 12)) for _ in range(3)]
    loss = loss_layer(keras)([*detector.model.outputs, *truth])
    writer.save('loss_layer', keras.Model([detector.image, *truth], loss), detector)


def write_backbones(writer: Writer) -> None:
    """Darknet53 alone and with a classifier on top."""
    plain = Detector('backbone')
    writer.save('backbone', plain.model, plain)
    for name in ('dense', 'conv'):
        detector = Detector('backbone', automatic='yes')
        layers = detector.keras.layers
        maps = detector.model.outputs[-1]
        if name == 'dense':
            top = layers.Dense(10)(layers.GlobalAveragePooling2D()(maps))
        else:
            top = layers.Flatten()(layers.Conv2D(10, 1)(layers.GlobalAveragePooling2D(keepdims=True)(maps)))
        writer.save(f'classifier_{name}', detector.keras.Model(detector.image, top), detector)


def write_policies(writer: Writer) -> None:
    """Variables of two bytes, and mixed precision with its loss scale; outputs come from float32 networks."""
    keras = load_keras()
    precision = keras.mixed_precision
    set_policy = getattr(precision, 'set_global_policy', None) or precision.set_dtype_policy
    reference = Detector()
    for policy in ('float16', 'bfloat16', 'mixed_float16'):
        set_policy(policy)
        try:
            detector = Detector(automatic='yes')
        finally:
            set_policy('float32')
        if policy.startswith('mixed'):
            detector.model.compile('adam', ['mse'] * 3)
        for base, layers in reference.created.items():
            for layer, half in zip(layers, detector.created[base], strict=True):
                layer.set_weights([np.asarray(value).astype(np.float32) for value in half.get_weights()])
        writer.save(policy, detector.model, detector, reference)


WRITERS = (write_plain, write_trained, write_training_model, write_backbones, write_policies)


def compare(folder: Path) -> list[dict[str, Any]]:
    """Import every file of a folder; see :func:`tests.support.keras_compare.compare_file` for what each gives."""
    from tests.support.keras_compare import compare_file  # needs torch and mmdet

    manifest = json.loads((folder / MANIFEST).read_text())
    return [dict(entry, keras=manifest['keras'], **({} if 'failed' in entry else compare_file(folder, entry)))
            for entry in manifest['files']]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('action', choices=('write', 'compare'))
    parser.add_argument('folder', type=Path)
    args = parser.parse_args()
    if args.action == 'write':
        args.folder.mkdir(parents=True, exist_ok=True)
        writer = Writer(args.folder)
        for write in WRITERS:
            write(writer)
        writer.finish()
    else:
        for row in compare(args.folder):
            outcome = row.get('failed') or row.get('refused') or (
                f'{row["tensors"]} tensors {"bit-equal" if row["equal"] else "NOT EQUAL"}, outputs within '
                f'{row["error"]:.1e}, {row["report"]["found"]["order"]}')
            print(f'{row["keras"]:8} {row["file"]:32} {outcome}')


if __name__ == '__main__':
    main()
