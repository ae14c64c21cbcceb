"""The scripts of docs/trainers.md on several processes, ended early and started again."""

import pytest
import timm
import torch
from pages import TRAINERS, scripts_by_heading
from test_page import run
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from timm_stochdepth import set_training_progress, start_warmup

pytestmark = pytest.mark.trainers


def run_twice(script, folder):
    """Train one epoch of what the script trains, and start it again."""
    epochs = 'range(first_epoch, num_epochs)'
    assert epochs in script
    run(script.replace(epochs, 'range(first_epoch, 1)'), folder)
    run(script, folder)


def test_ddp_goes_on_bit_by_bit(tmp_path):
    script = scripts_by_heading(TRAINERS)['DDP']
    (tmp_path / 'whole').mkdir()
    run(script, tmp_path / 'whole')
    run_twice(script, tmp_path)
    whole, resumed = (torch.load(folder / 'checkpoint.pt') for folder in (tmp_path / 'whole', tmp_path))
    assert whole['epoch'] == resumed['epoch'] == 3
    for name, tensor in whole['model'].items():
        assert torch.equal(tensor, resumed['model'][name]), name


def test_fsdp2_goes_on_and_is_folded(tmp_path):
    run_twice(scripts_by_heading(TRAINERS)['FSDP2'], tmp_path)
    dcp_to_torch_save(tmp_path / 'epoch2', tmp_path / 'gathered.pt')
    gathered = torch.load(tmp_path / 'gathered.pt', weights_only=False)['model']
    channels = dict(num_classes=4, channels=(8, 16, 32, 64))
    plain = timm.create_model('resnet50', **channels).eval()
    plain.load_state_dict(torch.load(tmp_path / 'plain.pt'))
    gathered.update(plain.named_buffers())  # those of norms are each rank's own, and the checkpoint's of one or another
    model = timm.create_model('resnet50_sd_block', drop_warmup=0.5, **channels).eval()
    start_warmup(model)
    model.load_state_dict(gathered)
    set_training_progress(model, 1.0)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(plain(images), model(images))
