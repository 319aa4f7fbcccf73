"""Cut the golden Keras data down to what the tests keep: ``python slice_golden.py GOLDEN_FOLDER``.

Of every recorded file layout the structure; of the network's outputs every second and fourth cell of the finer maps
and the top-left cells of the backbone's.
"""
import gzip
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def main(golden: Path) -> None:
    """Write the trees and ``outputs_416.npz`` beside this file."""
    for tree in sorted(golden.glob('trees/*.tree.json')):
        text = json.dumps(json.loads(tree.read_text()), separators=(',', ':'))
        target = HERE / tree.name.replace('.tree.json', '.json.gz')
        target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    with np.load(golden / 'forward_416.npz') as maps, np.load(golden / 'backbone_416.npz') as backbone:
        np.savez_compressed(
            HERE / 'outputs_416.npz',
            map_32=maps['stride32'][0],
            map_16=maps['stride16'][0, ::2, ::2],
            map_8=maps['stride8'][0, ::4, ::4],
            backbone_32=backbone['stride32'][0, :3, :3],
            backbone_16=backbone['stride16'][0, :4, :4],
            backbone_8=backbone['stride8'][0, :6, :6])


if __name__ == '__main__':
    main(Path(sys.argv[1]))
