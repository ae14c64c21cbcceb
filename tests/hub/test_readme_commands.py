"""The pages' commands for the Hub run as written, one after the other, against a server."""

import argparse
import shlex

import pytest
import timm
import torch
from forks import run_python
from networks import assert_same_output, randomize
from pages import README, ROOT, command_lines
from safetensors.torch import load_file, save_file


def commands():
    """Those of the pages for the Hub; the README's are some of them."""
    lines = [line for name in ('hub.md', 'weights.md') for line in command_lines(ROOT / 'docs' / name)]
    pushes = [line for line in command_lines(README) if line.startswith('timm-stochdepth push ')]
    assert pushes and set(pushes) <= set(lines)
    return lines


@pytest.mark.long
def test_the_commands_of_the_hub(hub_server, tmp_path):
    model = randomize(timm.create_model('resnet50_sd_block', num_classes=10, drop_path_rate=0.3)).eval()
    run = tmp_path / 'output' / 'train' / 'run'
    run.mkdir(parents=True)
    args = argparse.Namespace(model='resnet50_sd_block', drop_path=0.3, model_kwargs={})
    torch.save(dict(epoch=0, arch=args.model, state_dict=model.state_dict(), args=args), run / 'model_best.pth.tar')
    save_file(model.state_dict(), tmp_path / 'averaged.safetensors')

    lines = commands()
    assert len(lines) == 9 and all(line.startswith('timm-stochdepth ') for line in lines)
    env = hub_server.env(tmp_path / 'cache')
    for line in lines:
        result = run_python('-m', 'timm_stochdepth', *shlex.split(line)[1:], cwd=tmp_path, env=env)
        assert result.returncode == 0, (line, result.stderr)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for folder in ('my_model', 'pulled'):
            loaded = timm.create_model(f'local-dir:{tmp_path / folder}', pretrained=True)
            assert_same_output(loaded.eval()(x), model(x))
        plain = timm.create_model('resnet50', num_classes=10)
        plain.load_state_dict(load_file(tmp_path / 'plain.safetensors'))
        assert_same_output(plain.eval()(x), model(x))
