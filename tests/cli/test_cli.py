import pytest
import timm

import timm_stochdepth as ts
from timm_stochdepth.cli.main import main


def test_list_names_rates_methods_and_tags(capsys):
    assert main(['list']) == 0
    out = capsys.readouterr().out
    for name, rate in (('resnet50_sd_sample', 0.1), ('resnet50_sd_block', 0.2), ('resnet101_sd_block', 0.4)):
        assert f'{name}: method {name.split("_")[-1]}, rate {rate} linear' in out
    for tag in timm.models.get_arch_pretrained_cfgs('resnet50'):
        assert tag.partition('.')[2] in out


def test_list_filters(capsys):
    assert main(['list', 'resnet101*']) == 0
    out = capsys.readouterr().out
    assert 'resnet101_sd_block' in out and 'resnet50' not in out
    assert main(['list', 'vit*']) == 1
    assert 'filter must match one of' in capsys.readouterr().err


def test_show_prints_each_block(capsys, tmp_path):
    picture = tmp_path / 'rates.png'
    assert main(['show', 'resnet50_sd_block', '--drop-path', '0.5', '--plot', str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {row[0]: row[1:] for row in map(str.split, lines) if row[0].startswith('layer')}
    rates = ts.drop_rates(timm.create_model('resnet50_sd_block', drop_path_rate=0.5))
    assert list(rows) == list(rates)
    depth = 0
    for name, (rate, expected_depth, _) in rows.items():
        depth += 1 - rates[name]
        assert float(rate) == pytest.approx(rates[name], abs=5e-5)
        assert float(expected_depth) == pytest.approx(depth, abs=5e-3)
    # an expected sum over 16 blocks of rate l / 15 * 0.5
    assert 'Expected depth: 12.00 of 16 blocks.' in lines
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'args, message',
    [
        (['show', 'resnet50'], "model must have stochastic depth, but got 'resnet50'"),
        (['show', 'resnet5'], 'Unknown model'),
        (['show', 'resnet50_sd_block', '--drop-path', '2'], r'drop_rate must be in [0, 1], but got 2.0'),
        (['show', 'resnet50_sd_block', '--drop-distribution', 'x'], 'drop_distribution must be one of'),
        (['demo', '--epochs', '0'], '--epochs must be 1 or more, but got 0'),
        (['demo', '--models', 'resnet5', '--epochs', '1'], 'Unknown model'),
    ],
)
def test_an_error_is_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1
