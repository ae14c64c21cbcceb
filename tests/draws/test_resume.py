"""A run with shared draws that is killed and resumed by new processes goes on as if nothing had happened."""

import copy

import pytest
import torch
from networks import stack
from torch.nn.parallel import DistributedDataParallel

import timm_stochdepth as ts

NUM_EPOCHS, NUM_BATCHES = 3, 4
SAVED_AT = {'within an epoch': (1, 2), 'at the end of an epoch': (0, NUM_BATCHES)}


def create():
    model, target_layer_name = stack('timm_basic', 6)
    ts.apply_stochastic_depth(model, 'block', target_layer_name, 0.5, 'uniform')
    return model


class Run:
    def __init__(self, rank, seed):
        torch.manual_seed(seed + rank)
        self.model = create()
        self.ddp = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.SGD(self.ddp.parameters(), lr=0.1, momentum=0.9)
        self.losses = []

    def train(self, path=None, begin=(0, 0)):
        for epoch in range(begin[0], NUM_EPOCHS):
            self.ddp.train()
            for batch in range(begin[1] if epoch == begin[0] else 0, NUM_BATCHES):
                loss = self.ddp(torch.randn(3, 16, 4, 4)).square().mean()
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.losses.append(loss.item())
                for name, at in SAVED_AT.items():
                    if path and at == (epoch, batch + 1):
                        self.save(f'{path}/{name}')

    def save(self, path):
        state = self.ddp.state_dict(), self.optimizer.state_dict(), torch.get_rng_state()
        torch.save(state, f'{path}.{torch.distributed.get_rank()}')

    def load(self, path, is_alone=False):
        weights, optimizer, rng_state = torch.load(f'{path}.{torch.distributed.get_rank()}')
        if is_alone and torch.distributed.get_rank() > 0:
            weights = dict(weights)  # the tensors, and nothing that says where they come from
        self.ddp.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        torch.set_rng_state(rng_state)

    def result(self):
        return self.losses, [p.detach() for p in self.model.parameters()]


def train(rank, folder):
    run = Run(rank, seed=1)
    run.train(folder)
    return run.result()


def resume(rank, path, begin, what_else):
    # who looks before the generators are restored settles the seed: that of the script, as ever
    run = Run(rank, seed=1 if what_else == 'a look before' else 100)
    if what_else == 'a look before':
        if rank == 0:  # in training mode, to count operations
            run.model(torch.randn(2, 16, 4, 4))
    run.load(path, is_alone=what_else == 'rank 0 alone is told')
    if what_else == 'an evaluation before':
        run.ddp.eval()
        with torch.no_grad():
            run.model(torch.zeros(2, 16, 4, 4))
    run.train(begin=begin)
    return run.result()


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp('checkpoints')
    return folder, run_ranks(train, folder)


@pytest.mark.parametrize(
    'saved, what_else',
    [
        ('within an epoch', 'an evaluation before'),
        ('at the end of an epoch', 'a look before'),
        ('within an epoch', 'rank 0 alone is told'),
    ],
)
@pytest.mark.filterwarnings('ignore:The weights do not say')
def test_a_resumed_run_goes_on_bit_by_bit(saved, what_else, uninterrupted, run_ranks):
    folder, expected = uninterrupted
    num_steps = SAVED_AT[saved][0] * NUM_BATCHES + SAVED_AT[saved][1]
    resumed = run_ranks(resume, folder / saved, SAVED_AT[saved], what_else)
    for (losses, parameters), (losses_expected, parameters_expected) in zip(resumed, expected):
        assert losses == losses_expected[num_steps:]
        assert all(torch.equal(p, q) for p, q in zip(parameters, parameters_expected))


def go_back(rank):
    run = Run(rank, seed=1)
    run.train()
    assert 'num_steps' not in create().state_dict()._metadata['0.drop_path']
    state = copy.deepcopy([run.model.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()])
    assert state[0]._metadata['0.drop_path']['num_steps'] == NUM_EPOCHS * NUM_BATCHES
    ema = copy.deepcopy(run.model)
    assert 'num_steps' not in ema.state_dict()._metadata['0.drop_path']
    results = []
    for _ in range(2):  # in these processes, with the same network
        run.losses = []
        run.train()
        results.append(run.losses)
        run.model.load_state_dict(state[0])
        run.optimizer.load_state_dict(state[1])
        torch.set_rng_state(state[2])
    # weights of its own change nothing
    run.losses = []
    run.train()
    weights = run.model.state_dict()
    run.model.load_state_dict(weights)
    assert run.model.state_dict()._metadata == weights._metadata
    return results


def test_a_run_may_go_back_to_where_it_was(run_ranks):
    for first, second in run_ranks(go_back):
        assert first == second and len(set(first)) == NUM_EPOCHS * NUM_BATCHES
