"""Fast, exact classification losses and their gradients for NumPy arrays."""

from fastloss._threads import get_num_threads, set_num_threads
from fastloss.losses.categorical import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_value_and_grad,
    nll_loss,
    nll_loss_backward,
    nll_loss_value_and_grad,
)
