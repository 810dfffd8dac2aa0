"""Weight and bias: shapes, initialisation, gradients."""

import pytest
import torch

from crossent.class_shard import ClassShard
from crossent.config import Bias, Init
from crossent.head import Head


def head(bias: Bias = "per_class", init: Init = "default", seed: int = 0, outputs: int = 3) -> Head:
    return Head(4, 3, outputs, bias=bias, init=init, seed=seed)


@pytest.mark.parametrize("seed", [0, 7])
def test_default_is_what_linear_draws_after_the_seed(seed: int) -> None:
    torch.manual_seed(seed)
    linear = torch.nn.Linear(4, 3)

    drawn = head(seed=seed)

    assert torch.equal(drawn.weight, linear.weight)
    assert drawn.bias is not None
    assert torch.equal(drawn.bias, linear.bias)


def test_notebook_is_what_linear_draws_after_the_notebooks_two_draws() -> None:
    torch.manual_seed(1)
    torch.rand(3, 5)
    torch.randint(5, (3,))
    linear = torch.nn.Linear(4, 3)

    drawn = head(init="notebook", seed=5)

    assert torch.equal(drawn.weight, linear.weight)
    assert drawn.bias is not None
    assert torch.equal(drawn.bias, linear.bias)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()

    head(init="default")
    head(init="notebook")

    assert torch.equal(torch.get_rng_state(), before)


def test_zeros() -> None:
    assert not any(parameter.any() for parameter in head(init="zeros").parameters())


@pytest.mark.parametrize(("bias", "shape"), [("per_class", (3,)), ("shared", (1,))])
def test_bias_is_added_to_every_logit(bias: Bias, shape: tuple[int, ...]) -> None:
    made = head(bias)
    assert made.bias is not None

    logits = made(torch.zeros(2, 4))

    assert made.bias.shape == shape
    assert torch.equal(logits, made.bias.expand(3).expand(2, 3))


def test_without_a_bias_there_is_none() -> None:
    made = head("none")

    assert made.bias is None
    assert made.output_bias is None
    assert torch.equal(made(torch.zeros(2, 4)), torch.zeros(2, 3))


class Nobody:
    def largest(self, numbers: torch.Tensor) -> None: ...

    def total(self, numbers: torch.Tensor) -> None: ...


@pytest.mark.parametrize("bias", ["per_class", "shared", "none"])
@pytest.mark.parametrize("init", ["default", "notebook", "zeros"])
def test_a_shard_begins_as_it_would_in_a_head_of_all_classes(
    init: Init, bias: Bias, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossent.head._DRAWN_AT_A_TIME", 10)
    whole = Head(7, 11, 11, bias=bias, init=init, seed=3)

    for shard in (ClassShard.share(11, number, 3, Nobody()) for number in range(3)):
        part = Head(7, 11, 11, bias=bias, init=init, seed=3, shard=shard)

        assert part.state_dict().keys() == whole.state_dict().keys()
        for name, wanted in part.own_part(whole.state_dict()).items():
            assert torch.equal(part.state_dict()[name], wanted), name
        assert set(part.sharded) == {"weight", *(["bias"] if bias == "per_class" else [])}
