"""The network of a run with its optimizer and moving average: built, saved and restored."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor, nn

from eagleray.models.building import build, find_head
from eagleray.models.network import ImageNetwork
from eagleray.training.loop.checkpoint import Checkpoint, with_prefix
from eagleray.training.loop.distributed import DistributedContext
from eagleray.training.loop.fsdp import load_full_state, shard
from eagleray.training.loop.optimizer import (
    make_ema,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from eagleray.training.loop.stages import freeze_stages, num_frozen_stages, stages_of
from eagleray.training.worker_input import WorkerInput

__all__ = ["ModelState"]


class ModelState:
    """The part of a worker that checkpoints restore.

    Args:
        worker_input: Input of the worker.
        context: Distributed context of the worker.

    Attributes:
        module: Network without the contract's normalisation; checkpoints contain its weights.
        network: Network with the normalisation: uint8 images in, logits out.
        optimizer: Optimizer of the module's parameters.
        ema: Exponential moving average of the module, where the specification has one.
        is_sharded: Whether the workers share weights and optimizer state (FSDP).
    """

    def __init__(self, worker_input: WorkerInput, context: DistributedContext) -> None:
        spec, num_outputs = worker_input.spec, worker_input.task.num_outputs
        self._spec, self._contract, self._context = spec, worker_input.contract, context
        self.module = build(worker_input.architecture, initialize=False)
        self.module.load_state_dict(safetensors.torch.load(worker_input.initial_weights))
        _add_dropout(self.module, num_outputs, spec.dropout)
        autocast = torch.bfloat16 if spec.precision == "bfloat16" else None
        network = ImageNetwork(self.module, self._contract, autocast=autocast)
        self._stages = stages_of(self.module, num_outputs)
        self.is_sharded = spec.strategy == "fsdp" and context.world_size > 1
        if self.is_sharded:
            shard(network, self.module, self._stages, context)
            self.network = network.to(context.device)
        else:
            self.network = network.to(context.device).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(spec, self.module, self._stages)
        self.ema = make_ema(self.module, spec.ema_decay) if spec.ema_decay else None
        self._wrapped: tuple[int, nn.Module] | None = None

    def start_epoch(self, epoch: int) -> nn.Module:
        """Set training mode and the frozen stages of an epoch; return the network to train.

        Its gradients are averaged over the workers.
        """
        self.network.train()
        num_frozen = num_frozen_stages(self._spec, len(self._stages), epoch)
        freeze_stages(self.module, self._stages, num_frozen)
        if self._wrapped is None or self._wrapped[0] != num_frozen:
            network = self.network if self.is_sharded else self._context.wrap(self.network)
            self._wrapped = (num_frozen, network)
        return self._wrapped[1]

    def evaluation_network(self) -> nn.Module:
        """Return the network to validate, in evaluation mode: the moving average if there is one.

        Statistics of normalisation are averaged over the workers first.
        """
        self._context.average_buffers(self.module)
        network = self.network
        if self.ema is not None:
            self._context.average_buffers(self.ema.module)
            network = ImageNetwork(
                self.ema.module, self._contract, autocast=self.network.autocast
            ).to(self._context.device)
        return network.eval()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that a finished run would keep: those that validation measures."""
        module = self.module if self.ema is None else self.ema.module
        return dict(module.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that a checkpoint has to contain."""
        tensors = {
            **with_prefix("model", self.module.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer, self.module)),
        }
        if self.ema is not None:
            tensors |= with_prefix("average", self.ema.module.state_dict())
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the tensors of a checkpoint."""
        load_full_state(self.module, checkpoint.with_prefix("model"))
        restore_optimizer(self.optimizer, self.module, checkpoint.with_prefix("optimizer"))
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint.with_prefix("average"))
            self.ema.n_averaged.fill_(checkpoint.progress.total_steps)


def _add_dropout(module: nn.Module, num_outputs: int, probability: float) -> None:
    """Apply dropout to the head's features by a hook, so that weights keep their names."""
    if probability:
        head = module.get_submodule(find_head(module, num_outputs))
        head.register_forward_pre_hook(
            # The first input is the features; attributes may follow.
            lambda layer, inputs: (
                nn.functional.dropout(inputs[0], probability, layer.training),
                *inputs[1:],
            )
        )
