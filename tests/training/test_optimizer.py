import copy

import torch
from torch import nn

from bsconv_nas.training.optimizer import optimizer, parameter_groups
from bsconv_nas.training.recipe import Recipe


def separable():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=True),  # 0: dense kernel decays, bias does not
        nn.BatchNorm2d(8),  # 1
        nn.Conv2d(8, 8, 3, groups=8),  # 2: depthwise
        nn.Conv2d(8, 24, 1, bias=False),  # 3: pointwise
        nn.Conv2d(24, 8, 3, groups=8, bias=False),  # 4: 8 groups of 3 blueprints each
        nn.Conv2d(8, 16, 3, groups=8, bias=False),  # 5: depthwise with a multiplier
        nn.Conv2d(16, 16, 3, groups=4, bias=False),  # 6: grouped, as in ResNeXt
        nn.PReLU(16),  # 7
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),  # 10
    )


def test_only_dense_kernels_and_linear_weights_decay():
    model = separable()
    decayed, spared = parameter_groups(model, 5e-4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 5e-4
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "3.weight", "6.weight", "10.weight"}
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_steps_equal_nesterovs_formula_in_any_memory_layout():
    torch.manual_seed(0)
    model = separable().to(memory_format=torch.channels_last)
    reference = copy.deepcopy(model)
    sgd = optimizer(model, Recipe(momentum=0.9, weight_decay=0.1))
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    decays = {"0.weight", "3.weight", "6.weight", "10.weight"}
    for step in range(3):
        rate = 0.1 / (step + 1)
        images = torch.randn(2, 3, 11, 11).to(memory_format=torch.channels_last)
        for network in (model, reference):
            network.zero_grad()
            network(images).square().sum().mul(1e-3).backward()
        for group in sgd.param_groups:
            group["lr"] = rate
        sgd.step()
        with torch.no_grad():
            for name, p in reference.named_parameters():
                gradient = p.grad + (0.1 * p if name in decays else 0)
                velocity[name] = 0.9 * velocity[name] + gradient
                p -= rate * (gradient + 0.9 * velocity[name])
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_momentum_exists_before_the_first_step_or_not_at_all():
    model = separable()
    assert len(optimizer(model, Recipe()).state) == len(list(model.parameters()))
    assert not optimizer(model, Recipe(momentum=0, nesterov=False)).state
