import pytest

from timm_stochdepth import Settings
from timm_stochdepth.settings import check_fraction, depth_shares


def test_linear_scales_rise_from_zero_to_one():
    assert depth_shares(5) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_one_block_alone_never_drops():
    assert depth_shares(1) == [0.0]
    assert depth_shares(0) == []


def test_uniform_scales_are_all_one():
    assert depth_shares(3, 'uniform') == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    'progress, schedule, share',
    [
        (0.0, [(0, 0), (0.2, 1)], 0.0),
        (0.1, [(0, 0), (0.2, 1)], 0.5),
        (0.2, [(0, 0), (0.2, 1)], 1.0),
        (0.9, [(0, 0), (0.2, 1)], 1.0),
        (0.3, [(0, 0), (1, 1)], 0.3),
        (0.0, None, 1.0),
        (0.1, [(0, 1), (0.4, 0)], 0.75),  # early
        (0.4, [(0, 1), (0.4, 0)], 0.0),
        (0.4, [(0.5, 0), (0.75, 1)], 0.0),  # late
        (0.7, [(0.5, 0), (0.75, 1)], 0.8),
        (0.5, [(0.2, 0.4)], 0.4),
        (0.5, [(0, 0), (0.4, 1), (0.6, 0.5), (1, 0.5)], 0.75),
    ],
)
def test_a_schedule_is_linear_between_its_points(progress, schedule, share):
    assert Settings('sample', drop_schedule=schedule).share(progress) == pytest.approx(share)


@pytest.mark.parametrize('value', [0, 1, 0.0, 0.3, 1.0])
def test_fractions_pass(value):
    assert check_fraction('drop_rate', value) == value


@pytest.mark.parametrize(
    'value, error',
    [
        (-0.1, ValueError),
        (1.1, ValueError),
        (float('nan'), ValueError),
        (float('inf'), ValueError),
        ('0.1', TypeError),
        (None, TypeError),
        (True, TypeError),
        (1j, TypeError),
    ],
)
def test_wrong_fractions_are_named(value, error):
    with pytest.raises(error, match=r'drop_rate must be .*\[0, 1\]') as info:
        check_fraction('drop_rate', value)
    assert repr(value) in str(info.value)
