"""The launcher on several ranks."""

import pytest
from launcher_runs import NOTED, VIT, args_of, rates, said_of_network, train


def test_on_several_ranks_one_speaks_and_notes(tmp_path):
    text = train(['--skip-dropped', '--drop-warmup', 1], *VIT, '--output', tmp_path, '--model-ema', ranks=2)
    assert len(said_of_network(text)) == text.count('Epoch 0: drop rate') == 1
    assert rates(tmp_path) == pytest.approx([0.2, 0.4])
    assert args_of(tmp_path)['stochastic_depth'] == dict(NOTED, skip_dropped=True, drop_warmup=1.0)
    again = train([], *VIT, '--resume', tmp_path / 'checkpoint-0.pth.tar', ranks=2)
    assert again.count('was written by a run with --skip-dropped') == 1
