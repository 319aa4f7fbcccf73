"""What is wrong with where a box lies, at the edges of each rule."""
import pytest

from mgdet_plugin.prepare.faults.box_faults import fault

SIZE = (200.0, 100.0)  # 2% and 2 pixels beyond: 206 and 104, and as much on the other side


@pytest.mark.parametrize(('corners', 'kind'), [
    ((10, 10, 50, 60), ''), ((0, 0, 200, 90), ''), ((0, 0, 200, 95), 'huge'), ((0, 0, 200, 94.9), ''),
    ((10, 10, 206, 60), ''), ((10, 10, 206.1, 60), 'beyond'), ((10, 10, 50, 104.1), 'beyond'),
    ((-6, -4, 50, 60), ''), ((-6.1, 10, 50, 60), 'beyond'), ((10, -4.1, 50, 60), 'beyond'),
    ((10, 10, 10, 60), 'degenerate'), ((50, 10, 10, 60), 'degenerate'), ((10, 10, 10.9, 60), 'degenerate'),
    ((float('nan'), 10, 50, 60), 'degenerate'), ((200, 10, 250, 60), 'outside'), ((-50, 10, 0, 60), 'outside')])
def test_kinds(corners: tuple[float, float, float, float], kind: str) -> None:
    found, text = fault(corners, SIZE)
    assert found == kind and bool(text) == (kind not in ('', 'huge'))


def test_without_a_size_edges_say_nothing() -> None:
    assert fault((-500, 10, 5000, 60), None) == ('', '')
