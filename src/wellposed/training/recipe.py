"""Recipe: everything that decides what a training run does, apart from model and data."""

from __future__ import annotations

from typing import Literal, final

from pydantic import Field

from wellposed.training.settings import Settings

OptimiserName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]


@final
class Recipe(Settings):
    """How a network is trained.

    Args:
        epochs: Passes over the training images.
        batch: Images a step; what is left over at the end of an epoch is a smaller batch.
        optimiser: Update rule.
        lr: Largest learning rate of the schedule.
        weight_decay: Decoupled for AdamW, an l2 penalty otherwise.
        momentum: Of SGD.
        betas: Of Adam and AdamW.
        schedule: Learning rate over the steps.
        warm_up: Part of all steps in which the rate rises linearly (one-cycle: along a cosine).
        final_lr: Last learning rate of cosine and one-cycle, as a part of `lr`.
        step_every: Epochs between reductions, for the step schedule.
        step_factor: Factor of each reduction.
        averaging: Decay a step of the exponential moving average of the weights, which is then
            what is validated and kept; 0 for none.
        clip: Largest 2-norm of the gradient; 0 for none.
        label_smoothing: Part of the target that is spread over all classes.
        shift: Largest random shift of a training image in pixels; 0 for no augmentation.
        checkpoint_every: Seconds between checkpoints within an epoch.
        checkpoint_steps: Steps between checkpoints within an epoch; 0 leaves it to the clock.
        tensorboard: Whether metrics also go to TensorBoard (needs the extra).
    """

    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=128, ge=1)
    optimiser: OptimiserName = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: ScheduleName = "cosine"
    warm_up: float = Field(default=0.0, ge=0, lt=1)
    final_lr: float = Field(default=0.0, ge=0, le=1)
    step_every: int = Field(default=10, ge=1)
    step_factor: float = Field(default=0.1, gt=0, le=1)
    averaging: float = Field(default=0.0, ge=0, lt=1)
    clip: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    shift: int = Field(default=0, ge=0)
    checkpoint_every: float = Field(default=60.0, gt=0)
    checkpoint_steps: int = Field(default=0, ge=0)
    tensorboard: bool = False
