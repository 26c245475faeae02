"""Adam, Megatron's optimizers around it, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from primus.config.frozen import StageSettings
from primus.trainer.fully_sharded import over_shares
from primus.trainer.model import params_dtype
from primus.trainer.platform import norm_in_few_kernels, use_fused_adam


class FusedAdam(torch.optim.Optimizer):
    """AdamW through torch's fused kernel, with one step count per group.

    Takes the arguments that Megatron-core gives to transformer-engine's and apex's FusedAdam.
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.

    Attributes:
        grad_divisor: gradients are divided by this number in the same pass over memory.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        adam_w_mode: bool = True,
    ) -> None:
        self._fused = torch._fused_adamw_ if adam_w_mode else torch._fused_adam_
        self.grad_divisor: float | None = None
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            # Also where this rank has none: rank 0 saves the count for ranks that have some.
            group["step"] = group.get("step", 0) + 1
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self._state(p) for p in params]
            # Filled where they are read: a copy from the host would wait for the device, and the
            # kernel of a GPU takes the address of memory of the host as it is.
            step = torch.full((), float(group["step"]), device=params[0].device)
            divisor = self.grad_divisor
            grad_scale = torch.full_like(step, divisor) if divisor is not None else None
            beta1, beta2 = group["betas"]
            self._fused(
                params,
                [p.grad for p in params],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [step] * len(params),
                amsgrad=False,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                grad_scale=grad_scale,
                found_inf=None,
            )

    def make_state(self) -> None:
        """Make the moments now: a run may be saved before its first step, when all were skipped."""
        for group in self.param_groups:
            group.setdefault("step", 0)
            for param in group["params"]:
                self._state(param)

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state


def build_optimizer(settings: StageSettings, chunks: list[torch.nn.Module]) -> MegatronOptimizer:
    """Megatron's optimizer over the model's chunks: float32 state, sharded if asked for."""
    use_fused_adam(FusedAdam)
    norm_in_few_kernels()
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=settings.clip_grad,
        # The shares of FSDP2 are float32 themselves.
        bf16=settings.bf16 and not settings.use_torch_fsdp2,
        fp16=settings.fp16,
        loss_scale=settings.loss_scale if settings.fp16 else None,
        initial_loss_scale=settings.initial_loss_scale,
        min_loss_scale=settings.min_loss_scale,
        loss_scale_window=settings.loss_scale_window,
        hysteresis=settings.hysteresis,
        params_dtype=torch.float32 if settings.use_torch_fsdp2 else params_dtype(settings),
        use_distributed_optimizer=settings.use_distributed_optimizer,
        overlap_param_gather=settings.overlap_param_gather,
        log_num_zeros_in_grad=False,
    )
    if settings.use_torch_fsdp2:
        return over_shares(config, chunks)
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
    _share_loss_scale(optimizer)
    for adam in _inner(optimizer):
        if isinstance(adam, FusedAdam):
            adam.make_state()
    return optimizer


def _inner(optimizer: Any) -> list[Any]:
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts]


class _SharedScaler:
    """One loss scale for the parts of a chained optimizer: an overflow in any part counts for all.

    Upstream gives each part its own. After an overflow among the experts alone their gradients
    would be divided by another scale than the loss was multiplied by.
    """

    def __init__(self, scaler: Any, parts: int) -> None:
        self._scaler, self._parts = scaler, parts
        self._overflows: list[bool] = []

    @property
    def scale(self) -> Tensor:
        """Factor of the loss, (1,) float32."""
        return self._scaler.scale  # type: ignore[no-any-return]

    @property
    def inv_scale(self) -> Tensor:
        """1 / scale."""
        return self._scaler.inv_scale  # type: ignore[no-any-return]

    def update(self, found_inf: bool) -> None:
        """What one part found; the scale moves when the last part has spoken."""
        self._overflows.append(found_inf)
        if len(self._overflows) == self._parts:
            self._scaler.update(any(self._overflows))
            self._overflows = []

    def state_dict(self) -> dict[str, Any]:
        """The state of the one scale."""
        return self._scaler.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the one scale; every part brings the same state."""
        self._scaler.load_state_dict(state)


def _share_loss_scale(optimizer: Any) -> None:
    parts = getattr(optimizer, "chained_optimizers", [])
    if len(parts) > 1 and getattr(parts[0], "grad_scaler", None) is not None:
        shared = _SharedScaler(parts[0].grad_scaler, len(parts))
        for part in parts:
            part.grad_scaler = shared


def take_step(optimizer: MegatronOptimizer, clip_grad: float) -> tuple[bool, float | None]:
    """Clip and update; collective.

    With our Adam the clipping happens inside the update, which saves two passes over the
    gradients.

    Returns:
        whether the parameters were updated, and the gradient norm before clipping. Without an
        update all of the optimizer's state is as before; where the norm is None, an overflow has
        moved the loss scale.
    """
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    scaler = getattr(parts[0], "grad_scaler", None)
    scale = dict(scaler.state_dict()) if scaler is not None else {}
    if optimizer.prepare_grads():
        return False, None
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm):
        if scaler is not None:
            # It has counted a step without overflow.
            scaler.load_state_dict(scale)
        return False, norm
    inner = _inner(optimizer)
    if all(isinstance(adam, FusedAdam) for adam in inner):
        divisor = max(1.0, (norm + 1e-6) / clip_grad) if clip_grad > 0 else 1.0
        for adam in inner:
            adam.grad_divisor = None if divisor == 1.0 else divisor
    elif clip_grad > 0:
        for part in parts:
            _clip(part, norm, clip_grad)
    return bool(optimizer.step_with_ready_grads()), norm


def _clip(part: Any, norm: float, clip_grad: float) -> None:
    """As the `step` of upstream's optimizers does."""
    if getattr(part, "is_stub_optimizer", False) or not part.get_parameters():
        return
    clip_grad_by_total_norm_fp32(
        part.get_parameters(),
        max_norm=clip_grad,
        total_norm=norm,
        use_decoupled_grad=part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
    )


def build_scheduler(
    settings: StageSettings, optimizer: MegatronOptimizer
) -> OptimizerParamScheduler:
    """The learning rate over samples, as Megatron counts them."""
    batch = settings.global_batch_size
    decay_iters = settings.lr_decay_iters or settings.train_iters
    wsd = settings.lr_wsd_decay_iters
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.lr_warmup_iters * batch,
        lr_decay_steps=decay_iters * batch,
        lr_decay_style=settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=decay_iters * batch,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=None if wsd is None else wsd * batch,
        lr_wsd_decay_style=settings.lr_wsd_decay_style,
    )
