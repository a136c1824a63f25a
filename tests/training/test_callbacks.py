"""The gradient that the optimizer sees in Lightning, and what the callback leaves behind."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import optimizer as optim

from adderize import AdaptiveLearningRate, AdderizeError
from adderize.training.callbacks import rescaling
from tests.training.tiny_lit import (
    FILTERS,
    Lit,
    ManualLit,
    RecordingSGD,
    batches,
    check_equal,
    check_norms,
    gradients_by_hand,
    seen_by_optimizer,
    trainer,
)

HOOKS = ("configure_gradient_clipping", "on_before_optimizer_step")


def fp16(init_scale: float = 1024.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=GradScaler("cpu", init_scale=init_scale))


def first_batch(**options: int) -> list[Tensor]:
    return next(iter(batches(**options)))


def test_plain() -> None:
    expected = gradients_by_hand(Lit(), first_batch())
    module = Lit()
    trainer(AdaptiveLearningRate()).fit(module, batches())
    seen = seen_by_optimizer(module)
    assert len(seen) == 4
    check_equal(seen[0], expected)
    for step in seen:
        check_norms(step)


@pytest.mark.parametrize(
    ("algorithm", "value", "clip"),
    [
        ("norm", 0.05, lambda p: nn.utils.clip_grad_norm_(p, 0.05)),
        ("value", 0.01, lambda p: nn.utils.clip_grad_value_(p, 0.01)),
    ],
)
@pytest.mark.parametrize("precision", [None, fp16])
def test_clipping_comes_first(
    algorithm: str,
    value: float,
    clip: Callable[[Any], Any],
    precision: Callable[[], MixedPrecision] | None,
) -> None:
    module = Lit()
    options = {"plugins": [precision()]} if precision else {}
    trainer(
        AdaptiveLearningRate(),
        gradient_clip_val=value,
        gradient_clip_algorithm=algorithm,
        **options,
    ).fit(module, batches())
    seen = seen_by_optimizer(module)
    assert len(seen) == 4
    for step in seen:
        check_norms(step)
    if precision is None:
        check_equal(seen[0], gradients_by_hand(Lit(), first_batch(), clip))


class ClipsItself(Lit):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.05)


def test_clipping_of_the_module_s_own_comes_first() -> None:
    module = ClipsItself()
    trainer(AdaptiveLearningRate()).fit(module, batches())
    clip = lambda p: nn.utils.clip_grad_norm_(p, 0.05)  # noqa: E731
    check_equal(seen_by_optimizer(module)[0], gradients_by_hand(Lit(), first_batch(), clip))


@pytest.mark.filterwarnings("ignore:Adder layers need a norm")
def test_accumulation_equals_the_larger_batch() -> None:
    small, large = Lit(frozen_statistics=True), Lit(frozen_statistics=True)
    trainer(AdaptiveLearningRate(), accumulate_grad_batches=4).fit(small, batches(8, 4))
    trainer(AdaptiveLearningRate()).fit(large, batches(2, 16))
    found, expected = seen_by_optimizer(small), seen_by_optimizer(large)
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        check_norms(a)
        check_equal(a, b)


@pytest.mark.parametrize("kind", [Lit, ManualLit])
def test_fp16_scaler(kind: type[Lit]) -> None:
    module = kind()
    trainer(AdaptiveLearningRate(), plugins=[fp16()]).fit(module, batches())
    seen = seen_by_optimizer(module)
    assert len(seen) == 4
    expected = gradients_by_hand(Lit(), first_batch())
    for name in (*FILTERS, "net.0.weight", "net.8.weight"):
        error = (seen[0][name] - expected[name]).norm() / expected[name].norm()
        assert error < 0.05, name
    for step in seen:
        check_norms(step)


def test_an_overflow_skips_the_step() -> None:
    module, plugin = Lit(), fp16(init_scale=2.0**60)
    before = {name: p.clone() for name, p in module.named_parameters()}
    trainer(AdaptiveLearningRate(), plugins=[plugin]).fit(module, batches(count=1))
    assert seen_by_optimizer(module) == []
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert plugin.scaler.get_scale() == 2.0**59


def fused_sgd(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, fused=True, **options)


def test_fused_optimizer() -> None:
    with pytest.raises(MisconfigurationException, match="fused SGD unscales fp16 gradients"):
        trainer(AdaptiveLearningRate(), plugins=[fp16()]).fit(Lit(optimizer=fused_sgd), batches())
    plain, fused = Lit(optimizer=torch.optim.SGD), Lit(optimizer=fused_sgd)
    for module in (plain, fused):
        trainer(AdaptiveLearningRate()).fit(module, batches())
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class ManualClip(ManualLit):
    def before_step(self, optimizer: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")


class ManualClipInHook(ManualLit):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.05)


@pytest.mark.parametrize("kind", [ManualLit, ManualClip, ManualClipInHook])
def test_manual_optimisation(kind: type[ManualLit]) -> None:
    module = kind()
    trainer(AdaptiveLearningRate()).fit(module, batches())
    seen = seen_by_optimizer(module)
    assert len(seen) == 4
    clipped = lambda p: nn.utils.clip_grad_norm_(p, 0.05)  # noqa: E731
    clip = {} if kind is ManualLit else {"clip": clipped}
    check_equal(seen[0], gradients_by_hand(Lit(), first_batch(), **clip))
    for step in seen:
        check_norms(step)


class TwoOptimizers(ManualLit):
    def configure_optimizers(self) -> Any:
        parts = (self.net[:6], self.net[6:])
        return [RecordingSGD(part.parameters(), lr=0.1) for part in parts]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        for optimizer in (first, second):
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        raw = {name: self.get_parameter(name).grad.clone() for name in FILTERS}
        first.step()
        assert not torch.equal(self.get_parameter("net.3.weight").grad, raw["net.3.weight"])
        assert torch.equal(self.get_parameter("net.6.weight").grad, raw["net.6.weight"])
        second.step()
        check_norms({name: self.get_parameter(name).grad for name in FILTERS})


def test_only_the_filters_of_the_optimizer_at_hand() -> None:
    module = TwoOptimizers()
    trainer(AdaptiveLearningRate()).fit(module, batches())
    assert [len(optimizer.seen) for optimizer in module.trainer.optimizers] == [4, 4]


def momentum_of(module: Lit) -> list[Tensor]:
    optimizer = module.trainer.optimizers[0]
    return [optimizer.state[p]["momentum_buffer"] for p in module.parameters()]


def test_resuming_equals_training_on(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    whole, first, second = Lit(), Lit(), Lit()
    trainer(AdaptiveLearningRate(), max_epochs=2).fit(whole, batches())
    half = trainer(AdaptiveLearningRate())
    half.fit(first, batches())
    half.save_checkpoint(path)
    trainer(AdaptiveLearningRate(), max_epochs=2).fit(second, batches(), ckpt_path=path)
    assert second.trainer.global_step == 8
    for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(momentum_of(whole), momentum_of(second), strict=True):
        assert torch.equal(a, b)
    with pytest.warns(UserWarning, match=r"eta=0.2; training goes on with eta=0.1"):
        trainer(AdaptiveLearningRate(0.1), max_epochs=2).fit(Lit(), batches(), ckpt_path=path)
    with pytest.warns(UserWarning, match=r"ckpt_path.*AdaptiveLearningRate"):
        trainer(max_epochs=2).fit(Lit(), batches(), ckpt_path=path)


class OwnHook:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1


def hooks_of_steps(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """The hooks of all optimizers, and of this one."""
    return len(optim._global_optimizer_pre_hooks), len(optimizer._optimizer_step_pre_hooks)


class Fails(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        assert hooks_of_steps(trainer.optimizers[0]) == (1, 1)
        raise RuntimeError("stop here")


@pytest.mark.parametrize(("kind", "name"), [(Lit, HOOKS[0]), (ManualLit, HOOKS[1])])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_hook_is_restored(kind: type[Lit], name: str, own: bool, fails: bool) -> None:
    module, hook = kind(), OwnHook()
    if own:
        setattr(module, name, hook)
    before = dict(vars(module))
    callbacks = [AdaptiveLearningRate(), *([Fails()] if fails else [])]
    if fails:
        with pytest.raises(RuntimeError, match="stop here"):
            trainer(*callbacks).fit(module, batches())
    else:
        trainer(*callbacks).fit(module, batches())
    assert {key: value for key, value in vars(module).items() if key in HOOKS} == {
        key: value for key, value in before.items() if key in HOOKS
    }
    check_norms(seen_by_optimizer(module)[0])
    assert hook.calls == (0 if not own else 1 if fails else 4)
    assert hooks_of_steps(module.trainer.optimizers[0]) == (0, 0)


def test_hook_wrapped_by_others_goes_quiet() -> None:
    class Wraps(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            ours = pl_module.configure_gradient_clipping
            pl_module.configure_gradient_clipping = lambda *a, **k: ours(*a, **k)

    module = Lit()
    trainer(AdaptiveLearningRate(), Wraps()).fit(module, batches(count=1))
    check_norms(seen_by_optimizer(module)[0])
    trainer().fit(module, batches(count=1))
    filters = seen_by_optimizer(module)[0]["net.3.weight"]
    assert filters.norm().item() != pytest.approx(0.2 * 108**0.5, rel=0.05)


class Copies(pl.Callback):
    def __init__(self) -> None:
        self.copies: list[Lit] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not self.copies:
            self.copies = [copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))]


@pytest.mark.parametrize("kind", [Lit, ManualLit, ClipsItself])
def test_module_copies_while_it_trains(kind: type[Lit]) -> None:
    module, copies = kind(), Copies()
    trainer(AdaptiveLearningRate(), copies).fit(module, batches())
    assert len(copies.copies) == 2
    for twin in copies.copies:
        twin.loss(first_batch()).backward()
        raw = twin.net[3].weight.grad.clone()
        optimizer = twin.configure_optimizers()
        twin.zero_grad(set_to_none=False)
        twin.net[3].weight.grad.copy_(raw)
        twin.on_before_optimizer_step(optimizer)
        assert torch.equal(twin.net[3].weight.grad, raw)
        trainer(AdaptiveLearningRate()).fit(twin, batches())
        check_norms(seen_by_optimizer(twin)[0])
        assert not any(name in vars(twin) for name in HOOKS)


def test_copies_train_without_the_rule() -> None:
    module, copies = Lit(), Copies()
    trainer(AdaptiveLearningRate(), copies).fit(module, batches(count=1))
    for twin in copies.copies:
        plain = Lit()
        plain.load_state_dict(twin.state_dict())
        for each in (twin, plain):
            trainer().fit(each, batches(count=1))
        check_equal(seen_by_optimizer(twin)[0], seen_by_optimizer(plain)[0])


def test_callback_pickles_while_it_is_in_use() -> None:
    class Pickles(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            twin = pickle.loads(pickle.dumps(trainer.callbacks[0]))
            assert twin.eta == 0.3 and twin.recalibrate_before_validation == 2

    trainer(AdaptiveLearningRate(0.3, recalibrate_before_validation=2), Pickles()).fit(
        Lit(), batches(count=1)
    )


def test_beside_weight_averaging() -> None:
    module = Lit()
    trainer(AdaptiveLearningRate(), WeightAveraging()).fit(module, batches())
    for step in seen_by_optimizer(module):
        check_norms(step)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_hide_gradients(strategy: type) -> None:
    run: Any = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(MisconfigurationException, match=f"{strategy.__name__}.*FSDP2"):
        AdaptiveLearningRate().setup(run, Lit(), stage="fit")


def test_model_without_adders() -> None:
    module = Lit()
    module.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(MisconfigurationException, match=r"no adder layers in Lit.*adderize\(model"):
        trainer(AdaptiveLearningRate()).fit(module, batches())


class ConvertedTooLate(Lit):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.net[:3].parameters(), lr=0.1)
        return optimizer


def test_filters_that_no_optimizer_holds() -> None:
    with pytest.raises(MisconfigurationException, match="no optimizer holds any"):
        trainer(AdaptiveLearningRate()).fit(ConvertedTooLate(), batches())


class OwnAdam(torch.optim.Adam):
    pass


class AdamWScheduleFree(torch.optim.Optimizer):
    """As in the package schedulefree, which derives it from no Adam of torch's."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        return closure()


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.RMSprop, OwnAdam, AdamWScheduleFree]
)
def test_optimizers_that_cancel_the_rule(kind: type) -> None:
    module = Lit(optimizer=lambda parameters, **_: kind(parameters, lr=1e-3))
    with pytest.warns(UserWarning, match=f"{kind.__name__} rescales gradients itself") as caught:
        trainer(AdaptiveLearningRate(), max_epochs=2).fit(module, batches())
    assert sum("rescales" in str(warning.message) for warning in caught) == 1


def test_optimizers_in_others() -> None:
    from timm.optim import Lookahead

    weights = [torch.zeros(1, requires_grad=True)]
    assert rescaling(Lookahead(torch.optim.AdamW(weights))) == "AdamW"
    assert rescaling(Lookahead(torch.optim.SGD(weights, 0.1))) is None


def test_every_optimizer_of_torch_and_timm_is_known() -> None:
    import timm.optim

    plain = {"ASGD", "LBFGS", "Lookahead", "Optimizer", "SGD", "SGDP", "SGDW"}
    classes = [
        kind
        for kind in (*vars(torch.optim).values(), *vars(timm.optim).values())
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    ]
    # Without parameters: only the class is looked at.
    unknown = {kind.__name__ for kind in classes if not rescaling(kind.__new__(kind))}
    assert unknown <= plain  # timm 1.0.3 has no SGDW yet.


class ScalarSGD(torch.optim.SGD):
    """Has "lars" in its name."""


@pytest.mark.parametrize("kind", [torch.optim.SGD, ScalarSGD])
def test_sgd_raises_no_warning(kind: type) -> None:
    module = Lit(optimizer=lambda parameters, **_: kind(parameters, lr=1e-3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(AdaptiveLearningRate()).fit(module, batches())
    texts = [str(warning.message) for warning in caught]
    assert not any("rescales" in text or "Adder layers" in text for text in texts)


@pytest.mark.parametrize("eta", [0, -1.0, float("nan"), float("inf"), None])
def test_wrong_eta(eta: Any) -> None:
    with pytest.raises(AdderizeError, match="eta is"):
        AdaptiveLearningRate(eta)


def test_two_callbacks_are_refused() -> None:
    with pytest.raises(RuntimeError, match="AdaptiveLearningRate"):
        trainer(AdaptiveLearningRate(), AdaptiveLearningRate(0.1))
