"""The other side of min-max matching: learned frequencies climb the loss that the frames descend."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snn_core.distillation.frequencies import LearnedFrequencies
from snn_core.distillation.matching import MatchingLoss
from snn_core.distillation.spatio_temporal import SpatioTemporalMatching

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class FrequencyClimb:
    """Adam ascent on the parameters of a loss's learned frequencies; nothing at all where it has none.

    Args:
        matching: the loss. widths: features of each layer, for each teacher, ``parts`` SDR weights concatenated.
        rate: of Adam, in units of a frequency's logarithm.
    """

    def __init__(
        self, matching: MatchingLoss, widths: list[list[int]], parts: int, rate: float, device: torch.device
    ) -> None:
        self._modules: list[LearnedFrequencies] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._optimizer: torch.optim.Adam | None = None
        if not isinstance(matching, SpatioTemporalMatching) or not matching.learn_frequencies:
            return
        for layer, width in sorted({(i, width) for teacher in widths for i, width in enumerate(teacher)}):
            self._modules.append(matching.prepare_layer(layer, width // parts))
        matching.to(device)
        self._parameters = dict(matching.learned.named_parameters())
        self._optimizer = torch.optim.Adam(self._parameters.values(), rate, betas=(0.5, 0.9), maximize=True)

    def zero_grad(self) -> None:
        """Before the backward pass."""
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Of the parameters that took part in the last loss, in a fixed order."""
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def step(self) -> None:
        """Up the gradient, by Adam."""
        if self._optimizer is not None:
            self._optimizer.step()
            for module in self._modules:
                module.project_()

    def state(self) -> dict[str, Tensor]:
        """Parameters and Adam's moments by name; those of parameters that never had a gradient are left out."""
        state = {f"value/{name}": parameter.detach() for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state.get(parameter, {}) if self._optimizer is not None else {}
            state |= {f"{key}/{name}": moments[key] for key in _MOMENTS if key in moments}
        return state

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        for name, parameter in self._parameters.items():
            parameter.copy_(state[f"value/{name}"])
            if self._optimizer is not None and f"step/{name}" in state:
                moments = {key: state[f"{key}/{name}"] for key in _MOMENTS}
                moved = {key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()}
                self._optimizer.state[parameter] = moved
